"""The banded detail sampler on CUDA: each raw pixel read as it is, the volume written once.

A program makes a tile of one colour of one detail frame: it walks over the raw pixels that the
tile reaches, in blocks, columns outside and rows inside; averages each block over time; and
multiplies it with the tile's rows, and what they gave with its columns, of Gaussians, made where
they are used. Backward does the same with slopes in place of the weights of one axis at a time, and
writes sums by tile: no atomics, so the result repeats.

Names as in banded.py; j and i index the volume's rows and columns, y and x the raw ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2dlib.banded import REACH, TAPS, band

# Rows and columns of the volume that a program makes, and of the clip that it reads at a time, and
# its warps. Chosen by the instructions of the compiled code; benchmarks/tiles.py times others.
TILES = {"TILE_J": 16, "TILE_I": 32, "BLOCK_Y": 16, "BLOCK_X": 32, "num_warps": 4}


@triton.jit
def _axis(p_ptr, stats_ptr, at, n_out, n_in, REACH: tl.constexpr):
    """Centres, log normalisers and mean offsets of a tile of filters, and the span they reach."""
    valid = at < n_out
    p = tl.load(p_ptr + at, mask=valid, other=0.0)
    log_z = tl.load(stats_ptr + 2 * at, mask=valid, other=0.0)
    mean = tl.load(stats_ptr + 2 * at + 1, mask=valid, other=0.0)
    low = tl.min(tl.where(valid, p, float("inf")), axis=0) - REACH - 1
    high = tl.max(tl.where(valid, p, float("-inf")), axis=0) + REACH + 1
    first = tl.minimum(tl.maximum(low, 0.0), tl.maximum(n_in - 2.0 * REACH - 1, 0.0)).to(tl.int32)
    end = tl.minimum(tl.maximum(high, 2.0 * REACH + 1), n_in + 0.0).to(tl.int32)
    return p, log_z, mean, first, end


@triton.jit
def _weights(p, log_z, r, n_in, at, n_out):
    """Rows of Gaussians over the inputs r, 0 outside the axis, and the offsets p - r. (out, r)"""
    far = p[:, None] - (r[None, :] + 0.5)
    inside = (r[None, :] < n_in) & (at[:, None] < n_out)
    return tl.where(inside, tl.exp(-0.5 * far * far - log_z[:, None]), 0.0), far


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
    py, zy, _, y0, y1 = _axis(p_y + bz * H_D, stats_y + 2 * bz * H_D, j, H_D, H, REACH)
    px, zx, _, x0, x1 = _axis(p_x + bz * W_D, stats_x + 2 * bz * W_D, i, W_D, W, REACH)
    raw = frames + (bc.to(tl.int64) * T + tl.load(first_t + bz)) * (H * W)
    n_taps = tl.minimum(tl.load(n + bc // C), TAPS)  # fewer where the clip is shorter
    acc = tl.zeros((TILE_J, TILE_I), dtype=tl.float32)
    for x_block in range(x0 // 16 * 16, x1, BLOCK_X):  # from a multiple of 16: bytes read together
        x = tl.multiple_of(x_block, 16) + tl.arange(0, BLOCK_X)
        rows = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        for y_block in range(y0, y1, BLOCK_Y):
            y = y_block + tl.arange(0, BLOCK_Y)
            G_y, _far = _weights(py, zy, y, H, j, H_D)
            at = y[:, None] * W + x[None, :]
            image = tl.zeros((BLOCK_Y, BLOCK_X), dtype=tl.float32)
            for k in tl.static_range(TAPS):
                inside = (y[:, None] < tl.where(n_taps > k, H, 0)) & (x[None, :] < W)
                seen = tl.load(raw + k * (H * W) + at, mask=inside, other=0)
                image += tl.load(w_t + bz * TAPS + k) * seen.to(tl.float32)
            rows = tl.dot(G_y, image, rows, input_precision=PRECISION)
        G_x, _far = _weights(px, zx, x, W, i, W_D)
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
    py, zy, my, y0, y1 = _axis(p_y + bz * H_D, stats_y + 2 * bz * H_D, j, H_D, H, REACH)
    px, zx, mx, x0, x1 = _axis(p_x + bz * W_D, stats_x + 2 * bz * W_D, i, W_D, W, REACH)
    raw = frames + (bc.to(tl.int64) * T + tl.load(first_t + bz)) * (H * W)
    n_taps = tl.minimum(tl.load(n + bc // C), TAPS)  # fewer where the clip is shorter
    to = gradient + bcz.to(tl.int64) * H_D * W_D + j[:, None] * W_D + i[None, :]
    g = tl.load(to, mask=(j[:, None] < H_D) & (i[None, :] < W_D), other=0.0)
    by_t = tl.zeros((TILE_J,), dtype=tl.float32)
    by_y = tl.zeros((TILE_J,), dtype=tl.float32)
    by_x = tl.zeros((TILE_J, TILE_I), dtype=tl.float32)
    for x_block in range(x0 // 16 * 16, x1, BLOCK_X):
        x = tl.multiple_of(x_block, 16) + tl.arange(0, BLOCK_X)
        rows = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        rows_t = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        rows_y = tl.zeros((TILE_J, BLOCK_X), dtype=tl.float32)
        for y_block in range(y0, y1, BLOCK_Y):
            y = y_block + tl.arange(0, BLOCK_Y)
            G_y, far_y = _weights(py, zy, y, H, j, H_D)
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
            S_y = G_y * (my[:, None] - far_y)
            rows_y = tl.dot(S_y, image, rows_y, input_precision=PRECISION)
        G_x, far_x = _weights(px, zx, x, W, i, W_D)
        back = tl.dot(g, G_x, input_precision=PRECISION)  # the gradient of rows
        by_t += tl.sum(back * rows_t, axis=1)
        by_y += tl.sum(back * rows_y, axis=1)
        S_x = G_x * (mx[:, None] - far_x)
        by_x = tl.dot(rows, tl.trans(S_x), by_x, input_precision=PRECISION)
    tl.store(g_t + bcz * tl.num_programs(0) + tile, tl.sum(by_t))
    tl.store(g_y + (bcz * n_i + tile % n_i) * H_D + j, by_y, mask=j < H_D)
    n_j = tl.num_programs(0) // n_i
    tl.store(g_x + (bcz * n_j + tile // n_i) * W_D + i, tl.sum(g * by_x, axis=0), mask=i < W_D)


class OnCuda:
    """As banded.OnCpu; in float32, or in TF32 where torch.set_float32_matmul_precision allows it.

    The dense form's products follow the same setting on CUDA.
    """

    @staticmethod
    def volume(frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor) -> Tensor:
        """As BandedVolume.forward."""
        frames, (H_D, W_D) = frames.contiguous(), (p_y.shape[-1], p_x.shape[-1])
        (B, C, T, H, W), T_D = frames.shape, p_t.shape[1]
        taps = band(p_t, n[:, None])
        out = p_y.new_empty(B, C, T_D, H_D, W_D)
        n_j, n_i = triton.cdiv(H_D, TILES["TILE_J"]), triton.cdiv(W_D, TILES["TILE_I"])
        _volume[n_j * n_i, T_D, B * C](
            frames, n.int(), taps.first, taps.weights, p_y, _statistics(p_y, H), p_x,
            _statistics(p_x, W), out,
            C, T, H, W, T_D, H_D, W_D, TAPS=TAPS, REACH=REACH, PRECISION=_precision(), **TILES,
        )  # fmt: skip
        return out

    @staticmethod
    def slopes(
        frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As BandedVolume.backward."""
        frames, (H_D, W_D) = frames.contiguous(), (p_y.shape[-1], p_x.shape[-1])
        (B, C, T, H, W), T_D = frames.shape, p_t.shape[1]
        taps = band(p_t, n[:, None])
        n_j, n_i = triton.cdiv(H_D, TILES["TILE_J"]), triton.cdiv(W_D, TILES["TILE_I"])
        g_t = p_t.new_empty(B, C, T_D, n_j * n_i)
        g_y, g_x = p_y.new_empty(B, C, T_D, n_i, H_D), p_x.new_empty(B, C, T_D, n_j, W_D)
        _slopes[n_j * n_i, T_D, B * C](
            frames, n.int(), taps.first, taps.weights, taps.slopes, p_y, _statistics(p_y, H),
            p_x, _statistics(p_x, W), gradient.contiguous(), g_t, g_y, g_x,
            C, T, H, W, T_D, H_D, W_D, TAPS=TAPS, REACH=REACH, PRECISION=_precision(), **TILES,
        )  # fmt: skip
        return g_t.sum((1, 3)), g_y.sum((1, 3)), g_x.sum((1, 3))


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _statistics(p: Tensor, n_in: int) -> Tensor:
    """Log normaliser and mean offset of each filter, side by side. (..., n_out, 2)"""
    taps = band(p, n_in)
    return torch.stack((taps.log_z, taps.mean), dim=-1)
