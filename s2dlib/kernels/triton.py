"""The banded detail sampler on CUDA: each raw pixel read as it is, the volume written once.

First the few weights in time of every detail frame, and the normalisers of the filters in space
(_taps, _statistics). Then a program makes a tile of one colour of one detail frame: it walks over
the raw pixels that the tile reaches, in blocks, columns outside and rows inside; averages each
block over time; and multiplies it with the tile's rows, and what they gave with its columns, of
Gaussians, made where they are used. Backward does the same with slopes in place of the weights of
one axis at a time, and writes sums by tile: no atomics, so the result repeats.

Nothing outside a clip is ever read: a length is moved into [1, T], and a centre that is not a
number gives NaN from the first pixels on.

Products are in float32, or in TF32 where torch.set_float32_matmul_precision allows it, as those of
the dense form on CUDA. Kernels read what they are given as contiguous, and run on the device of the
frames. Names as in band.py; j and i index the volume's rows and columns, y and x the raw ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2dlib.kernels.band import REACH, TAPS

# Rows and columns of the volume that a program makes, and of the clip that it reads at a time, and
# its warps. Chosen by the instructions of the compiled code; benchmarks/tiles.py times others.
TILES = {"TILE_J": 16, "TILE_I": 32, "BLOCK_Y": 16, "BLOCK_X": 32, "num_warps": 4}
# How products of float32 are made where torch asks for float32: "ieee", or "tf32x3", three products
# on tensor cores that together lose no more than rounding does.
EXACT = "tf32x3"
REGISTERS = 168  # of a thread of _volume at most: three programs of four warps on a multiprocessor
BLOCK = 32  # filters whose weights in time, or statistics, a program makes


@triton.jit
def _log_gaussian(far, far0):
    """Log of a Gaussian at an offset, less that at the nearest input's: no squares that cancel.

    Off-screen both are large: of -0.5 far^2 - log_z, with log_z near -0.5 far0^2, little is left
    that is not rounding.
    """
    return -0.5 * (far - far0) * (far + far0)


@triton.jit
def _nearest(p, n_in, REACH: tl.constexpr):
    """The offset of the input nearest to each centre, and the first input of its band (int32)."""
    known = tl.where(p == p, p, 0.0)  # not NaN
    nearest = tl.ceil(known) - 1.0  # input r, which spans r to r + 1, lies at r + 0.5
    first = tl.maximum(tl.minimum(nearest - REACH, n_in - 2.0 * REACH - 1), 0.0)
    far0 = p - (tl.minimum(tl.maximum(nearest, 0.0), n_in - 1.0) + 0.5)
    return far0, first.to(tl.int32)


@triton.jit
def _length(n, clip, T):
    """Real frames of a clip, which has at least one and at most T."""
    return tl.minimum(tl.maximum(tl.load(n + clip).to(tl.int32), 1), T)


@triton.jit
def _taps(
    p_t, n, first_t, w_t, s_t, N, T, T_D,
    TAPS: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The band in time of each of N = B T_D detail frames: first frame, weights and slopes."""
    at, k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    valid = at < N
    p = tl.load(p_t + at, mask=valid, other=0.5)
    length = _length(n, tl.minimum(at, N - 1) // T_D, T)
    far0, first = _nearest(p, length, REACH)
    r = first[:, None] + k[None, :]
    far = p[:, None] - (r + 0.5)
    inside = (k[None, :] < TAPS) & (r < length[:, None])
    w = tl.where(inside, tl.exp(_log_gaussian(far, far0[:, None])), 0.0)
    w = w / tl.sum(w, axis=1)[:, None]
    beyond = far - far0[:, None]
    s = w * (tl.sum(w * beyond, axis=1)[:, None] - beyond)
    to, mask = at[:, None] * TAPS + k[None, :], valid[:, None] & (k[None, :] < TAPS)
    tl.store(first_t + at, first, mask=valid)
    tl.store(w_t + to, w, mask=mask)
    tl.store(s_t + to, s, mask=mask)


@triton.jit
def _statistics(
    p_ptr, stats, N, n_in, TAPS: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr
):
    """Of N filters in space: offset from the nearest input; 1 / Z and mean offset relative to it.

    Made once here: every tile of every colour that needs a filter would make them again.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < N
    p = tl.load(p_ptr + at, mask=valid, other=0.5)
    far0, first = _nearest(p, n_in, REACH)
    z, mean = tl.zeros_like(p), tl.zeros_like(p)
    for k in tl.static_range(TAPS):
        r = first + k
        far = p - (r + 0.5)
        w = tl.where(r < n_in, tl.exp(_log_gaussian(far, far0)), 0.0)
        z += w
        mean += w * (far - far0)
    tl.store(stats + 3 * at, far0, mask=valid)
    tl.store(stats + 3 * at + 1, 1 / z, mask=valid)
    tl.store(stats + 3 * at + 2, mean / z, mask=valid)


@triton.jit
def _axis(p_ptr, stats, at, n_out, n_in, REACH: tl.constexpr):
    """A tile of filters with their _statistics, and the first and last + 1 input it reaches."""
    valid = at < n_out
    p = tl.load(p_ptr + at, mask=valid, other=0.0)
    far0 = tl.load(stats + 3 * at, mask=valid, other=0.0)
    inverse_z = tl.load(stats + 3 * at + 1, mask=valid, other=0.0)
    mean = tl.load(stats + 3 * at + 2, mask=valid, other=0.0)
    known = tl.where(p == p, p, 0.0)  # not NaN
    low = tl.min(tl.where(valid, known, float("inf")), axis=0) - REACH - 1
    high = tl.max(tl.where(valid, known, float("-inf")), axis=0) + REACH + 1
    start = tl.minimum(tl.maximum(low, 0.0), tl.maximum(n_in - 2.0 * REACH - 1, 0.0)).to(tl.int32)
    end = tl.minimum(tl.maximum(high, 2.0 * REACH + 1), n_in + 0.0).to(tl.int32)
    return p, far0, inverse_z, mean, start, end


@triton.jit
def _weights(p, far0, inverse_z, r, n_in, at, n_out):
    """Rows of Gaussians over the inputs r, 0 outside the axis; offsets beyond far0. (out, r)"""
    far = p[:, None] - (r[None, :] + 0.5)
    inside = (r[None, :] < n_in) & (at[:, None] < n_out)
    w = tl.exp(_log_gaussian(far, far0[:, None])) * inverse_z[:, None]
    return tl.where(inside, w, 0.0), far - far0[:, None]


@triton.jit
def _volume(
    frames, n, first_t, w_t, p_y, stats_y, p_x, stats_x, out,
    C, T, H, W, T_D, H_D, W_D,
    TAPS: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr,
    TILE_J: tl.constexpr, TILE_I: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    n_i = tl.cdiv(W_D, TILE_I)
    j = tl.program_id(0) // n_i * TILE_J + tl.arange(0, TILE_J)
    i = tl.program_id(0) % n_i * TILE_I + tl.arange(0, TILE_I)
    bc, z = tl.program_id(2), tl.program_id(1)
    bz = bc // C * T_D + z  # the detail frame
    py, fy, zy, _, y0, y1 = _axis(p_y + bz * H_D, stats_y + 3 * bz * H_D, j, H_D, H, REACH)
    px, fx, zx, _, x0, x1 = _axis(p_x + bz * W_D, stats_x + 3 * bz * W_D, i, W_D, W, REACH)
    raw = frames + (bc.to(tl.int64) * T + tl.load(first_t + bz)) * (H * W)
    n_taps = tl.minimum(_length(n, bc // C, T), TAPS)  # fewer where the clip is shorter
    acc = tl.zeros((TILE_J, TILE_I), dtype=tl.float32)
    for x_block in range(x0 // 16 * 16, x1, BLOCK_X):  # from a multiple of 16: bytes read together
        x = tl.multiple_of(x_block, 16) + tl.arange(0, BLOCK_X)
        rows = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        for y_block in range(y0, y1, BLOCK_Y):
            y = y_block + tl.arange(0, BLOCK_Y)
            G_y, _beyond = _weights(py, fy, zy, y, H, j, H_D)
            at = y[:, None] * W + x[None, :]
            image = tl.zeros((BLOCK_Y, BLOCK_X), dtype=tl.float32)
            for k in tl.static_range(TAPS):
                inside = (y[:, None] < tl.where(n_taps > k, H, 0)) & (x[None, :] < W)
                seen = tl.load(raw + k * (H * W) + at, mask=inside, other=0)
                image += tl.load(w_t + bz * TAPS + k) * seen.to(tl.float32)
            rows = tl.dot(G_y, image, rows, input_precision=PRECISION)
        G_x, _beyond = _weights(px, fx, zx, x, W, i, W_D)
        acc = tl.dot(rows, tl.trans(G_x), acc, input_precision=PRECISION)
    to = out + (bc * T_D + z).to(tl.int64) * H_D * W_D + j[:, None] * W_D + i[None, :]
    tl.store(to, acc, mask=(j[:, None] < H_D) & (i[None, :] < W_D))


@triton.jit
def _slopes(
    frames, n, first_t, w_t, s_t, p_y, stats_y, p_x, stats_x, gradient, g_t, g_y, g_x,
    C, T, H, W, T_D, H_D, W_D,
    TAPS: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr,
    TILE_J: tl.constexpr, TILE_I: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    n_i, tile = tl.cdiv(W_D, TILE_I), tl.program_id(0)
    j = tile // n_i * TILE_J + tl.arange(0, TILE_J)
    i = tile % n_i * TILE_I + tl.arange(0, TILE_I)
    bc, z = tl.program_id(2), tl.program_id(1)
    bz, bcz = bc // C * T_D + z, bc * T_D + z
    py, fy, zy, my, y0, y1 = _axis(p_y + bz * H_D, stats_y + 3 * bz * H_D, j, H_D, H, REACH)
    px, fx, zx, mx, x0, x1 = _axis(p_x + bz * W_D, stats_x + 3 * bz * W_D, i, W_D, W, REACH)
    raw = frames + (bc.to(tl.int64) * T + tl.load(first_t + bz)) * (H * W)
    n_taps = tl.minimum(_length(n, bc // C, T), TAPS)  # fewer where the clip is shorter
    to = gradient + bcz.to(tl.int64) * H_D * W_D + j[:, None] * W_D + i[None, :]
    g = tl.load(to, mask=(j[:, None] < H_D) & (i[None, :] < W_D), other=0.0)
    by_t, by_y = tl.zeros((TILE_J,), dtype=tl.float32), tl.zeros((TILE_J,), dtype=tl.float32)
    by_x = tl.zeros((TILE_J, TILE_I), dtype=tl.float32)
    for x_block in range(x0 // 16 * 16, x1, BLOCK_X):
        x = tl.multiple_of(x_block, 16) + tl.arange(0, BLOCK_X)
        rows = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        rows_t = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        rows_y = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        for y_block in range(y0, y1, BLOCK_Y):
            y = y_block + tl.arange(0, BLOCK_Y)
            G_y, beyond_y = _weights(py, fy, zy, y, H, j, H_D)
            at = y[:, None] * W + x[None, :]
            image = tl.zeros((BLOCK_Y, BLOCK_X), dtype=tl.float32)
            moved = tl.zeros((BLOCK_Y, BLOCK_X), dtype=tl.float32)
            for k in tl.static_range(TAPS):
                inside = (y[:, None] < tl.where(n_taps > k, H, 0)) & (x[None, :] < W)
                seen = tl.load(raw + k * (H * W) + at, mask=inside, other=0)
                pixels = seen.to(tl.float32)
                image += tl.load(w_t + bz * TAPS + k) * pixels
                moved += tl.load(s_t + bz * TAPS + k) * pixels
            rows = tl.dot(G_y, image, rows, input_precision=PRECISION)
            rows_t = tl.dot(G_y, moved, rows_t, input_precision=PRECISION)
            S_y = G_y * (my[:, None] - beyond_y)
            rows_y = tl.dot(S_y, image, rows_y, input_precision=PRECISION)
        G_x, beyond_x = _weights(px, fx, zx, x, W, i, W_D)
        back = tl.dot(g, G_x, input_precision=PRECISION)  # the gradient of rows
        by_t += tl.sum(back * rows_t, axis=1)
        by_y += tl.sum(back * rows_y, axis=1)
        S_x = G_x * (mx[:, None] - beyond_x)
        by_x = tl.dot(rows, tl.trans(S_x), by_x, input_precision=PRECISION)
    tl.store(g_t + bcz * tl.num_programs(0) + tile, tl.sum(by_t))
    tl.store(g_y + (bcz * n_i + tile % n_i) * H_D + j, by_y, mask=j < H_D)
    n_j = tl.num_programs(0) // n_i
    tl.store(g_x + (bcz * n_j + tile // n_i) * W_D + i, tl.sum(g * by_x, axis=0), mask=i < W_D)


def volume(frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor) -> Tensor:
    """As BandedVolume.forward."""
    frames, p_t, p_y, p_x, n = (v.contiguous() for v in (frames, p_t, p_y, p_x, n))
    sizes, n_j, n_i = _sizes(frames, p_y, p_x)
    B, C, _, H, W, T_D, H_D, W_D = len(frames), *sizes
    out = p_y.new_empty(B, C, T_D, H_D, W_D)
    with torch.cuda.device_of(frames):
        first, weights, _ = _time_taps(p_t, n, frames.shape[2])
        _volume[n_j * n_i, T_D, B * C](
            frames, n, first, weights, p_y, _space_statistics(p_y, H),
            p_x, _space_statistics(p_x, W), out, *sizes, **_constants(), maxnreg=REGISTERS,
        )  # fmt: skip
    return out


def slopes(
    frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As BandedVolume.backward."""
    frames, p_t, p_y, p_x, n, gradient = (
        v.contiguous() for v in (frames, p_t, p_y, p_x, n, gradient)
    )
    sizes, n_j, n_i = _sizes(frames, p_y, p_x)
    B, C, T, H, W, T_D, H_D, W_D = len(frames), *sizes
    g_t = p_t.new_empty(B, C, T_D, n_j * n_i)
    g_y, g_x = p_y.new_empty(B, C, T_D, n_i, H_D), p_x.new_empty(B, C, T_D, n_j, W_D)
    with torch.cuda.device_of(frames):
        _slopes[n_j * n_i, T_D, B * C](
            frames, n, *_time_taps(p_t, n, T), p_y, _space_statistics(p_y, H),
            p_x, _space_statistics(p_x, W), gradient, g_t, g_y, g_x, *sizes, **_constants(),
        )  # fmt: skip
    return g_t.sum((1, 3)), g_y.sum((1, 3)), g_x.sum((1, 3))


def _sizes(frames: Tensor, p_y: Tensor, p_x: Tensor) -> tuple[tuple[int, ...], int, int]:
    """C, T, H, W, T_D, H_D, W_D; and the tiles of a detail frame down and across."""
    (_, T_D, H_D), W_D = p_y.shape, p_x.shape[-1]
    n_j, n_i = triton.cdiv(H_D, TILES["TILE_J"]), triton.cdiv(W_D, TILES["TILE_I"])
    return (*frames.shape[1:], T_D, H_D, W_D), n_j, n_i


def _time_taps(p_t: Tensor, n: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """As banded.band of the centres in time: first (B, T_D), weights, slopes (B, T_D, TAPS)."""
    first, N = torch.empty_like(p_t, dtype=torch.int32), p_t.numel()
    weights, slopes = p_t.new_empty(2, *p_t.shape, TAPS)
    _taps[(triton.cdiv(N, BLOCK),)](
        p_t, n, first, weights, slopes, N, T, p_t.shape[1],
        TAPS=TAPS, REACH=REACH, PADDED=triton.next_power_of_2(TAPS), BLOCK=BLOCK,
    )  # fmt: skip
    return first, weights, slopes


def _space_statistics(p: Tensor, n_in: int) -> Tensor:
    """_statistics of the filters of one axis. (..., n_out) -> (..., n_out, 3)"""
    stats = p.new_empty(*p.shape, 3)
    grid = (triton.cdiv(p.numel(), BLOCK),)
    _statistics[grid](p, stats, p.numel(), n_in, TAPS=TAPS, REACH=REACH, BLOCK=BLOCK)
    return stats


def _constants() -> dict[str, int | str]:
    """What the two large kernels are compiled for."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return {"TAPS": TAPS, "REACH": REACH, "PRECISION": EXACT if exact else "tf32", **TILES}
