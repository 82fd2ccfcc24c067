"""Videos a second of `s2d predict FOLDER`, beside its reader alone and its network alone.

    python benchmarks/predicting.py --batches 1 4                       # a CPU, minutes
    python benchmarks/predicting.py --preset videos --videos FOLDER     # of random weights

The three take turns, each over the same videos. `of_slower` is both together over the slower one
alone; the goal is 0.8. On a CPU reader and network share the cores: where each alone keeps all of
them busy, no program reaches more than `in_turn`, the one after the other. `cpu_*` are seconds of
all cores a video, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from s2dlib.apps.predict import find_videos, predictions
from s2dlib.data.clips import load_views
from s2dlib.data.loader import pad
from s2dlib.data.readers import read_ahead
from s2dlib.data.synthetic import write_dataset
from s2dlib.model import S2DNet, build_model
from s2dlib.presets import PRESETS
from s2dlib.report.records import provenance
from s2dlib.report.tables import as_text, write_measured


def untrained(preset: str) -> S2DNet:
    """A model that predicts at a preset's sizes."""
    model = build_model(preset).eval()
    data = asdict(replace(PRESETS[preset].data, csv="", cache=None))
    classes = [str(n) for n in range(model.config.n_classes)]
    model.record = {"data": data, "classes": classes}
    return model


@torch.no_grad()
def compute(model: S2DNet, clips: Sequence[Tensor], n: int, batch_size: int, device: str) -> None:
    """The network alone, on n videos of which some clips are in memory."""
    videos = itertools.islice(itertools.cycle(clips), n)
    while batch := list(itertools.islice(videos, batch_size)):
        model(*pad(batch, device)).scores.cpu()


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(os.times()[:4])


def measure(parts: dict[str, Callable[[], object]], n: int, rounds: int) -> dict[str, float]:
    """Medians of videos a second and CPU seconds a video, in turns; the first round warms up."""
    found: dict[str, list[float]] = {}
    for i, (name, part) in itertools.product(range(rounds + 1), parts.items()):
        start, before = time.perf_counter(), cpu_seconds()
        part()
        if i > 0:
            found.setdefault(name, []).append(n / (time.perf_counter() - start))
            found.setdefault(f"cpu_{name}", []).append((cpu_seconds() - before) / n)
    return {name: statistics.median(values) for name, values in found.items()}


def compare(
    model: S2DNet, paths: list[Path], workers: int, batch_size: int, rounds: int
) -> dict[str, float]:
    """A row of the table."""
    device, n = "cuda" if torch.cuda.is_available() else "cpu", len(paths)
    read, run_out = partial(load_views, config=model.data), deque[object](maxlen=0).extend
    clips, ahead = list(map(read, paths[:8])), workers + batch_size
    model.to(device)
    if device != "cpu":
        clips = [clip.pin_memory() for clip in clips]
    parts = {
        "reader": lambda: run_out(read_ahead(read, paths, workers, ahead)),
        "network": lambda: compute(model, clips, n, batch_size, device),
        "together": lambda: run_out(
            predictions(model, paths, device=device, workers=workers, batch_size=batch_size)
        ),
    }
    rates = measure(parts, n, rounds)
    slower = min(rates["reader"], rates["network"])
    in_turn = 1 / (1 / rates["reader"] + 1 / rates["network"])
    shares = {"of_slower": rates["together"] / slower, "in_turn": in_turn / slower}
    return {"workers": workers, "batch": batch_size} | rates | shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--videos", type=Path, help="a folder; without it synthetic ones are drawn")
    add("--checkpoint", default="results/models/synthetic", help="the model")
    add("--preset", choices=PRESETS, help="a model of random weights instead")
    add("--n", type=int, default=64, help="videos at most")
    add("--workers", type=int, nargs="+", default=[1])
    add("--batches", type=int, nargs="+", default=[1])
    add("--threads", type=int, default=torch.get_num_threads(), help="of the network on a CPU")
    add("--rounds", type=int, default=3)
    add("--out", type=Path, help="stem of the files written; without it nothing is")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.preset:
        model = untrained(given.preset)
    else:
        model = S2DNet.from_pretrained(given.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        if given.videos is None:
            write_dataset(Path(folder, "videos"), share=0.02)
        paths = find_videos([given.videos or folder])[: given.n]
        pairs = itertools.product(given.workers, given.batches)
        table = pd.DataFrame(compare(model, paths, *pair, given.rounds) for pair in pairs)
    print(as_text(table.round(3)).to_string(index=False))
    if given.out:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        data = f"{len(paths)} videos of {given.videos or 'synthetic'}"
        write_measured(table, given.out, provenance(None, device, 0, data))


if __name__ == "__main__":
    main()
