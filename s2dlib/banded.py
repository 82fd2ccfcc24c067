"""The detail sampler by the pixels that it reaches: same result as the dense form, less work.

A Gaussian of variance 1 is nothing 5 pixels away. So a detail frame needs 11 raw frames, read as
they are (uint8), within the rows and columns that its window reaches, and no more memory than a
few of these. Gradients go to the centres of the filters; frames get none. On CUDA by Triton kernels
(triton_kernels.py), elsewhere by PyTorch, a detail frame at a time.

Axes: B clips, C colours, T x H x W raw frames, T_D x H_D x W_D detail volume, K taps in time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

REACH = 5  # frames or pixels: the nearest input and 5 on each side; the next weighs 4e-7 of it
TAPS = 2 * REACH + 1
SMALL = 2**21  # values of a clip, below which products of whole clips are faster (on a CPU)


@dataclass
class Taps:
    """The band of one axis: weights of the TAPS inputs around each centre, and their slopes."""

    first: Tensor  # the first input. (..., n_out) int64
    weights: Tensor  # sum to 1; 0 beyond the end of an axis shorter than TAPS. (..., n_out, TAPS)
    far: Tensor  # offsets of the centre from them. (..., n_out, TAPS)

    @property
    def slopes(self) -> Tensor:
        """Of the weights when the centre moves. (..., n_out, TAPS)"""
        return slopes_of(self.weights, self.far)


def log_gaussian(far: Tensor) -> Tensor:
    """Log of a Gaussian of variance 1, but for its normaliser (Eq. 7). far: offsets p - r. (...,)

    A softmax over it needs no more care: it takes off the largest exponent, which is the nearest
    input's, before exp. The kernels, which have no row at hand, take it off here
    (triton_kernels._log_gaussian).
    """
    return -0.5 * far**2


def band(p: Tensor, n_in: Tensor | int) -> Taps:
    """The taps around the centres p, moved inside the axis where they would leave it.

    A band that is cut off at the border instead loses most of its weight there, wrong by up to 0.9.

    Args:
        p: centres, in frames or pixels. (..., n_out)
        n_in: real length of the axis: one number, or broadcastable to p.
    """
    first = _first(p, n_in)  # (..., n_out)
    r = first[..., None] + torch.arange(TAPS, device=p.device)  # (..., n_out, TAPS)
    far = p[..., None] - (r + 0.5)
    beyond = r >= (n_in[..., None] if isinstance(n_in, Tensor) else n_in)
    weights = log_gaussian(far).masked_fill(beyond, -torch.inf).softmax(dim=-1)
    return Taps(first, weights, far)


def filters(p: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    """Weights over a whole axis (Eq. 7), and the offsets p - r. Both (..., n_out, n_in)"""
    far = p[..., None] - (torch.arange(n_in, device=p.device) + 0.5)
    return log_gaussian(far).softmax(dim=-1), far


def slopes_of(weights: Tensor, far: Tensor) -> Tensor:
    """Slopes of Gaussian weights when their centres move, far the offsets p - r; both one shape."""
    return weights * ((weights * far).sum(dim=-1, keepdim=True) - far)


class BandedVolume(torch.autograd.Function):
    """V-hat = G_X G_Y G_T I (Eq. 7), and its gradient for the centres of the filters."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor
    ) -> Tensor:
        """The volume of clips whose filters are centred at p.

        Args:
            frames: raw frames I, uint8 or float. (B, C, T, H, W)
            p_t, p_y, p_x: centres. (B, T_D), (B, T_D, H_D), (B, T_D, W_D)
            n: real frames of each clip. (B,)

        Returns:
            The detail volume, float32. (B, C, T_D, H_D, W_D)
        """
        ctx.save_for_backward(frames, p_t, p_y, p_x, n)
        return _kernels(frames).volume(frames, p_t, p_y, p_x, n)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: of the volume. (B, C, T_D, H_D, W_D). Returns those of p_t, p_y and p_x."""
        frames, *_ = ctx.saved_tensors
        slopes = _kernels(frames).slopes(*ctx.saved_tensors, gradient)
        return None, *slopes, None


def pays(frames: Tensor) -> bool:
    """Whether the band is faster than the dense form here: on a GPU, and for clips that are large.

    Frames that need a gradient are for the dense form alone.
    """
    if frames.requires_grad:
        return False
    if frames.is_cuda:
        return importlib.util.find_spec("triton") is not None
    return frames[0].numel() >= SMALL


def _kernels(frames: Tensor) -> type[OnCpu]:
    if not frames.is_cuda:
        return OnCpu
    from s2dlib.triton_kernels import OnCuda  # triton comes with torch's CUDA builds only

    return OnCuda


class OnCpu:
    """A detail frame at a time: its raw frames as float in a buffer, then three products.

    Whole rows go to one thread in each step, frames innermost, so that a core goes on with what it
    has made itself: where cores share no cache, fetching it from another one took as long as all
    the rest.
    """

    @staticmethod
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

    @staticmethod
    def slopes(
        frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As BandedVolume.backward: each axis in turn with slopes in place of its weights."""
        _, _, _, H, W = frames.shape
        (G_y, far_y), (G_x, far_x) = filters(p_y, H), filters(p_x, W)
        S_y, S_x = slopes_of(G_y, far_y), slopes_of(G_x, far_x)
        g_t, g_y, g_x = torch.zeros_like(p_t), torch.zeros_like(p_y), torch.zeros_like(p_x)
        taps = band(p_t, n[:, None])
        both = torch.stack((taps.weights, taps.slopes), dim=2)  # (B, T_D, 2, TAPS)
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
    first = _first(torch.stack((p.amin(-1), p.amax(-1)), dim=-1), n_in)  # (B, T_D, 2)
    return (first + first.new_tensor([0, min(TAPS, n_in)])).tolist()


def _first(p: Tensor, n_in: Tensor | int) -> Tensor:
    """The first of the TAPS inputs around each centre, int64; the band is kept inside the axis.

    A centre that is not a number gets the first band: the volume shows it, not a wild address.
    """
    first = p.ceil() - 1 - REACH  # input r, which spans r to r + 1, lies at r + 0.5
    if isinstance(n_in, Tensor):
        first = torch.minimum(first, (n_in - TAPS).to(p.dtype))
    else:
        first = first.clamp(max=n_in - TAPS)
    return first.clamp(min=0).nan_to_num().long()
