"""The banded detail sampler on a CPU.

A detail frame at a time: its raw frames as float in a buffer, then three products. Whole rows go to
one thread in each step, frames innermost, so that a core goes on with what it has made itself:
where cores share no cache, fetching it from another one took as long as all the rest.

Axes: B clips, C colours, T x H x W raw frames, T_D x H_D x W_D detail volume, K taps in time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from s2dlib.kernels.band import TAPS, Taps, band, filters, first_tap, slopes_of


def volume(frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor) -> Tensor:
    """As BandedVolume.forward."""
    B, C, _, H, W = frames.shape
    (G_y, _), (G_x, _) = filters(p_y, H), filters(p_x, W)
    out = p_y.new_empty(B, C, *p_y.shape[1:], p_x.shape[-1])
    taps = band(p_t, n[:, None])
    for b, z, ys, xs, pixels in _reached(frames, taps, p_y, p_x, n):
        image = taps.weights[b, z, : pixels.shape[2]] @ pixels  # (C, h, w)
        out[b, :, z] = G_y[b, z, :, ys] @ across(image, G_x[b, z, :, xs])
    return out


def slopes(
    frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As BandedVolume.backward: each axis in turn with slopes in place of its weights."""
    _, _, _, H, W = frames.shape
    (G_y, far_y), (G_x, far_x) = filters(p_y, H), filters(p_x, W)
    S_y, S_x = slopes_of(G_y, far_y), slopes_of(G_x, far_x)
    g_t, g_y, g_x = torch.zeros_like(p_t), torch.zeros_like(p_y), torch.zeros_like(p_x)
    taps = band(p_t, n[:, None])
    S_t = slopes_of(taps.weights, taps.far)
    both = torch.stack((taps.weights, S_t), dim=2)  # (B, T_D, 2, TAPS)
    for b, z, ys, xs, pixels in _reached(frames, taps, p_y, p_x, n):
        images = both[b, z, :, : pixels.shape[2]] @ pixels  # (C, h, 2, w)
        image, moved = across(images, G_x[b, z, :, xs]).unbind(2)  # (C, h, W_D) each
        g = gradient[b, :, z]
        back = G_y[b, z, :, ys].T @ g  # (C, h, W_D)
        g_t[b, z] = (back * moved).sum()
        g_y[b, z] = (g * (S_y[b, z, :, ys] @ image)).sum((0, 2))
        g_x[b, z] = (back * across(images[:, :, 0], S_x[b, z, :, xs])).sum((0, 1))
    return g_t, g_y, g_x


def across(image: Tensor, rows: Tensor) -> Tensor:
    """Filter the columns of an image, in one product. (..., w), (n, w) -> (..., n)"""
    return (image.flatten(0, -2) @ rows.T).view(*image.shape[:-1], -1)


def _reached(
    frames: Tensor, taps: Taps, p_y: Tensor, p_x: Tensor, n: Tensor
) -> Iterator[tuple[int, int, slice, slice, Tensor]]:
    """Each detail frame b, z: the rows and columns that it reaches, and the raw pixels there.

    The pixels, float (C, h, K, w), lie in one buffer: allocated anew for each, they would cost more
    than the arithmetic.
    """
    C, (H, W) = frames.shape[1], frames.shape[-2:]
    buffer = p_y.new_empty(C * TAPS * H * W)
    first, length = taps.first.tolist(), n.tolist()
    rows, columns = _spans(p_y, H), _spans(p_x, W)
    for b in range(len(frames)):
        for z in range(p_y.shape[1]):
            t, ys, xs = first[b][z], slice(*rows[b][z]), slice(*columns[b][z])
            seen = frames[b, :, t : min(t + TAPS, int(length[b])), ys, xs].transpose(1, 2)
            yield b, z, ys, xs, buffer[: seen.numel()].view(seen.shape).copy_(seen)


def _spans(p: Tensor, n_in: int) -> list[list[list[int]]]:
    """First and last + 1 of the inputs that the filters of a frame reach. (B, T_D, n_out)"""
    first = first_tap(torch.stack((p.amin(-1), p.amax(-1)), dim=-1), n_in)  # (B, T_D, 2)
    return (first + first.new_tensor([0, min(TAPS, n_in)])).tolist()
