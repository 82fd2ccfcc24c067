"""Notebooks run with checked parameters, in this very interpreter, and failures are loud."""

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import pytest

from s2dlib.apps.cli import parse
from s2dlib.apps.run import (
    annotated_type,
    check_parameters,
    command_text,
    inspect_parameters,
    parse_parameters,
    parse_value,
    reserve_gpu,
    run_notebook,
    visible_gpus,
)
from s2dlib.data.files import folder_name

REPO = Path(__file__).resolve().parents[1]
CELL = "import json, os, pathlib, sys\npathlib.Path(out).write_text(json.dumps({}))"
FACTS = CELL.format(
    "dict(variant=variant, exe=sys.prefix, cwd=os.getcwd(), command=os.environ['S2D_COMMAND'])"
)


@pytest.fixture
def write(tmp_path):
    def write(code, name="own/nb.ipynb"):
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
    assert facts["command"] == "s2d run own/nb.ipynb new/out.ipynb -p variant b2"
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


DEEP = """
def fail(n):
    if not n:
        raise ValueError("no such row b9")
    fail(n - 1)
fail(20)
"""


def test_a_failing_cell_raises_and_leaves_the_executed_copy(write, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="no such row b9"):
        run_notebook(write("raise ValueError('no such row b9')"), tmp_path / "o.ipynb", {})
    assert "no such row b9" in (tmp_path / "o.ipynb").read_text()


def test_a_quiet_run_prints_nothing_but_the_end_of_its_error(write, tmp_path):
    for source, status, n_lines in (("print('loud')", 0, 0), (DEEP, 1, 22)):
        command = [sys.executable, "-m", "s2dlib", "run", "--quiet", write(source)]
        command.append(tmp_path / "o.ipynb")
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, "")
        lines = [s for s in done.stderr.splitlines() if "[IPKernelApp]" not in s]  # as it is ended
        assert len(lines) == n_lines, done.stderr
    assert "no such row b9" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"executed so far: {tmp_path / 'o.ipynb'}")


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
    [
        ("3", 3),
        ("010", 10),  # not octal
        ("[12:30, 0x10, 1_000]", ["12:30", "0x10", "1_000"]),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("a0", "a0"),
        ("{a: [1e-3]}", {"a": [1e-3]}),
    ],
)
def test_values_are_read_as_yaml(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


TYPED = {  # parameters of a notebook, and texts that fit
    "name: str = 'x'": [
        *("20241126", "0", "007", "2024_11_26", "2024-11-26", "12:30", "no", "null", "1e3", "~"),
        *(
            "",
            " ",
            "a: b",
            "[1",
            "{",
            "'quoted'",
            '"',
            "\\",
            "two\nlines",
            "größe",
            "true",
            "-1",
            "#",
        ),
        *(
            "$HOME `x` !",
            "<preset>",
            "0x10",
            ".5",
            "1_000",
            "...",
            "---",
            "*a",
            "&a",
            "%d",
            "\t",
            "-x",
            "--",
            "-p",
            "-h",
            "=",
            "-",
        ),
    ],
    "seed: int = 0": ["7", "-1", "12345678901234567890"],
    "lr: float = 0.1": ["1e-3", "60", "0.5", ".inf", "-2E+5"],
    "smoke: bool = False": ["true", "no", "False"],
    "rows: list = []": ["[]", "[a, 1, 1e-3, '1e-3', null, [x]]", "[007, '007', no, 'no', ü]"],
    "overrides: dict = {}": [
        "{}",
        "{epochs: 3, name: 'a, b', lr: 1.0e-05}",
        "{b: {a: 1}}",
        "{lr: '1e-3', b: 1e-3}",
    ],
    "anything = None": ["null", "3", "a0", "1e-3", "'1e-3'", "[1]", "true"],
}


@pytest.fixture
def typed(tmp_path):
    """A notebook with a parameter of each type."""
    cell = nbformat.v4.new_code_cell("\n".join(TYPED), metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[cell])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    nbformat.write(nb, tmp_path / "typed.ipynb")
    return tmp_path / "typed.ipynb"


@pytest.mark.parametrize("line", TYPED)
def test_a_value_is_that_of_its_type_and_the_recorded_command_gives_it_again(line, typed):
    name = line.split()[0].rstrip(":")
    for text in TYPED[line]:
        values = parse_parameters(typed, [(name, text)])
        assert line.startswith("name:") <= (values == {name: text})
        known = inspect_parameters(typed)
        check_parameters(typed, values, known)
        pasted = shlex.split(command_text(typed, typed, values, known))[1:]
        again = parse_parameters(typed, parse(pasted).p)
        assert again == values and list(map(type, again.values())) == [type(values[name])]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("seed", "1.5", "parameter seed: expected int, got 1.5"),
        ("seed", "08", "parameter seed: expected int, got '08'"),
        ("seed", "", "parameter seed: expected int, got None"),
        ("seed", "true", "parameter seed: expected int, got True"),
        ("lr", "fast", "parameter lr: expected float, got 'fast'"),
        ("smoke", "1", "parameter smoke: expected bool, got 1"),
        ("rows", "a, b", "parameter rows: expected list, got 'a, b'"),
        ("rows", "[2024-11-26]", "parameter rows: expected text in UTF-8, numbers, and lists"),
        ("overrides", "[1]", r"parameter overrides: expected dict, got \[1\]"),
        ("overrides", "{", "parameter overrides: expected dict, '{' is no YAML"),
        ("overrides", "2024-13-45", "parameter overrides: expected dict, month must be"),
        ("name", "stra\udcdfe", "parameter name: expected text in UTF-8"),
    ],
)
def test_what_does_not_fit_is_told_before_the_kernel_starts(name, text, error, typed, tmp_path):
    with pytest.raises(ValueError, match=error):
        run_notebook(typed, tmp_path / "o.ipynb", parse_parameters(typed, [(name, text)]))
    for value in (None, 0, False):  # given in Python
        with pytest.raises(ValueError, match=f"name: expected str, got {value}"):
            run_notebook(typed, tmp_path / "o.ipynb", {"name": value})
    assert not (tmp_path / "o.ipynb").exists()


