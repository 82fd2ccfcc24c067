"""Checkpoints: whole or absent; what is kept; what happens when the disk does not play along."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from dataclasses import replace

import pytest
import torch
from test_train import MODEL, TRAIN, data, model_of, same, sets  # noqa: F401 (fixtures)

from s2dlib.training.checkpoints import (
    newest_checkpoint,
    only_writer,
    random_state,
    save_checkpoint,
    set_random_state,
)
from s2dlib.training.loop import fit
from s2dlib.training.optim import make_optimizer

# Two epochs of four steps; dropout and windows at random, so that the generators' state counts.
CONFIG = replace(TRAIN, batch_size=2, checkpoint_steps=3, theta_source="random")


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def whole(sets, tmp_path):  # noqa: F811
    """A run that nothing interrupted; of its checkpoints, one lies within the last epoch."""
    fit(model_of(), *sets, CONFIG, run_dir=tmp_path / "whole")
    assert names(tmp_path / "whole") == [
        "best",
        "epoch-0001",
        "epoch-0001-step-000003",
        "epoch-0002",
    ]
    return tmp_path / "whole"


def interrupted(whole, run):
    """The same run as if its process had died before the last checkpoint."""
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "epoch-0002")
    (run / "model.safetensors").unlink()
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_within_an_epoch(workers, sets, whole, tmp_path):  # noqa: F811
    run = interrupted(whole, tmp_path / "run")
    torch.manual_seed(99)
    fit(model_of(seed=5), *sets, replace(CONFIG, workers=workers), run_dir=run)
    same(run, whole)


def flip_a_bit(folder):
    file = folder / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(folder):
    os.truncate(folder / "model.safetensors", 1000)


def lose_a_file(folder):
    (folder / "state.pt").unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lose_a_file])
def test_checkpoint_damaged_falls_back_to_the_one_before(
    damage, sets, whole, tmp_path, caplog  # noqa: F811
):  # fmt: skip
    run = interrupted(whole, tmp_path / "run")
    damage(run / "checkpoints" / "epoch-0001-step-000003")
    with caplog.at_level(logging.WARNING):
        fit(model_of(seed=5), *sets, CONFIG, run_dir=run)
    assert "epoch-0001-step-000003 is damaged" in caplog.text and "epoch-0001\n" in caplog.text
    assert "damaged-epoch-0001-step-000003" in names(run)
    same(run, whole)


def test_checkpoints_all_damaged_is_an_error(sets, whole, tmp_path):  # noqa: F811
    run = interrupted(whole, tmp_path / "run")
    for folder in run.glob("checkpoints/epoch-*"):
        flip_a_bit(folder)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no whole checkpoint.*is not what was written"):
            fit(model_of(), *sets, CONFIG, run_dir=run)


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
def test_checkpoint_on_a_full_disk_leaves_the_one_before(file, sets, whole, tmp_path):  # noqa: F811
    run = interrupted(whole, tmp_path / "run")
    room = (run / "checkpoints" / "epoch-0001" / file).stat().st_size // 2
    before, limits = names(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # writes fail beyond these bytes
    try:
        with pytest.raises(OSError, match="epoch-0001-step-000003 is good.*make room"):
            fit(model_of(), *sets, CONFIG, run_dir=run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(run) == before
    fit(model_of(seed=5), *sets, CONFIG, run_dir=run)
    same(run, whole)


def test_a_folder_that_cannot_be_written_is_named(sets, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="cannot write this checkpoint.*there is none before it"):
        fit(model_of(), *sets, CONFIG, run_dir=run)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(sets, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints").chmod(0o500)
    with pytest.raises(OSError, match="cannot write this checkpoint.*make the folder writable"):
        fit(model_of(), *sets, CONFIG, run_dir=run)


def test_checkpoints_kept_are_last_two_best_and_every_nth(tmp_path):
    model = model_of()
    optimizer, history = make_optimizer(model, CONFIG), []
    for epoch, top1 in enumerate((10, 40, 20, 40, 30, 20, 10), start=1):
        history.append({"epoch": epoch, "val_top1": top1})
        save_checkpoint(tmp_path, model, optimizer, history, keep_every=3)
    kept = ["epoch-0002", "epoch-0003", "epoch-0006", "epoch-0007"]
    assert names(tmp_path) == ["best", *kept]
    assert (tmp_path / "checkpoints" / "best").resolve().name == "epoch-0002"
    for step in (5, 10, 15):
        begun = {"step": step, "ranks": [], "seconds": 0.0}
        save_checkpoint(tmp_path, model, optimizer, history, begun, keep_every=3)
    steps = ["epoch-0007-step-000010", "epoch-0007-step-000015"]
    assert names(tmp_path) == ["best", *kept[:3], *steps]
    assert newest_checkpoint(tmp_path).name == steps[-1]


def test_resume_with_other_workers_and_checkpoint_steps(sets, whole, tmp_path):  # noqa: F811
    run = interrupted(whole, tmp_path / "run")
    other = replace(CONFIG, checkpoint_steps=0, keep_every=1, workers=1)
    fit(model_of(), *sets, other, run_dir=run)
    same(run, whole)


def test_two_processes_never_write_one_run(sets, tmp_path):  # noqa: F811
    with only_writer(tmp_path / "run"), pytest.raises(RuntimeError, match="another process"):
        fit(model_of(), *sets, CONFIG, run_dir=tmp_path / "run")


def test_random_state_restores_every_generator():
    import random

    import numpy as np

    def draws():
        return random.random(), np.random.normal(), torch.rand(()).item()

    np.random.normal()  # one of a pair is kept for the next call
    state = random_state(torch.device("cpu"))
    first = draws()
    assert draws() != first
    set_random_state(state, torch.device("cpu"))
    assert draws() == first
