"""The README keeps its word: each command runs, each path and notebook that it names is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DRY = {  # what takes hours, a cluster or a screen: what it would do
    "make reproduce": "make reproduce ARGS=--dry-run",
    "make test": "make --dry-run test",
    "make setup && source .venv/bin/activate": "make setup",
    "s2d inspect": "s2d inspect --help",
    "make reproduce GPUS=1": "make reproduce GPUS=1 ARGS=--dry-run",
    "make study": "make study ARGS=--dry-run",
    "make bench GPUS=1": "make --dry-run bench GPUS=1",
}


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.M | re.S)


def commands():
    """Each command of the README, in order, without its comment."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    lines = [line.split("   #")[0] for line in lines if not line.startswith("#")]
    return [" ".join(line.split()) for line in lines]


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
def test_readme_commands_run_on_a_new_clone(clone):
    path = f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = dict(os.environ, PATH=path, PYTHONPATH=str(clone), OMP_NUM_THREADS="1")
    options = {"cwd": clone, "env": environment, "capture_output": True, "text": True}
    assert len(commands()) > 12 and set(DRY) <= set(commands())
    for command in commands():
        done = subprocess.run(["bash", "-c", reduced(command)], **options)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.returncode == 0 and "torch.Size([1, 1, 8, 20, 20])" in done.stdout, done.stderr
    assert (clone / "predictions" / "00007.mp4.s2d.mp4").stat().st_size > 10_000
    assert (clone / "predictions" / "test" / "predictions.csv").read_text().count("\n") == 21
    mine = (clone / "results" / "runs" / "mine" / "config.json").read_text()
    assert '"upright tall bar>pole"' in mine  # the names of the classes go with the model


def test_readme_files_and_notebooks_are_there():
    paths = re.findall(r"\]\(([^)#:]+)\)", README)
    paths += re.findall(
        r"`((?:results|docs|data|profiles|benchmarks|notebooks)/[\w./-]*[\w/])`", README
    )
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists() or path.startswith(("data/demo", "results/runs/")), path
    notebooks = set(re.findall(r"`(\d\d_\w+)`", README))
    files = set(re.findall(r"`([\w/]+\.py)`", README))
    assert len(notebooks) > 8 and len(files) > 5
    for name in notebooks:
        assert (ROOT / "notebooks" / f"{name}.ipynb").is_file(), name
    for name in files:
        assert (ROOT / name).is_file() or list(ROOT.glob(f"*/{name}")), name


def test_readme_map_names_every_module_and_notebook():
    table = README.split("## What is where")[1].split("## ")[0]
    modules = {p.name for p in (ROOT / "s2dlib").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules <= set(re.findall(r"`(\w+\.py)`", table))
    folders = {p.parent.name for p in (ROOT / "s2dlib").glob("*/*.py")}
    assert folders <= set(re.findall(r"`(\w+)/[\w.]*`", table))
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} <= set(
        re.findall(r"`(\d\d_\w+)`", table)
    )
