"""The command s2d: help that can be acted on, errors in one line, nothing imported in vain."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from s2dlib.apps.cli import COMMANDS, main, parse

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "pandas", "numpy", "papermill", "matplotlib", "ipywidgets"]
HELP = f"""
import sys
from s2dlib.apps.cli import main
try:
    main(["--help"])
finally:
    sys.exit(",".join(sys.modules.keys() & {set(HEAVY)}))
"""


def test_help_names_every_command_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "")  # an empty list of modules
    assert all(f"    {name}" in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as end:
        parse([name, "--help"])
    example = capsys.readouterr().out.strip().splitlines()[-1].strip()
    assert end.value.code == 0 and example.startswith(f"s2d {name} ")
    assert parse(shlex.split(example)[1:]).command == name


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("run no.ipynb out.ipynb", "error: no.ipynb: no such notebook"),
        ("run no.ipynb out.ipynb -p x {", "error: no.ipynb: no such notebook"),
        ("inspect", "error: notebooks/08_inspector.ipynb: no such notebook"),
        ("predict no.mp4 --checkpoint no", "error: no.mp4: no such file"),
        ("index folders --videos no --out x.csv", "error: [Errno 2] No such file"),
    ],
)
def test_what_is_expected_to_fail_is_one_line(words, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code.startswith(error) and "\n" not in end.value.code


def test_inspect_opens_jupyterlab_on_the_inspector(monkeypatch):
    called = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("os.execve", lambda *words: called.append(words))
    assert main(["inspect", "--", "--no-browser"]) == 0
    ((program, command, environment),) = called
    assert program == sys.executable and environment["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert command[1:] == ["-m", "jupyterlab", "notebooks/08_inspector.ipynb", "--no-browser"]


def test_synthetic_writes_a_share_of_the_videos_and_prints_the_index(tmp_path, capsys):
    for _ in range(2):  # the second time over its own
        assert main(["synthetic", "--share", "0.001", "--out", str(tmp_path / "some")]) == 0
    out, errors = capsys.readouterr()
    assert out.split() == [str(tmp_path / "some" / "some.csv")] * 2
    assert errors == ""  # no bar where there is no terminal
    assert len(list(tmp_path.rglob("*.mp4"))) == 80  # each class once in each split


def test_synthetic_replaces_its_own_index_and_no_other_one(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.csv").write_text("path,label,split\na.mp4,0,train\n")
    with pytest.raises(SystemExit, match="mine.csv: a file that this command did not make"):
        main(["synthetic", "--share", "0.001", "--out", str(tmp_path / "mine")])
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["mine.csv"]
