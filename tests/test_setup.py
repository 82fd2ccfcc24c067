"""The set-up: one list of dependencies, one lock, and a graph of runs that holds all of Table 2."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from s2dlib.presets import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
NAMED = {"torch", "torchvision", "jupyterlab", "papermill", "matplotlib", "seaborn", "pandas"}
PLATFORMS = [("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")]


@pytest.fixture
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("system,machine", PLATFORMS)
def test_every_named_package_and_one_decord_is_asked_for_on_each_platform(project, system, machine):
    here = {"platform_system": system, "platform_machine": machine}
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    requirements = [Requirement(text) for text in asked]
    names = [r.name for r in requirements if r.marker is None or r.marker.evaluate(here)]
    assert set(names) >= NAMED
    assert len({"decord", "decord2"} & set(names)) == 1


def test_the_environment_file_asks_for_the_package_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [re.split("[<>=]", name)[0] for name in conda] == ["python", "pip"]
    assert pip == {"pip": ["-e .[dev]"]}


def test_the_lock_pins_what_the_project_asks_for(project):
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in lines)
    pins = {canonicalize_name(name): version for name, version in (p.split("==") for p in lines)}
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate():
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_graph_trains_every_row_of_table_2_after_the_networks_it_starts_from(tmp_path):
    for name in ("Snakefile", "s2dlib", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shown = ["00_data", "01_detail_sampler", "03_cost", "04_table2", "05_figure4", "06_tables"]
    committed = [f"results/notebooks/{name}.ipynb" for name in shown]
    committed += [f"results/runs/synthetic-{row}-0/metrics.json" for row in VARIANTS]
    for path in committed:  # what a clone brings along is no reason to run nothing
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--cores", "2"]
    command += ["--config", "results=results"]  # where the reference is renewed
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, HOME="/nowhere")
    )
    assert done.returncode == 0, done.stderr
    planned = done.stdout + done.stderr
    for row in VARIANTS:
        for seed in range(3 if row in ("a0", "a1", "a2") else 1):
            name = f"-p name synthetic-{row}-{seed} -p seed {seed} -p variant {row}"
            commands = [line for line in planned.splitlines() if name in line]
            assert commands, name
            assert (f"snet_from ../results/runs/synthetic-snet-{seed}/" in commands[0]) == (
                row != "a2"
            )
            assert (f"dnet_from ../results/runs/synthetic-zoom-{seed}/" in commands[0]) == (
                row != "a1"
            )


@pytest.mark.parametrize("gpu", [False, True])
def test_kernels_are_skipped_where_triton_can_neither_run_nor_interpret_them(
    gpu, monkeypatch, request
):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    monkeypatch.setattr(np, "__version__", "2.4.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if gpu:
        request.getfixturevalue("triton_kernels")
    else:
        with pytest.raises(pytest.skip.Exception, match="3.6.0 cannot .* numpy 2.4.1, and no GPU"):
            request.getfixturevalue("triton_kernels")
