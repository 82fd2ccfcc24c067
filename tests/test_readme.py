"""README and docs keep their word: commands run, links lead somewhere, figures are the records'."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from s2dlib.report.readme import BLOCK, PAGES, shown, written
from s2dlib.report.records import read_records
from s2dlib.report.tables import difference

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = [
    "using",
    "data",
    "training",
    "gpu",
    "results",
]  # in the order in which a reader tries them
TEXTS = {f"docs/{name}.md": (ROOT / f"docs/{name}.md").read_text() for name in GUIDES}
TEXTS = {"README.md": README} | TEXTS
INDEX, DECISIONS = "notebooks/README.md", "docs/decisions.md"
DRY = {  # what takes hours, a cluster or a screen: what it would do
    "make reproduce": "make reproduce ARGS=--dry-run",
    "make test": "make --dry-run test",
    "make setup && source .venv/bin/activate": "make setup",
    "s2d inspect": "s2d inspect --help",
    "make reproduce GPUS=1": "make --dry-run reproduce GPUS=1",
    "make study": "make --dry-run study",
    "make bench GPUS=1": "make --dry-run bench GPUS=1",
}


def fences(kind):
    return [
        f for t in TEXTS.values() for f in re.findall(rf"^```{kind}\n(.*?)^```", t, re.M | re.S)
    ]


def commands():
    """Each command of README and docs once, in order, without its comment."""
    lines = "".join(fences("sh")).replace("\\\n", " ").splitlines()
    lines = [line.split("   #")[0] for line in lines if not line.startswith("#")]
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def reduced(command):
    """The command as the test runs it."""
    if command.startswith("make reproduce GPUS=1 CONFIG="):
        return f"{command} ARGS=--dry-run"
    if command.startswith("snakemake --profile"):
        csv = "data/mini-kinetics/mini-kinetics.csv"  # which s2d index makes of its owner's files
        index = f"mkdir -p {os.path.dirname(csv)} && touch {csv}"
        return f"{index} && {command} --dry-run --executor local"
    if command.endswith(".onnx"):  # takes as long as all others; test_export.py exports to ONNX
        return f"{command.split(' results/')[0]} --help"
    return DRY.get(command, command)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a new user has: the files of the repository, and an environment that is ready."""
    folder = tmp_path_factory.mktemp("clone")
    list_files = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(list_files, cwd=ROOT, text=True).strip("\0").split("\0")
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != "ready":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / "ready").touch()  # or make would install this copy
    return folder


@pytest.mark.slow
def test_commands_of_readme_and_docs_run_on_a_new_clone(clone):
    path = f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = dict(os.environ, PATH=path, PYTHONPATH=str(clone), OMP_NUM_THREADS="1")
    options = {"cwd": clone, "env": environment, "capture_output": True, "text": True}
    assert len(commands()) > 12 and set(DRY) <= set(commands())
    for command in commands():
        done = subprocess.run(["bash", "-c", reduced(command)], **options)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    (code,) = fences("python")
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.returncode == 0 and "torch.Size([1, 1, 8, 20, 20])" in done.stdout, done.stderr
    assert (clone / "predictions" / "00007.mp4.s2d.mp4").stat().st_size > 10_000
    assert (clone / "predictions" / "test" / "predictions.csv").read_text().count("\n") == 21
    mine = (clone / "reproduced" / "runs" / "mine" / "config.json").read_text()
    assert '"upright tall bar>pole"' in mine  # the names of the classes go with the model


def prose(text):
    """A page without what `make readme` writes, and without code."""
    return re.sub(r"```.*?```|`[^`]*`", "", BLOCK.sub("", text), flags=re.S)


def links(page, part=""):
    """Label and path, from the root, of each link to a file in a page, or in a part of it."""
    text = (ROOT / page).read_text()
    references = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.M))
    text = part or text
    pairs = re.findall(r"\[([^\][]*)\]\(([^)#:]+)\)", text)
    labels = re.findall(r"\[([^\][]+)\](?:\[(\w+)\])?(?![\](:])", text)
    pairs += [(label, references[r or label]) for label, r in labels if (r or label) in references]
    pairs += [("", path) for path in re.findall(r'src="([^"]+)"', text)]
    return [(a, os.path.normpath(os.path.join(os.path.dirname(page), path))) for a, path in pairs]


