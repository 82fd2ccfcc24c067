"""A film of what DNet sees, beside the clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2dlib.model import Output
from s2dlib.report.figures import BLUE, _detail_times


def film(frames: Tensor, out: Output, *, i: int = 0, height: int = 224) -> Tensor:
    """The clip, with the window of the detail frame nearest in time, beside that detail frame.

    Below: the whole clip as a bar, the detail frames on it as ticks, and the present moment. Where
    the nearest detail frame is more than half a stride away, the detail is dimmed and no window is
    drawn: DNet does not see that moment.

    Args:
        frames: raw frames I of the clip without padding. (C, T, H, W)
        out: the model's output for a batch that holds the clip.
        i: the clip's place in the batch.
        height: of the film's pictures, pixels.

    Returns:
        uint8. (T, height + 16, W_film, 3)
    """
    scale = 255.0 if frames.is_floating_point() else 1.0
    theta = out.theta.map(lambda v: v[i].detach().cpu().float())
    clip, detail = (  # (T, 3, height, .) and (T_D, 3, height, .), uint8
        F.interpolate(
            (v.detach().cpu().float() * scale).transpose(0, 1).expand(-1, 3, -1, -1),
            (height, round(v.shape[-1] * height / v.shape[-2])),
        ).round().clamp(0, 255).byte()
        for v in (frames, out.detail_volume[i])
    )  # fmt: skip
    (T, H, W), (T_D, H_D, W_D) = frames.shape[1:], out.detail_volume.shape[2:]
    times = _detail_times(theta, T, T_D)  # (T_D,)
    gap, bar = 8, 16
    right = clip.shape[3] + gap
    width = right + detail.shape[3]
    shots = torch.full((T, 3, height + bar, width), 255, dtype=torch.uint8)
    blue, scales = (255 * torch.tensor(BLUE)).byte()[:, None, None], (height / H, clip.shape[3] / W)
    for t, shot in enumerate(shots):
        far, z = (times - (t + 0.5)).abs().min(0)
        seen = float(far) <= max(0.5, float(theta.delta_t) / 2)
        shot[:, :height, : clip.shape[3]] = clip[t]
        shot[:, :height, right:] = detail[z] if seen else detail[z] // 3
        if seen:
            centre = (theta.mu_y[z] * H, theta.mu_x[z] * W)
            half = (theta.delta_y[z] * H_D / 2, theta.delta_x[z] * W_D / 2)
            _outline(shot[:, :height, : clip.shape[3]], centre, half, scales, blue)
        shot[:, height + 6 : height + 11] = 230
        for moment in times.clamp(0, T) / T * (width - 2):
            shot[:, height + 4 : height + 13, int(moment) : int(moment) + 2] = blue
        now = int((t + 0.5) / T * (width - 3))
        shot[:, height + 2 : height + 15, now : now + 3] = 0
    return shots.permute(0, 2, 3, 1)


def _outline(
    image: Tensor,
    centre: tuple[Tensor, Tensor],
    half: tuple[Tensor, Tensor],
    scales: tuple[float, float],
    colour: Tensor,
) -> None:
    """Draw a rectangle into an image, in place, moved to the border where it leaves the image.

    Args:
        image: uint8. (3, h, w)
        centre, half: its middle and half of its sides, down and across, in raw pixels.
        scales: of the image, pixels a raw pixel.
        colour: (3, 1, 1)
    """
    ends = [
        sorted(int(min(max(float(c + sign * s) * k, 0), n - 2)) for sign in (-1, 1))
        for c, s, k, n in zip(centre, half, scales, image.shape[1:], strict=True)
    ]
    (top, bottom), (left, right) = ends
    for y in (top, bottom):
        image[:, y : y + 2, left : right + 2] = colour
    for x in (left, right):
        image[:, top : bottom + 2, x : x + 2] = colour
