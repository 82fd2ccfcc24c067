"""Where and when a video moves: a start for looking that needs no label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 40  # a side, over whose means motion is seen
STRETCH = 25  # raw frames, a second of most videos, over which motion is averaged


@torch.no_grad()
def find_motion(frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The place that moves most over a second of a clip, and the mean time at which it moves.

    Mean absolute difference of successive frames, on means over cells, averaged over an eighth of
    the side and over STRETCH: what is largest there at any time is the place, and the time is the
    mean of what there is above half of that, so that silence counts nothing. Averaged over the
    whole clip instead, a place that keeps moving a little wins in a long one; differences of frames
    further apart find what moves slowly, as a body does.

    Args:
        frames: raw frames I. (B, C, T, H, W)
        n_frames: real frames of each clip; differences with padding count nothing. (B,)

    Returns:
        Time in raw frames; height and width, fractions of the clip's. (B,) each
    """
    T = frames.shape[2]
    # Every other pixel and one colour: means over cells need no more, and it takes a tenth.
    gray = frames[:, 0, :, ::2, ::2].float()  # (B, T, H / 2, W / 2)
    cells = F.adaptive_avg_pool2d(gray, CELLS)  # (B, T, cells, cells)
    times = torch.arange(1, T, device=frames.device)  # (T - 1,)
    change = cells.diff(dim=1).abs() * (times < n_frames[:, None])[..., None, None]
    change = F.avg_pool2d(change, 5, 1, 2, count_include_pad=False)  # (B, T - 1, cells, cells)
    stretch = min(STRETCH, T - 1)
    stretch -= 1 - stretch % 2
    change = change.flatten(2).transpose(1, 2)  # (B, cells^2, T - 1)
    change = F.avg_pool1d(change, stretch, 1, stretch // 2, count_include_pad=False)
    place = change.amax(2).argmax(1)  # (B,)
    there = change[torch.arange(len(place), device=place.device), place]  # (B, T - 1)
    above = (there - there.amax(1, keepdim=True) / 2).clamp(min=0) + 1e-6
    t = (above * times).sum(1) / above.sum(1)
    return t, (place // CELLS + 0.5) / CELLS, (place % CELLS + 0.5) / CELLS