@pytest.mark.parametrize("page", [*TEXTS, "CONTRIBUTING.md", DECISIONS, "docs/history.md", INDEX])
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    for label, path in links(page):
        assert (ROOT / path).exists(), f"{label}: {path}"
    for path in re.findall(
        r"`((?:results|docs|data|profiles|benchmarks|notebooks)/[\w./-]*[\w/])`", text
    ):
        made = path.startswith("data/demo")
        assert made or (ROOT / path).exists() or (ROOT / "s2dlib" / path).exists(), path
    for name in re.findall(r"`(\d\d_\w+)`", text):
        path = f"notebooks/{name}.ipynb"
        assert (ROOT / path).is_file(), name
    for name in re.findall(r"`([\w/]+\.py)`", text):
        found = (ROOT / name).is_file() or list(ROOT.glob(f"*/{name}"))
        assert found or list((ROOT / "s2dlib").rglob(name)), name


def test_readme_links_to_every_guide_and_the_index():
    linked = {path for _, path in links("README.md")}
    assert linked >= {*TEXTS, DECISIONS, INDEX, "CONTRIBUTING.md"} - {"README.md"}


@cache
def definitions(path):
    """Qualified name -> source, of what a module defines at its top and in its classes."""
    text = (ROOT / path).read_text()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            found |= dict.fromkeys(names, ast.get_source_segment(text, node))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.get_source_segment(text, node)
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef):
                    name = f"{node.name}.{inner.name}"
                    found[name] = ast.get_source_segment(text, inner)
    return found


def cited(source):
    """Equations that a source names, as Eq. 4, 6 or Eq. 8-10."""
    found = set()
    for words in re.findall(r"Eq\. (\d+(?:(?:, |-)\d+)*)", source):
        for word in words.split(", "):
            first, _, last = word.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def map_rows():
    """Item -> its cells of code and of notebooks and results."""
    table = README.split("## Where each item of the paper is")[1].split("## ")[0]
    rows = re.findall(r"^\| ((?:Eq\.|Fig\.|Table) \d+) \| (.*) \| (.*) \|$", table, re.M)
    assert len(rows) == len({item for item, *_ in rows})
    return {item: cells for item, *cells in rows}


ITEMS = [f"{kind} {n}" for kind, last in (("Eq.", 12), ("Fig.", 4), ("Table", 4))
         for n in range(1, last + 1)]  # fmt: skip


@pytest.mark.parametrize("item", ITEMS)
def test_each_item_of_the_paper_is_found_from_the_map_in_two_steps(item):
    code, shown_in = map_rows()[item]
    modules, sources = dict(links("README.md", code)), []
    for names, label in re.findall(r"((?:`[\w.]+`(?:, )?)+) in \[([^\]]+)\]", code):
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in definitions(modules[label]), f"{name} is not defined in {label}"
            sources.append(definitions(modules[label])[name])
    assert len(sources) == code.count("`") // 2 > 0
    kind, number = item.split()
    if kind == "Eq.":
        assert int(number) in set().union(*map(cited, sources)), f"no definition names {item}"
    files = [path for _, path in links("README.md", shown_in)]
    assert any(path.endswith(".ipynb") for path in files)
    assert kind != "Table" or any(path.startswith("results/tables/") for path in files)


