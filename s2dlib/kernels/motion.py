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
    with torch.autocast(frames.device.type, enabled=False):  # bfloat16 sees no small change
        T = frames.shape[2]
        # Every other pixel and one colour: means over cells need no more, and it takes a tenth.
        gray = frames[:, 0, :, ::2, ::2].float()  # (B, T, H / 2, W / 2)
        rows, columns = (F.adaptive_avg_pool1d(_eye(gray, n), CELLS) for n in gray.shape[2:])
        cells = rows.T @ (gray @ columns)  # (B, T, cells, cells)
        times = torch.arange(1, T, device=frames.device)  # (T - 1,)
        change = cells.diff(dim=1).abs() * (times < n_frames[:, None])[..., None, None]
        around = _mean_around(_eye(gray, CELLS), 5)  # (cells, cells)
        change = around.T @ change @ around  # (B, T - 1, cells, cells)
        stretch = (min(STRETCH, T - 1) - 1) // 2 * 2 + 1  # odd
        around = _mean_around(_eye(gray, T - 1), stretch)  # (T - 1, T - 1)
        change = around.T @ change.flatten(2)  # (B, T - 1, cells^2)
        place = change.amax(1).argmax(1)  # (B,)
        there = change[torch.arange(len(place), device=place.device), :, place]  # (B, T - 1)
        above = (there - there.amax(1, keepdim=True) / 2).clamp(min=0) + 1e-6
        t = (above * times).sum(1) / above.sum(1)
        return t, (place // CELLS + 0.5) / CELLS, (place % CELLS + 0.5) / CELLS


# Means as products: a matrix product takes less time than a pooling whose windows overlap.
def _eye(like: Tensor, n: int) -> Tensor:
    return torch.eye(n, device=like.device)


def _mean_around(values: Tensor, n: int) -> Tensor:
    """Means over n neighbours on the last axis, fewer at its ends."""
    return F.avg_pool1d(values, n, 1, n // 2, count_include_pad=False)
