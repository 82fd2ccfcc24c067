"""How much of a training's time is the network: the loop, a step alone, and the loader alone.

    python benchmarks/training.py                                   # a CPU, a minute
    python benchmarks/training.py --preset mini-kinetics --csv data/mini-kinetics/mini-kinetics.csv

Throughputs in clips per second, in turns, so that they see the same machine: train_epoch on clips
that lie in memory (`loop`), forward, backward and optimizer on one batch that lies on the device
(`step`), the loader alone on clips in memory (`feed`) and reading and cropping real videos
(`loader`, where there are any).
The goal on a GPU is loop / step >= 0.9 at the Mini-Kinetics setting; training is bound by the
loader where it is the smallest of the three.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from s2dlib.config import DataConfig, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import collate, load_batches
from s2dlib.data.synthetic import write_dataset
from s2dlib.losses import s2d_loss
from s2dlib.model import S2DNet, build_model
from s2dlib.presets import PRESETS, Preset
from s2dlib.report.records import provenance
from s2dlib.report.tables import write_measured
from s2dlib.training.epoch import TrainState, train_epoch
from s2dlib.training.launch import fit_in_processes
from s2dlib.training.optim import epoch_batches, make_optimizer, seed_everything


class InMemory(Dataset):
    """Clips of noise at a setting's sizes, as VideoDataset gives them, without reading any."""

    def __init__(self, data: DataConfig, n_clips: int, n_classes: int) -> None:
        size = (1 if data.gray else 3, data.n_frames, data.crop, data.crop)
        clips = torch.randint(256, (min(n_clips, 32), *size), dtype=torch.uint8)
        self.items = [
            {"frames": clips[i % len(clips)], "label": i % n_classes, "index": i}
            for i in range(n_clips)
        ]
        self.table = pd.DataFrame({"path": [f"clip {i}" for i in range(n_clips)]})
        self.n_crops, self.loader = 1, None

    def set_epoch(self, epoch: int) -> None:
        """Nothing to draw."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return self.items[index]


def clips_per_second(run: Callable[[], int], device: torch.device) -> float:
    """Time a run, which returns how many clips it took."""
    start = time.perf_counter()
    n = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return n / (time.perf_counter() - start)


def measure(
    model: S2DNet,
    data: DataConfig,
    config: TrainConfig,
    videos: VideoDataset | None,
    n_steps: int,
    n_rounds: int,
    device: torch.device,
) -> pd.DataFrame:
    """The throughputs, a row a round; the first round, which warms up, is left out."""
    n_clips, size = n_steps * config.batch_size, config.batch_size
    memory = InMemory(data, n_clips, model.config.n_classes)
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    one = collate([memory[i] for i in range(size)])
    one = {name: one[name].to(device) for name in ("frames", "n_frames", "label")}

    def loop() -> int:
        train_epoch(TrainState(model, optimizer, config, device=device), memory, 0)
        return n_clips

    def step() -> int:
        amp = config.amp and device.type == "cuda"
        for _ in range(n_steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                out = model(one["frames"], one["n_frames"])
            loss = s2d_loss(out, one["label"], config.alpha, config.masked)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return n_clips

    def read(clips: VideoDataset | InMemory) -> int:
        parts = epoch_batches(len(clips), size, 0, 0)[:n_steps]
        batches = load_batches(clips, steps=parts, workers=config.workers, device=device)
        return sum(len(batch["label"]) for batch in batches)

    runs = {"loop": loop, "step": step, "feed": partial(read, memory)}
    if videos is not None:
        runs["loader"] = partial(read, videos)
    rows = [
        {name: clips_per_second(run, device) for name, run in runs.items()}
        for _ in range(n_rounds + 1)
    ]
    return pd.DataFrame(rows[1:])


def by_processes(
    preset: Preset, config: TrainConfig, csv: str, counts: list[int], device: torch.device
) -> dict[str, float]:
    """Clips a second of whole trainings in several processes at one global batch (launch.py).

    Of the second epoch of three, which neither starts anything nor evaluates.
    """
    data = replace(preset.data, csv=csv, cache=None)
    config = replace(config, epochs=3, eval_every=3, warmup_epochs=0.0)
    found = {}
    for n in counts:
        sets = [VideoDataset(data, split, train=split == "train") for split in ("train", "val")]
        with tempfile.TemporaryDirectory() as folder:
            model = build_model(preset.model)
            history = fit_in_processes(
                model, *sets, config, run_dir=folder, device=device, processes=n
            )
        n_clips = len(sets[0]) // config.batch_size * config.batch_size
        found[f"loop, {n} processes"] = n_clips / history[1]["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="synthetic", choices=PRESETS)
    parser.add_argument("--recipe", default=None, help="of the preset; default: its last")
    parser.add_argument("--csv", help="videos for the loader; default: synthetic clips, if it is")
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[], help="train in so many")
    parser.add_argument("--out", help="stem of the files written; without it nothing is")
    parser.add_argument("--smoke", action="store_true", help="one round of two steps of two clips")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.rounds, args.batch_size = 2, 1, 2
    os.environ.setdefault("S2D_COMMAND", "")  # no progress bars
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[args.preset]
    config = preset.recipes[args.recipe or next(iter(reversed(preset.recipes)))]
    given = {"batch_size": args.batch_size, "workers": args.workers}
    config = replace(
        config, theta_source="model", **{k: v for k, v in given.items() if v is not None}
    )
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        videos, csv = None, args.csv
        if csv is None and args.preset == "synthetic":
            csv = str(write_dataset(Path(folder) / "clips", share=0.001 if args.smoke else 0.05))
        if csv is not None:
            videos = VideoDataset(replace(preset.data, csv=csv, cache=None), "train", train=True)
        model, data = build_model(preset.model), preset.data
        rounds = measure(model, data, config, videos, args.steps, args.rounds, device)
        scaling = by_processes(preset, config, csv, args.processes, device) if csv else {}
    row = {"preset": args.preset, "batch_size": config.batch_size, "workers": config.workers}
    row |= rounds.median().to_dict()
    row |= {"loop_of_step": (rounds["loop"] / rounds["step"]).median()} | scaling
    source = provenance(None, device, 0, csv if args.csv else args.preset)
    table = pd.DataFrame([row | {"rounds": args.rounds, "device": source["device"]}])
    print(table.T.to_string(header=False))
    if args.out:
        write_measured(table, args.out, source)


if __name__ == "__main__":
    main()
