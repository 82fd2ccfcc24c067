"""Two processes learn what one does: the same clips, the same batch statistics, the same losses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from test_train import MODEL, TRAIN, same
from torch.testing import assert_close

from s2dlib.data.dataset import VideoDataset
from s2dlib.data.synthetic import write_dataset
from s2dlib.model import build_model
from s2dlib.presets import PRESETS
from s2dlib.training.distributed import shard
from s2dlib.training.launch import fit_in_processes
from s2dlib.training.loop import fit


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    return str(write_dataset(tmp_path_factory.mktemp("clips") / "clips", share=0.001))


def sets_of(csv):
    """Thirteen clips, so that two processes have unequal shares when they evaluate."""
    data = replace(PRESETS["synthetic"].data, csv=csv, cache=f"{csv}.cache", n_clips=13, crop=24)
    return VideoDataset(data, "train", train=True), VideoDataset(data, "val", train=False)


def trained(csv, run, config, processes, dropout=0.0):
    """Without dropout, which each process draws for itself, one and two can be compared."""
    torch.manual_seed(0)
    model = build_model(replace(MODEL, n_classes=20, dropout=dropout))
    several = partial(fit_in_processes, processes=processes)
    train = several if processes > 1 else fit
    history = train(model, *sets_of(csv), config, run_dir=run, seed=3)
    return model, pd.DataFrame(history).drop(columns="seconds")


@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_shards_are_disjoint_whole_and_differ_by_one(n):
    parts = [shard(range(n), i, 3) for i in range(3)]
    assert sum(map(list, parts), []) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 13, "accumulate": 2},  # parts of 6 and 7, shares of 3 and 4
        {"theta_source": "frozen", "alpha": 0.3},  # f_theta gets no gradient
    ],
)
def test_two_processes_equal_one(changes, csv, tmp_path):
    # AdamW divides by tiny gradients, whose rounding would then show in the weights.
    config = replace(TRAIN, optimizer="sgd", **changes)
    one, alone = trained(csv, tmp_path / "one", config, 1)
    two, shared = trained(csv, tmp_path / "two", config, 2)
    pd.testing.assert_frame_equal(alone, shared, rtol=1e-5, atol=1e-5, check_dtype=False)
    for name, weights in two.state_dict().items():
        assert_close(weights, one.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_resume_within_an_epoch(csv, tmp_path):
    config = replace(TRAIN, epochs=1, checkpoint_steps=2, theta_source="random")  # three steps
    whole, run = tmp_path / "whole", tmp_path / "run"
    _, history = trained(csv, whole, config, 2, dropout=0.5)
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "epoch-0001")
    trained(csv, run, config, 2, dropout=0.5)
    same(run, whole)
    # A machine with one processor goes on, too, though its dropout is another.
    shutil.rmtree(run / "checkpoints" / "epoch-0001")
    _, alone = trained(csv, run, config, 1, dropout=0.5)
    assert alone.train_loss[0] == pytest.approx(history.train_loss[0], rel=0.2)
    assert alone.train_loss[0] != history.train_loss[0]


@pytest.mark.slow
def test_two_processes_name_an_error(csv, tmp_path):
    torch.manual_seed(0)
    model, (train_set, val_set) = build_model(replace(MODEL, n_classes=20)), sets_of(csv)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    with pytest.raises(RuntimeError, match="in 2 processes failed: error: .*cannot write this"):
        fit_in_processes(model, train_set, val_set, TRAIN, run_dir=tmp_path / "run", processes=2)


def test_shard_without_a_clip_is_refused(csv, tmp_path):
    model, sets = build_model(replace(MODEL, n_classes=20)), sets_of(csv)
    few = replace(TRAIN, accumulate=2)
    with pytest.raises(ValueError, match="in accumulate=2 parts over 3 processes"):
        fit_in_processes(model, *sets, few, run_dir=tmp_path / "run", processes=3)