def test_texts_reach_the_notebook_as_they_were_typed(write, tmp_path):
    text = "007 'x' \"y\" \\n \\\\ {z} ü\n$HOME"
    notebook = write(FACTS, "own/{nb}.ipynb")
    run_notebook(notebook, tmp_path / "{o}.ipynb", parse_parameters(notebook, [("variant", text)]))
    facts = json.loads((notebook.parent / "facts.json").read_text())
    assert facts["variant"] == text and (tmp_path / "{o}.ipynb").is_file()
    pasted = shlex.split(facts["command"])[1:]
    assert parse_parameters(notebook, parse(pasted).p) == {"variant": text}
    run_notebook(notebook, tmp_path / "{o}.ipynb", {"variant": text})  # replaces its own copy


def test_every_parameter_of_the_notebooks_is_of_a_type_that_is_checked():
    for path in sorted((REPO / "notebooks").glob("*.ipynb")):
        known = inspect_parameters(path)
        assert known and all(annotated_type(name, known) for name in known), path.name


def test_a_run_has_the_name_that_was_typed():
    cells = nbformat.read(REPO / "notebooks" / "02_train.ipynb", as_version=4).cells
    lines = "\n".join(cell.source for cell in cells if cell.cell_type == "code").split("\n")
    code = "\n".join(line for line in lines if line.startswith(("name = ", "run_dir = ")))
    known = inspect_parameters(REPO / "notebooks" / "02_train.ipynb")
    names = {"preset": "videos", "variant": "a0", "seed": 0, "results": "r", "Path": Path}
    names |= {"folder_name": folder_name, "name": ast.literal_eval(known["name"]["default"])}

    def run_dir(**typed):
        exec(code, values := names | typed)
        return values["run_dir"]

    assert run_dir() == Path("r/runs/videos-a0-0")
    for name in ("20241126", "0", "no", "007"):
        assert run_dir(name=name) == Path("r/runs", name)
    for name in ("", "  ", "..", "a/b"):
        with pytest.raises(ValueError, match="expected the name of one folder"):
            run_dir(name=name)


@pytest.mark.parametrize(
    "name", ["own/nb.ipynb", "new/../own/nb.ipynb", "soft.ipynb", "hard.ipynb"]
)
def test_the_executed_copy_is_never_the_notebook_itself(name, write, tmp_path):
    notebook = write(FACTS)
    before = notebook.read_bytes()
    (tmp_path / "new").mkdir()
    (tmp_path / "soft.ipynb").symlink_to(notebook)
    (tmp_path / "hard.ipynb").hardlink_to(notebook)
    with pytest.raises(ValueError, match="is read here and would be replaced"):
        run_notebook(notebook, tmp_path / name, {})
    with pytest.raises(ValueError, match="is read here and would be replaced"):
        run_notebook(tmp_path / name, notebook, {})
    assert notebook.read_bytes() == before


def test_only_an_executed_copy_of_that_name_is_replaced(write, tmp_path):
    notebook, output = write("1 + 1"), tmp_path / "o.ipynb"
    other = write("2 + 2", "own/other.ipynb")
    copy = tmp_path / "mine.ipynb"
    for _ in range(2):
        run_notebook(notebook, output, {})
    copy.write_bytes(output.read_bytes())  # the start of one's own work
    for path in (other, copy):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="a file that this command did not make"):
            run_notebook(notebook, path, {})
        assert path.read_bytes() == before
    with pytest.raises(ValueError, match="-: expected a name that ends in .ipynb"):
        run_notebook(notebook, "-", {})
    with pytest.raises(ValueError, match="expected a path in UTF-8"):
        run_notebook(notebook, tmp_path / "stra\udcdfe.ipynb", {})


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_the_cells_so_far(write, tmp_path):
    notebook = write(
        "print('begun'); pathlib = __import__('pathlib')\n"
        "pathlib.Path('begun').touch(); __import__('time').sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "s2dlib", "run", notebook, tmp_path / "o.ipynb"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (notebook.parent / "begun").exists():
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "interrupted\n" in errors, errors
    assert len(nbformat.read(tmp_path / "o.ipynb", as_version=4).cells) >= 2
