"""Notebooks run with checked parameters, in this very interpreter, and failures are loud."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
import pytest

from s2dlib.apps.run import parse_value, reserve_gpu, run_notebook, visible_gpus

REPO = Path(__file__).resolve().parents[1]
CELL = "import json, os, pathlib, sys\npathlib.Path(out).write_text(json.dumps({}))"
FACTS = CELL.format(
    "dict(variant=variant, exe=sys.prefix, cwd=os.getcwd(), command=os.environ['S2D_COMMAND'])"
)


@pytest.fixture
def write(tmp_path):
    def write(code, name="work/nb.ipynb"):
        nb = nbformat.v4.new_notebook()
        lines = "variant: str = 'a0'  # a row\nout: str = 'facts.json'\nprocesses: int = 1"
        cell = nbformat.v4.new_code_cell(lines)
        cell.metadata["tags"] = ["parameters"]
        nb.cells = [cell, nbformat.v4.new_code_cell(code)]
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nb, path)
        return path

    return write


def test_parameters_reach_the_notebook_which_runs_in_its_own_folder(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("S2D_COMMAND", raising=False)
    notebook = write(FACTS)
    output = run_notebook(notebook, tmp_path / "new" / "out.ipynb", {"variant": "b2"})
    facts = json.loads((notebook.parent / "facts.json").read_text())
    assert output.is_file() and facts["variant"] == "b2"
    assert Path(facts["cwd"]) == notebook.parent and facts["exe"] == sys.prefix
    assert facts["command"] == "s2d run work/nb.ipynb new/out.ipynb -p variant b2"
    assert "S2D_COMMAND" not in os.environ


def test_a_misspelt_parameter_is_refused_in_one_line_that_names_the_known_ones(write, tmp_path):
    notebook = write(FACTS)
    command = [sys.executable, "-m", "s2dlib", "run", notebook, tmp_path / "o.ipynb"]
    done = subprocess.run(
        [*command, "-p", "varient", "b2"], cwd=REPO, capture_output=True, text=True, check=False
    )
    expected = (
        "error: nb.ipynb has no parameter varient; its parameters are variant, out, processes"
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, expected)
    assert not (tmp_path / "o.ipynb").exists()


def test_a_failing_cell_raises_and_leaves_the_executed_copy(write, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="no such row b9"):
        run_notebook(write("raise ValueError('no such row b9')"), tmp_path / "o.ipynb", {})
    assert "no such row b9" in (tmp_path / "o.ipynb").read_text()


def test_a_killed_kernel_raises(write, tmp_path):
    with pytest.raises(Exception, match="(?i)kernel died"):
        run_notebook(write("import os; os.kill(os.getpid(), 9)"), tmp_path / "o.ipynb", {})


def test_another_python3_kernel_in_the_home_and_a_bare_path_do_not_matter(write, tmp_path):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = ["/bin/false", "{connection_file}"]
    spec = {"argv": argv, "display_name": "another", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "JUPYTER_PATH")}
    env |= {"PATH": "/usr/bin:/bin", "JUPYTER_PREFER_ENV_PATH": "0"}
    env |= {"JUPYTER_DATA_DIR": str(tmp_path / "jupyter")}
    notebook = write(FACTS)
    command = [sys.executable, "-m", "s2dlib", "run", notebook, tmp_path / "o.ipynb"]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((notebook.parent / "facts.json").read_text())["exe"] == sys.prefix


HOLD = """
import sys, time
from s2dlib.apps.run import reserve_gpu
with reserve_gpu() as gpu:
    print(gpu["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def own_temp(tmp_path, monkeypatch):
    """No reservations but those of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_runs_side_by_side_reserve_different_gpus_and_a_killed_one_frees_its(own_temp, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=REPO, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline().split() == ["3", "False"]  # and torch is not imported
            with reserve_gpu() as second, reserve_gpu() as third, reserve_gpu() as fourth:
                assert second == {"CUDA_VISIBLE_DEVICES": "5"}
                assert [third, fourth] == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "35"]
        finally:
            holder.kill()
    with reserve_gpu() as next_one, reserve_gpu() as after:
        assert (next_one, after) == tuple({"CUDA_VISIBLE_DEVICES": gpu} for gpu in "35")


@pytest.mark.parametrize("listed", ["", "-1", "2", "GPU-8932f937", "4,-1,5"])
def test_a_single_gpu_or_none_is_left_as_it_is(listed, own_temp, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with reserve_gpu() as first, reserve_gpu() as second:
        assert first == second == {}
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_gpus_are_counted_where_none_are_listed(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    nodes = []
    monkeypatch.setattr(Path, "glob", lambda path, pattern: nodes)
    assert visible_gpus() == []
    nodes += [Path("/dev/nvidia0"), Path("/dev/nvidia1"), Path("/dev/nvidia2")]
    assert visible_gpus() == ["0", "1", "2"]


ASKS = "\n# device = 'cuda' if torch.cuda.is_available() else 'cpu'"


@pytest.mark.parametrize(
    ("parameters", "more", "seen"),
    [({}, ASKS, "3"), ({"processes": 2}, ASKS, "3,5"), ({}, "", "3,5")],
)
def test_a_notebook_that_asks_for_a_gpu_sees_one_and_for_several_processes_all(
    parameters, more, seen, write, own_temp, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    notebook = write(CELL.format("os.environ['CUDA_VISIBLE_DEVICES']") + more)
    run_notebook(notebook, tmp_path / "o.ipynb", parameters)
    assert json.loads((notebook.parent / "facts.json").read_text()) == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.mark.parametrize(
    "text, value",
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("null", None), ("a0", "a0"), ("[1, 2]", [1, 2])],
)
def test_values_are_read_as_yaml(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)
