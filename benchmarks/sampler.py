"""The detail sampler: dense, banded, a loop over clips, grid_sample; against what memory allows.

    python benchmarks/sampler.py                       # a CPU: one clip, a few minutes
    python benchmarks/sampler.py --batches 1 16 64     # a GPU

Ways take turns; medians. `limit` is the time to copy, at the copy bandwidth measured here, the raw
bytes that the Gaussians reach and those of the volume: no sampler can be faster; `compute_ms` the
time of the multiply-adds at the rate of a large float32 matrix product here. `grid_sample` is the
usual trilinear sampler, another function, for scale. The loop is one clip at a time in float32, as
the authors' release does it, written for this comparison. On CUDA the band comes twice, its
products in float32 and in TF32.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from s2dlib.kernels.band import TAPS, first_tap
from s2dlib.kernels.banded import BandedVolume
from s2dlib.report import records, tables
from s2dlib.report.cost import milliseconds
from s2dlib.sampler import DetailSampler, Theta, anchored_zoom, gaussian_filters, grid_centres

SIZE, SIDE = (16, 112, 112), 224  # T_D, H_D, W_D; rows and columns of the raw frames
ZOOMS = {"whole clip": (1.0, 1.0), "zoomed": (0.3, 0.6)}  # of the strides, in time and in space


def make_theta(n: Tensor, zoom: tuple[float, float]) -> Theta:
    """Windows at random places, each clip its own, that ask for gradients. n: (B,)"""
    (T_D, H_D, W_D), (t, yx) = SIZE, zoom
    a_t, a_y, a_x = torch.rand(3, len(n), device=n.device)
    mu_t, delta_t = anchored_zoom(a_t, torch.full_like(a_t, t), n / T_D)
    mu_y, delta_y = anchored_zoom(a_y, torch.full_like(a_t, yx), SIDE / H_D)
    mu_x, delta_x = anchored_zoom(a_x, torch.full_like(a_t, yx), SIDE / W_D)
    space = [v[:, None].repeat(1, T_D) for v in (mu_y, mu_x, delta_y, delta_x)]
    return Theta(mu_t, delta_t, *space).map(lambda v: v.clone().requires_grad_())


def centres(theta: Theta, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_t (B, T_D), p_y (B, T_D, H_D), p_x (B, T_D, W_D)"""
    T_D, H_D, W_D = SIZE
    return (
        grid_centres(theta.mu_t, theta.delta_t, T_D, n),
        grid_centres(theta.mu_y, theta.delta_y, H_D, SIDE),
        grid_centres(theta.mu_x, theta.delta_x, W_D, SIDE),
    )


def dense(frames: Tensor, theta: Theta, n: Tensor) -> Tensor:
    return DetailSampler(SIZE, algorithm="dense")(frames, theta, n)


def banded(frames: Tensor, theta: Theta, n: Tensor) -> Tensor:
    return BandedVolume.apply(frames, *centres(theta, n), n)


def banded_tf32(frames: Tensor, theta: Theta, n: Tensor) -> Tensor:
    """As where torch.set_float32_matmul_precision("high") allows it; backward takes float32."""
    torch.set_float32_matmul_precision("high")
    try:
        return banded(frames, theta, n)
    finally:
        torch.set_float32_matmul_precision("highest")


def loop(frames: Tensor, theta: Theta, n: Tensor) -> Tensor:
    """One clip after another: its frames as float, three products by the equation."""
    volumes = []
    for b, (p_t, p_y, p_x) in enumerate(zip(*centres(theta, n), strict=True)):
        clip = frames[b].float()  # (C, T, H, W)
        G_t, G_y, G_x = (
            gaussian_filters(p, length)
            for p, length in zip((p_t, p_y, p_x), clip.shape[1:], strict=True)
        )
        volume = torch.einsum("zt,cthw->czhw", G_t, clip)
        volume = torch.einsum("zjh,czhw->czjw", G_y, volume)
        volumes.append(torch.einsum("ziw,czjw->czji", G_x, volume))
    return torch.stack(volumes)


def trilinear(frames: Tensor, theta: Theta, n: Tensor) -> Tensor:
    """grid_sample at the same centres, which reads eight neighbours of each."""
    p_t, p_y, p_x = (2 * p / length - 1 for p, length in zip(
        centres(theta, n), frames.shape[2:], strict=True
    ))  # fmt: skip
    axes = torch.broadcast_tensors(p_x[:, :, None], p_y[..., None], p_t[..., None, None])
    grid = torch.stack(axes, dim=-1)  # (B, T_D, H_D, W_D, 3)
    return F.grid_sample(frames.float(), grid, padding_mode="border", align_corners=False)


WAYS: dict[str, Callable[[Tensor, Theta, Tensor], Tensor]] = {
    "banded": banded,
    "banded, TF32": banded_tf32,
    "dense": dense,
    "loop over clips": loop,
    "grid_sample": trilinear,
}


