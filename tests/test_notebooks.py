"""Every notebook keeps the contract of the house, and runs to its end on a few tiny clips."""

import ast
import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from s2dlib.apps.run import run_notebook
from s2dlib.data.classes import Row
from s2dlib.data.index import make_index, write_index
from s2dlib.data.table import read_csv

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALLOWED = {"s2dlib", "torch", "pandas", "matplotlib", "seaborn", *sys.stdlib_module_names}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@each_notebook
def test_notebook_format_ids_and_kernel(path):
    notebook = json.loads(path.read_text())
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


@each_notebook
def test_notebook_outputs_are_stripped(path):
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code_of(path))


@each_notebook
def test_notebook_parameters_are_in_the_first_cell(path):
    tags = [cell["metadata"].get("tags", []) for cell in code_of(path)]
    assert tags[0] == ["parameters"] and not any(tags[1:])
    lines = "".join(code_of(path)[0]["source"]).splitlines()
    assert all("  # " in line for line in lines)  # papermill --help-notebook prints them
    statements = ast.parse("\n".join(lines)).body
    assert all(isinstance(s, ast.AnnAssign) for s in statements)
    values = {s.target.id: ast.literal_eval(s.value) for s in statements}  # literals only
    assert values["smoke"] is False


@each_notebook
def test_notebook_cells_are_short_and_call_the_package_only(path):
    sources = ["".join(cell["source"]) for cell in code_of(path)]
    assert max(len(source.splitlines()) for source in sources[1:]) <= 12
    assert sum(len(source.splitlines()) for source in sources[1:]) <= 80
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]  # no magics
    banned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not [node for node in nodes if isinstance(node, banned)]
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= ALLOWED


@each_notebook
def test_notebook_code_follows_a_paragraph(path):
    kinds = [cell["cell_type"] for cell in json.loads(path.read_text())["cells"]]
    for before, kind in zip(["code", *kinds], kinds, strict=False):
        assert kind == "markdown" or before == "markdown"


@each_notebook
def test_notebook_with_a_device_names_torch_cuda(path):
    lines = [line for cell in code_of(path) for line in cell["source"]]
    chooses = any(line.startswith("device = ") for line in lines)
    assert chooses == ("torch.cuda" in path.read_text())


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the notebooks compute
PARAMETERS = {  # handed over beside smoke
    "00_data": ["csv", "results"],
    "01_detail_sampler": ["csv", "results"],
    "01_figure2": ["run", "results"],
    "02_train": ["csv", "results"],
    "03_cost": ["results"],
    "04_table2": ["runs", "results"],
    "05_figure4": ["run", "results"],
    "06_tables": ["runs", "run", "results"],
    "07_predict": ["video", "checkpoint", "out"],
    "08_inspector": ["runs", "csv"],
    "09_looking": ["runs", "csv", "results"],
    "10_latency": ["results"],
}
WRITTEN = {
    "00_data": ["tables/data_clips.md"],
    "01_detail_sampler": ["figures/detail-sampler.png"],
    "01_figure2": ["figures/figure2-synthetic.png"],
    "02_train": ["runs/synthetic-a0-0/metrics.json", "runs/synthetic-a0-0/config.json"],
    "03_cost": ["tables/cost.csv", "tables/cost-tables.md"],
    "04_table2": [
        "tables/table2.csv",
        "tables/table2-differences.md",
        "tables/table2-controls.md",
        "tables/parts-synthetic.md",
        "figures/table2.png",
    ],
    "05_figure4": ["figures/figure4-synthetic-0.png", "figures/where-synthetic.png"],
    "06_tables": ["tables/table1-ssv2.md", "tables/table4.csv", "figures/accuracy-cost.png"],
    "07_predict": ["predictions.csv", "00000.mp4.s2d.png", "00000.mp4.s2d.gif"],
    "08_inspector": [],
    "09_looking": [
        "figures/learning-synthetic.png",
        "figures/looking-synthetic.png",
        "tables/looking-size-synthetic.csv",
    ],
    "10_latency": [f"benchmarks/latency-{DEVICE}.csv", f"benchmarks/latency-{DEVICE}.json"],
}


@pytest.mark.slow
@each_notebook
def test_smoke_run_writes_its_files(path, csv, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run, results = str(runs / "synthetic-a0-0"), str(tmp_path / "results")
    values = {"csv": csv, "runs": str(runs), "run": run, "checkpoint": run}
    values |= {"video": str(Path(csv).parent / "test" / "00000.mp4")}
    values |= {"results": results, "out": results}
    parameters = {"smoke": True} | {name: values[name] for name in PARAMETERS[path.stem]}
    if path.stem == "08_inspector":  # takes several folders
        parameters["runs"] = [str(runs)]
    executed = run_notebook(path, tmp_path / "out.ipynb", parameters)
    outputs = [output for cell in code_of(executed) for output in cell["outputs"]]
    errors = ["".join(o["text"]) for o in outputs if o.get("name") == "stderr"]
    assert errors == []  # no warnings either
    for name in WRITTEN[path.stem]:
        file = tmp_path / "results" / name
        assert file.is_file(), f"{name} was not written"
        assert file.suffix != ".png" or file.stat().st_size < 200_000


@pytest.mark.slow
def test_00_data_tells_missing_and_bad_files(tmp_path, make_video):
    rows = []
    for i, split in enumerate(["train", "train", "val", "val"]):
        rows.append(Row((f"{i}.mp4",), "wave", split, f"a.txt, line {i}"))
        make_video(tmp_path / f"{i}.mp4", n_frames=12, size=(36, 48))
    rows.append(Row(("gone",), "wave", "val", "a.txt, line 4"))
    (tmp_path / "1.mp4").write_bytes(b"no video")
    csv = write_index(make_index(rows, tmp_path)[0], tmp_path, tmp_path / "mine.csv")
    parameters = {"preset": "mini-kinetics", "csv": str(csv), "results": str(tmp_path / "results")}
    executed = run_notebook(FOLDER / "00_data.ipynb", tmp_path / "out.ipynb", parameters)
    printed = "".join(
        "".join(o["text"]) for c in code_of(executed) for o in c["outputs"] if "text" in o
    )
    assert f"s2d prepare {csv} --preset mini-kinetics" in printed  # stride 2
    assert "val: 1 missing, as gone" in printed and "1.mp4: not a video" in printed
    checked = tmp_path / "mine.checked.csv"
    assert f"-p csv {checked} -p name mine-a0-0 -p test_split val" in printed.split("next: ")[1]
    assert [path[-5:] for path in read_csv(checked)["path"]] == ["0.mp4", "2.mp4", "3.mp4"]
    table = (tmp_path / "results" / "tables" / "data_mine.md").read_text()
    assert "| val | 2 | 1 | 1 | 2 | 2 | 12 |" in table.replace("12.0", "12")


@pytest.mark.slow
def test_02_train_in_two_processes(csv, tmp_path, monkeypatch):
    if torch.cuda.device_count() < 2:  # each needs a GPU of its own: both use the CPU instead
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parameters = {"smoke": True, "csv": csv, "results": str(tmp_path), "processes": 2}
    parameters |= {"name": "007"}
    executed = run_notebook(FOLDER / "02_train.ipynb", tmp_path / "out.ipynb", parameters)
    outputs = [output for cell in code_of(executed) for output in cell["outputs"]]
    assert "epoch 1/1  loss" in "".join("".join(o.get("text", [])) for o in outputs)
    record = json.loads((tmp_path / "runs" / "007" / "config.json").read_text())
    assert record["provenance"]["processes"] == 2