def test_contributing_names_every_module_of_the_method_and_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {p.name for p in (ROOT / "s2dlib").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules <= set(re.findall(r"`(\w+\.py)`", text))
    folders = {p.parent.name for p in (ROOT / "s2dlib").glob("*/*.py")}
    assert folders <= set(re.findall(r"`(\w+)/`", text))


def test_the_index_links_to_every_notebook_and_shows_pictures_by_reference():
    linked = {path for _, path in links(INDEX)}
    assert {f"notebooks/{p.name}" for p in (ROOT / "notebooks").glob("*.ipynb")} <= linked
    pictures = re.findall(r"<img ([^>]*)>", (ROOT / INDEX).read_text())
    assert pictures
    for picture in pictures:
        assert re.search(r'src="\.\./results/figures/[\w-]+\.png"', picture), picture
        assert re.search(r'width="\d+"', picture) and re.search(r'alt="[^"]+"', picture), picture


@pytest.mark.parametrize("page", PAGES)
def test_make_readme_changes_nothing(page):
    text = (ROOT / page).read_text()
    assert written(text, ROOT) == text
    spoilt = BLOCK.sub(lambda block: f"{block[1]}| an older table |\n", text)
    assert spoilt != text and written(spoilt, ROOT) == text


def test_readme_has_no_figure_typed_by_hand():
    text = prose(README)
    figures = re.findall(r"(?<!Python )(?<!Sec\. )\b\d+\.\d+|±|\d ?%", text)
    assert figures == []


def test_what_readme_says_of_its_table_is_so():
    records = read_records(ROOT / "results" / "runs")
    lines = shown(records).set_index(["videos", "kind"])
    gain = lines["a0_minus"]
    gestures = gain["egogestar"]
    assert (gestures[["a1", "a2"]] < 0).all()  # behind each of its parts, and level with its peer
    assert abs(gestures["tsm"]) < lines["interval"]["egogestar", "tsm"]
    assert gain["synthetic", "top1_shuffled"] > gain["synthetic", "a1"] / 2  # most of its gain
    assert gain["synthetic", "constant"] > gain["synthetic", "a1"] / 2
    assert gain["grid", "top1_shuffled"] > gain["grid", "b3"] / 2
    top1 = records.set_index("run")["top1"]
    scratch, start, unfused = (
        pd.Series([top1[f"grid-nothing-shift-16{name}-{seed}"] for seed in range(3)])
        for name in ("", "-start", "-b2")
    )
    gained, by_fusion = difference(scratch, start), difference(scratch, unfused)
    assert gained["ours"] > gained["interval"]
    assert abs(by_fusion["ours"]) < by_fusion["interval"]
    chance = 10
    for kind in ("top1_shuffled", "constant"):  # loses most
        assert gain["grid-untrimmed", kind] > (lines["top1"]["grid-untrimmed", "a0"] - chance) / 2
    for kind in ("fc", "paper", "authors"):  # SNet's level
        assert abs(lines["top1"]["synthetic", kind] - lines["top1"]["synthetic", "a1"]) < 3


def numbers(path):
    return [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", path.read_text())]


def test_each_figure_of_the_results_page_is_in_a_record_that_its_paragraph_names():
    n_figures = 0
    for paragraph in BLOCK.sub("", TEXTS["docs/results.md"]).split("\n\n"):
        figures = re.findall(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)", prose(paragraph))
        records = re.findall(r"`(results/[\w./-]+\.\w+)`", paragraph)
        if not figures:
            continue
        known = [n for record in records for n in numbers(ROOT / record)]
        for figure in figures:
            n_figures += 1
            n_places = len(figure.partition(".")[2])
            assert any(f"{n:.{n_places}f}" == figure for n in known), f"{figure} in: {paragraph}"
    assert n_figures > 20


def test_pages_keep_to_their_limits_of_length():
    assert len(README.splitlines()) <= 160
    for page in ("README.md", DECISIONS, "CONTRIBUTING.md", "docs/history.md", INDEX):
        assert max(map(len, (ROOT / page).read_text().splitlines())) <= 120, page
    for page, text in TEXTS.items():
        assert max(map(len, BLOCK.sub("", text).splitlines())) <= 120, page


def test_each_decision_has_at_most_twelve_lines():
    text = (ROOT / DECISIONS).read_text()
    decisions = re.split(r"^(?=\*\*D\d+ )", text, flags=re.M)[1:]
    names = [int(d[3 : d.index(" ")]) for d in decisions]
    assert names == list(range(1, len(names) + 1)) and len(names) >= 36
    lengths = {n: len(d.strip().splitlines()) for n, d in zip(names, decisions, strict=True)}
    assert {n: length for n, length in lengths.items() if length > 12} == {}
