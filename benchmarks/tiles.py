"""Which tiles the CUDA kernels of the detail sampler should use: every choice timed, best first.

    python benchmarks/tiles.py --out results/benchmarks/tiles-cuda      # a GPU: some minutes

The first row of a precision says what belongs into TILES and REGISTERS of kernels/triton.py. ieee
and tf32x3 are float32; tf32 is used where torch.set_float32_matmul_precision allows it. Kernels are
compiled by all cores first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pandas as pd
import torch
from sampler import SIDE, SIZE, ZOOMS, centres, make_theta
from torch import Tensor

from s2dlib.kernels import triton
from s2dlib.report import records, tables
from s2dlib.report.cost import milliseconds

CHOICES = {
    "TILE_J": (16, 32),
    "TILE_I": (16, 32, 64),
    "BLOCK_Y": (16,),
    "BLOCK_X": (32,),
    "num_warps": (2, 4),
    "maxnreg": (128, 168, 255),
}
PRECISIONS = {"ieee": "highest", "tf32x3": "highest", "tf32": "high"}


def time_tiles(
    tiles: dict[str, int], precision: str, clips: dict[str, tuple[Tensor, ...]], n_runs: int
) -> dict[str, float | None]:
    """Median milliseconds of forward and of backward at each zoom; None where it does not fit."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    triton.TILES.update({name: tiles[name] for name in triton.TILES})
    triton.REGISTERS = tiles["maxnreg"]
    triton.EXACT = precision
    found: dict[str, float | None] = {}
    for zoom, clip in clips.items():  # frames, p_t, p_y, p_x, n, gradient
        calls = {
            "forward": partial(triton.volume, *clip[:-1]),
            "backward": partial(triton.slopes, *clip),
        }
        for what, call in calls.items():
            try:
                times = [milliseconds(call, device) for _ in range(n_runs + 1)]
            except triton.triton.runtime.errors.OutOfResources:
                found[f"{what}, {zoom}"] = None
            else:
                found[f"{what}, {zoom}"] = statistics.median(times[1:])
    return found


def make_clips(batch: int, n_frames: int) -> dict[str, tuple[Tensor, ...]]:
    """Frames, p_t, p_y, p_x, n and a gradient of the volume for each zoom, on the GPU."""
    torch.manual_seed(0)
    size = (batch, 3, n_frames, SIDE, SIDE)
    frames = torch.randint(256, size, dtype=torch.uint8, device="cuda")
    n = torch.full((batch,), n_frames, device="cuda")
    gradient = torch.randn(batch, 3, *SIZE, device="cuda")
    clips = {}
    for zoom, strides in ZOOMS.items():
        p = (v.detach().contiguous() for v in centres(make_theta(n, strides), n))
        clips[zoom] = (frames, *p, n, gradient)
    return clips


def compile_tiles(choice: tuple[str, dict[str, int]], n_frames: int) -> None:
    """Compile a choice's kernels into Triton's cache, in a process of its own."""
    time_tiles(choice[1], choice[0], make_clips(1, n_frames), n_runs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", help="stem of the files written; without it nothing is")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tiles.py times CUDA kernels: it needs a GPU, and torch sees none here")
    tiles = [dict(zip(CHOICES, v, strict=True)) for v in itertools.product(*CHOICES.values())]
    choices = list(itertools.product(chosen.precisions, tiles))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(compile_tiles, n_frames=chosen.frames), choices))
    clips = make_clips(chosen.batch, chosen.frames)
    rows = [
        {"precision": precision, **each, **time_tiles(each, precision, clips, chosen.runs)}
        for precision, each in choices
    ]
    table = pd.DataFrame(rows)
    total = table[[c for c in table if "," in c]].sum(axis=1, skipna=False)
    table = table.assign(total=total).sort_values(["precision", "total"])
    print(tables.as_text(table.groupby("precision").head(10)).to_string(index=False))
    if chosen.out:
        source = records.provenance(None, "cuda", 0, f"random frames, {SIDE} x {SIDE}")
        tables.write_measured(table, chosen.out, source)


if __name__ == "__main__":
    main()