def least_work(theta: Theta, n: Tensor, channels: int) -> tuple[int, int]:
    """What any sampler must do: bytes, and multiply-adds.

    Bytes: uint8 pixels within the band of any filter, each counted once, and the float volume.
    Multiply-adds: TAPS for each value of the three steps, time first, in the window reached.
    """
    (T_D, H_D, W_D), (p_t, p_y, p_x) = SIZE, (p.detach() for p in centres(theta, n))
    taps, touched, macs = torch.arange(TAPS, device=n.device), 0, 0
    for b in range(len(n)):
        t, y, x = (
            len((first_tap(p, length)[:, None] + taps).unique())
            for p, length in ((p_t[b], int(n[b])), (p_y[b, 0], SIDE), (p_x[b, 0], SIDE))
        )
        touched += channels * (t * y * x + 4 * T_D * H_D * W_D)
        macs += channels * TAPS * T_D * (y * x + H_D * x + H_D * W_D)
    return touched, macs


def median_of_calls(call: Callable[[], object], device: str, n_runs: int = 8) -> float:
    """Median milliseconds, after two calls that are not counted."""
    return statistics.median([milliseconds(call, device) for _ in range(n_runs + 2)][2:])


def copy_bandwidth(device: str, megabytes: int, repeats: int = 1) -> float:
    """Bytes a millisecond that a copy reads and writes, together; repeats copies in a timing."""
    block = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    ms = median_of_calls(lambda: [target.copy_(block) for _ in range(repeats)], device)
    return 2 * block.numel() * repeats / ms


def matrix_rate(device: str, n: int, repeats: int = 1) -> float:
    """Multiply-adds a millisecond of float32 products of n x n; repeats products in a timing."""
    a, b, out = torch.randn(3, n, n, device=device)
    ms = median_of_calls(lambda: [torch.mm(a, b, out=out) for _ in range(repeats)], device)
    return n**3 * repeats / ms


def measure_rates(device: str, smoke: bool) -> tuple[float, float]:
    """Bytes and multiply-adds a millisecond. On CUDA many at a time hide the launches."""
    repeats = 20 if device == "cuda" else 1
    n = 4096 if device == "cuda" and not smoke else 1024
    return copy_bandwidth(device, 16 if smoke else 512, repeats), matrix_rate(device, n, repeats)


def measure(
    B: int, T: int, zoom: str, device: str, n_runs: int, rates: tuple[float, float], limit_gb: float
) -> list[dict]:
    """Forward, and forward with backward, of each way, by turns. A row a way."""
    torch.manual_seed(0)
    frames = torch.randint(256, (B, 3, T, SIDE, SIDE), dtype=torch.uint8, device=device)
    n = torch.full((B,), T, device=device)
    theta = make_theta(n, ZOOMS[zoom])
    gradient = torch.randn(B, 3, *SIZE, device=device)
    fits = 16 * frames.numel() < limit_gb * 2**30
    ways = [w for w in WAYS if fits or "banded" in w]
    if device == "cpu":
        ways.remove("banded, TF32")
    times: dict[tuple[str, str], list[float]] = {}
    peak = {}
    for _ in range(n_runs + 1):
        for way in ways:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            with torch.no_grad():
                ms = milliseconds(lambda way=way: WAYS[way](frames, theta, n), device)
            times.setdefault((way, "forward"), []).append(ms)
            if device == "cuda":
                peak[way] = (torch.cuda.max_memory_allocated() - before) / 2**20

            def both(way: str = way) -> None:
                (WAYS[way](frames, theta, n) * gradient).sum().backward()

            times.setdefault((way, "forward and backward"), []).append(milliseconds(both, device))
    touched, macs = least_work(theta, n, 3)
    limit, compute = touched / rates[0], macs / rates[1]
    ms = {key: statistics.median(values[1:]) for key, values in times.items()}
    loop_ms = {p: ms.get(("loop over clips", p), float("nan")) for _, p in ms}
    return [
        {"batch": B, "T": T, "zoom": zoom, "pass": what, "way": way, "ms": value,
         "of_loop": loop_ms[what] / value, "limit_ms": limit, "of_limit": value / limit,
         "compute_ms": compute,
         "extra_MB": peak.get(way) if what == "forward" else None}
        for (way, what), value in ms.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--frames", type=int, nargs="+", default=[38, 75, 150, 300])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--memory", type=float, default=60.0, help="GB that a way may take")
    parser.add_argument("--out", help="stem of the files written; without it nothing is")
    parser.add_argument("--smoke", action="store_true", help="one short run: what the test runs")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.smoke:
        chosen.frames, chosen.runs = [20], 1
    rates = measure_rates(device, chosen.smoke)
    rows = []
    for B in chosen.batches:
        for T in chosen.frames:
            for zoom in ZOOMS:
                rows += measure(B, T, zoom, device, chosen.runs, rates, chosen.memory)
    table = pd.DataFrame(rows)
    found = {"copy_gb_s": round(rates[0] / 1e6, 1), "matrix_gmacs_s": round(rates[1] / 1e6, 1)}
    print(f"{device}, {torch.get_num_threads()} threads: {found}")
    print(tables.as_text(table).to_string(index=False))
    if chosen.out:
        source = records.provenance(None, device, 0, f"random frames, {SIDE} x {SIDE}")
        tables.write_measured(table, chosen.out, source | found)


if __name__ == "__main__":
    main()
