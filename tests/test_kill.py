"""A run that is killed again and again, at any moment, ends like one that was not.

S2D_KILLS=50 pytest tests/test_kill.py -s   # more kills than the five of every test run
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import MODEL, TRAIN, same

from s2dlib.data.dataset import VideoDataset
from s2dlib.data.synthetic import write_dataset
from s2dlib.model import build_model
from s2dlib.presets import PRESETS
from s2dlib.training.loop import fit

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("S2D_KILLS", 5))
# Half of the time goes into checkpoints, so that many a kill falls into the writing of one.
CONFIG = replace(TRAIN, epochs=5, checkpoint_steps=1, keep_every=2, theta_source="random")


def train(csv: str, run: Path, start: int) -> None:
    """A whole run, or what is left of it; it must not live on the seed of its process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(replace(MODEL, n_classes=20))
    torch.manual_seed(start)
    data = replace(PRESETS["synthetic"].data, csv=csv, cache=f"{csv}.cache", n_clips=12, crop=24)
    sets = VideoDataset(data, "train", train=True), VideoDataset(data, "val", train=False)
    fit(model, *sets, CONFIG, run_dir=run, seed=7)


def started(*arguments: object) -> multiprocessing.Process:
    """train in a process of its own, forked from one that has imported all that it needs.

    The last two are imported when they are used first, which takes longer than the training.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["s2dlib.training.loop", "s2dlib.data.synthetic", "pandas", "torch._dynamo"]
    )
    process = context.Process(target=train, args=arguments)
    process.start()
    return process


def test_killed_run_ends_like_a_whole_one(tmp_path):
    csv = str(write_dataset(tmp_path / "clips", share=0.001))
    for name in ("first", "whole"):  # the first one's time holds the imports
        begin, process = time.monotonic(), started(csv, tmp_path / name, 0)
        process.join()
        assert process.exitcode == 0
    seconds, moments = time.monotonic() - begin, random.Random(KILLS)
    kills = in_writing = runs = resumed = 0
    while kills < KILLS:
        runs, run, ended = runs + 1, tmp_path / f"run{runs}", False
        while not ended:
            process = started(csv, run, runs + kills)
            # Not all at once: what a kill leaves is then killed, too.
            process.join(moments.uniform(0, 0.6 * seconds) if kills < KILLS else None)
            if process.exitcode is None:
                process.kill()
                process.join()
            ended = process.exitcode == 0
            if not ended:
                assert process.exitcode == -signal.SIGKILL
                kills += 1
                in_writing += (run / "checkpoints" / "partial").exists()
                resumed += any(run.glob("checkpoints/epoch-*"))
        same(run, tmp_path / "whole")
    print(f"\n{kills} kills of {runs} runs of {seconds:.1f} s: ", end="")
    print(f"{resumed} after a first checkpoint, {in_writing} while one was being written")
    assert resumed
