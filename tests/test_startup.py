"""Start-up: nothing is imported before it is used, by sys.modules and by CPU time.

Times are CPU seconds of a process and its children, as ratios to those of importing torch: a busy
machine makes both longer, and only ever longer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import s2dlib
from s2dlib.apps.cli import COMMANDS
from s2dlib.data.synthetic import DATASETS, write_clip

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "results" / "models" / "synthetic"
# torchvision brings torch._dynamo, seaborn brings scipy.stats, papermill a grammar of addresses
HEAVY = {"torchvision", "torch._dynamo", "sympy", "seaborn", "scipy", "papermill", "jsonschema"}
PICTURES = {"matplotlib", "PIL", "IPython"}
TRIES = 3


def run(code: str, *arguments: str | Path) -> tuple[float, set[str]]:
    """CPU seconds of a process that runs some code, and the modules that it ends with."""
    code = f"{code}\nimport json, sys\njson.dump(list(sys.modules), sys.stderr)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        told = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, told
    return usage.ru_utime + usage.ru_stime, set(json.loads(told.splitlines()[-1]))


@pytest.fixture(scope="module")
def torch_seconds():
    """CPU seconds of importing torch, of a process with nothing else."""
    return run("import torch")[0]


def check_ratio(seconds, torch_seconds, limit):
    """The best of some tries: seconds() measures one."""
    ratios = []
    while not ratios or (min(ratios) > limit and len(ratios) < TRIES):
        ratios.append(seconds() / torch_seconds)
    assert min(ratios) <= limit, ratios


@pytest.mark.slow
def test_the_package_and_the_help_of_a_command_take_a_tenth_of_torch(torch_seconds):
    """Measured: 0.04 and 0.08 s, where torch takes 2.5."""
    check_ratio(lambda: run("import s2dlib")[0], torch_seconds, 0.1)
    command = "from s2dlib.apps.cli import parse\ntry: parse(['--help'])\nexcept SystemExit: pass"
    check_ratio(lambda: run(command)[0], torch_seconds, 0.1)


@pytest.mark.slow
def test_the_public_names_take_little_more_than_torch(torch_seconds):
    """Measured: 1.2 times torch; with torchvision it was 2.3."""

    def seconds():
        taken, modules = run("import s2dlib\nfor name in s2dlib.__all__: getattr(s2dlib, name)")
        assert not modules & (HEAVY | PICTURES | {"pandas"})
        return taken

    check_ratio(seconds, torch_seconds, 1.6)


@pytest.mark.slow
def test_a_prediction_without_pictures_takes_at_most_twice_as_long_as_torch(
    torch_seconds, tmp_path
):
    """Measured: 1.3 times torch, for two clips of 48 frames, reader and all; it was 3.5."""
    scene = next(iter(DATASETS["synthetic"].values()))
    for name in ("a", "b"):
        write_clip((tmp_path / "clips" / f"{name}.mp4", 0, scene, 0))
    code = "import sys\nfrom s2dlib.apps.cli import main\nassert main(sys.argv[1:]) == 0"
    given = ["predict", tmp_path / "clips", "--checkpoint", MODEL, "--out"]
    outputs = (tmp_path / f"out{n}" for n in range(TRIES))

    def seconds():
        out = next(outputs)
        taken, modules = run(code, *given, out)
        assert len((out / "predictions.csv").read_text().splitlines()) == 3
        assert not modules & (HEAVY | PICTURES | {"pandas"})
        return taken

    check_ratio(seconds, torch_seconds, 2)


def test_arguments_are_parsed_without_torch_and_pandas():
    lines = [[], *([name] for name in COMMANDS), ["index", "kinetics400"]]
    code = f"""
from s2dlib.apps.cli import main
for words in {lines}:
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0
"""
    assert not run(code)[1] & (HEAVY | PICTURES | {"torch", "pandas"})


def test_a_notebook_that_is_not_there_is_told_without_papermill():
    code = """
from s2dlib.apps.cli import main
try:
    main(["run", "no.ipynb", "out.ipynb"])
except SystemExit as end:
    assert "no such notebook" in end.code
"""
    assert not run(code)[1] & (HEAVY | PICTURES | {"torch", "pandas"})


@pytest.mark.slow
def test_no_module_imports_a_heavy_library_but_plots_which_draws_by_seaborn():
    package = Path(s2dlib.__file__).parent
    names = [".".join(p.relative_to(package.parent).with_suffix("").parts)
             for p in package.rglob("*.py") if not p.stem.startswith("__")]  # fmt: skip
    others = {"s2dlib.report.plots", "s2dlib.kernels.triton"}  # the latter comes with CUDA
    code = (
        f"import importlib\nfor name in {sorted({*names} - others)}: importlib.import_module(name)"
    )
    assert not run(code)[1] & HEAVY
