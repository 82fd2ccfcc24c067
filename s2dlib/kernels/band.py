"""The band of a Gaussian: the few inputs around a centre that weigh anything (Eq. 7).

A Gaussian of variance 1 is nothing 5 pixels away. So a detail frame needs 11 raw frames, and of
those the rows and columns that its window reaches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REACH = 5  # frames or pixels: the nearest input and 5 on each side; the next weighs 4e-7 of it
TAPS = 2 * REACH + 1
NOTHING = 50.0  # log of the largest weight over one that changes no digit of a sum


class Taps(NamedTuple):
    """The band of one axis: the TAPS inputs around each centre."""

    first: Tensor  # the first input. (..., n_out) int64
    weights: Tensor  # sum to 1; 0 beyond the end of an axis shorter than TAPS. (..., n_out, TAPS)
    far: Tensor  # offsets of the centre from them. (..., n_out, TAPS)


def log_gaussian(far: Tensor) -> Tensor:
    """Log of a Gaussian of variance 1, but for its normaliser (Eq. 7). far: offsets p - r. (...,)

    A softmax takes off the largest exponent, the nearest input's, before exp; kernels, which have
    no row at hand, take it off here (triton._log_gaussian).
    """
    return -0.5 * far**2


def normalise(log_weights: Tensor) -> Tensor:
    """Weights that sum to 1 (Eq. 7): a softmax, exactly 0 below 1e-21 of the largest. (..., n)

    As subnormal numbers such weights would make each product with them, and with it a training step
    on a CPU, several times slower.
    """
    least = log_weights.detach().amax(dim=-1, keepdim=True) - NOTHING
    return log_weights.masked_fill(log_weights < least, -torch.inf).softmax(dim=-1)


def band(p: Tensor, n_in: Tensor) -> Taps:
    """The taps around the centres p, moved inside the axis where they would leave it.

    A band that is cut off at the border instead loses most of its weight there, wrong by up to 0.9.

    Args:
        p: centres, in frames or pixels. (..., n_out)
        n_in: real length of the axis. () or broadcastable to (..., n_out)
    """
    first = first_tap(p, n_in)  # (..., n_out)
    r = first[..., None] + torch.arange(TAPS, device=p.device)  # (..., n_out, TAPS)
    far = p[..., None] - (r + 0.5)
    beyond = r >= n_in[..., None]
    weights = normalise(log_gaussian(far).masked_fill(beyond, -torch.inf))
    return Taps(first, weights, far)


def filters(p: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    """Weights over a whole axis (Eq. 7), and the offsets p - r. Both (..., n_out, n_in)"""
    far = p[..., None] - (torch.arange(n_in, device=p.device) + 0.5)
    return normalise(log_gaussian(far)), far


def slopes_of(weights: Tensor, far: Tensor) -> Tensor:
    """Slopes of Gaussian weights when their centres move, far the offsets p - r; both one shape."""
    return weights * ((weights * far).sum(dim=-1, keepdim=True) - far)


def first_tap(p: Tensor, n_in: Tensor | int) -> Tensor:
    """The first of the TAPS inputs around each centre, int64; the band is kept inside the axis.

    A centre that is not a number gets the first band: the volume shows it, not a wild address.
    """
    first = p.ceil() - 1 - REACH  # input r, which spans r to r + 1, lies at r + 0.5
    return first.clamp(max=n_in - TAPS).clamp(min=0).nan_to_num().long()
