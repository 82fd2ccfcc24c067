"""Notebooks run with checked parameters, in this very interpreter, and failures are loud."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from s2dlib.run import parse_value, run_notebook

REPO = Path(__file__).resolve().parents[1]
CELL = "import json, os, pathlib, sys\npathlib.Path(out).write_text(json.dumps({}))"
FACTS = CELL.format(
    "dict(variant=variant, exe=sys.prefix, cwd=os.getcwd(), command=os.environ['S2D_COMMAND'])"
)


@pytest.fixture
def write(tmp_path):
    def write(code, name="work/nb.ipynb"):
        nb = nbformat.v4.new_notebook()
        cell = nbformat.v4.new_code_cell("variant: str = 'a0'  # a row\nout: str = 'facts.json'")
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
    assert facts["command"] == "python -m s2dlib.run work/nb.ipynb new/out.ipynb -p variant b2"
    assert "S2D_COMMAND" not in os.environ


def test_a_misspelt_parameter_is_refused_in_one_line_that_names_the_known_ones(write, tmp_path):
    notebook = write(FACTS)
    command = [sys.executable, "-m", "s2dlib.run", notebook, tmp_path / "o.ipynb"]
    done = subprocess.run(
        [*command, "-p", "varient", "b2"], cwd=REPO, capture_output=True, text=True, check=False
    )
    expected = "error: nb.ipynb has no parameter varient; its parameters are variant, out"
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
    command = [sys.executable, "-m", "s2dlib.run", notebook, tmp_path / "o.ipynb"]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((notebook.parent / "facts.json").read_text())["exe"] == sys.prefix


@pytest.mark.parametrize(
    "text, value",
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("null", None), ("a0", "a0"), ("[1, 2]", [1, 2])],
)
def test_values_are_read_as_yaml(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)
