"""Where and when a video moves: a start for looking that needs no label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOTION_CELLS = 40  # cells a side, over whose means motion is seen


@torch.no_grad()
def find_motion(frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The place of a clip that moves most, and the mean time of its motion: no label is needed.

    Mean absolute difference of successive frames, on means over cells of 1/40 of the side, then the
    largest mean over an eighth of the side. Deviation over time instead finds what moves slowly, as
    a body does, and so do differences of frames further apart.

    Args:
        frames: raw frames I. (B, C, T, H, W)
        n_frames: real frames of each clip; differences with padding count nothing. (B,)

    Returns:
        Fractions of the clip's frames, height and width. (B,) each
    """
    T = frames.shape[2]
    # Every other pixel and one colour: means over cells need no more, and it takes a tenth.
    gray = frames[:, 0, :, ::2, ::2].float()  # (B, T, H / 2, W / 2)
    cells = F.adaptive_avg_pool2d(gray, MOTION_CELLS)  # (B, T, cells, cells)
    real = torch.arange(1, T, device=frames.device) < n_frames[:, None]  # (B, T - 1)
    change = smooth(cells.diff(dim=1).abs() * real[..., None, None], 8).flatten(2)
    place = change.sum(1).argmax(1)  # (B,)
    share = motion_share(change.gather(2, place[:, None, None].expand(-1, T - 1, 1))[..., 0])
    t = (share * torch.arange(1, T, device=frames.device)).sum(1) / n_frames  # (B,)
    y, x = place // MOTION_CELLS, place % MOTION_CELLS
    return t, (y + 0.5) / MOTION_CELLS, (x + 0.5) / MOTION_CELLS


def smooth(maps: Tensor, share: int) -> Tensor:
    """Means over squares of 1 / share of the side. (B, n, H, W) -> (B, n, H, W)"""
    side = maps.shape[-1] // share // 2 * 2 + 1
    return F.avg_pool2d(maps, side, 1, side // 2, count_include_pad=False)


def motion_share(change: Tensor) -> Tensor:
    """How the change over time is spread, without what there is of it in silence.

    Means over 5 frames; what is below 0.3 of the largest (without the top twentieth, which may be a
    cut) counts nothing.

    Args:
        change: at one place, from frame to frame. (B, T)

    Returns:
        Shares that sum to 1. (B, T)
    """
    change = F.avg_pool1d(change[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    large = change.sort(dim=1).values[:, int(0.95 * change.shape[1]), None]  # (B, 1)
    above = (change - 0.3 * large).clamp(min=0) + 1e-6
    return above / above.sum(dim=1, keepdim=True)
