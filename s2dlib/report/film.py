"""A film of what DNet sees, beside the clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2dlib.model import Output
from s2dlib.report.figures import BLUE, detail_box, detail_times

GAP, BAR = 8, 16  # pixels between the pictures, and below them


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
    assert out.theta is not None and out.detail_volume is not None
    theta = out.theta.map(lambda v: v[i].detach().cpu().float())
    volume, unit = out.detail_volume[i], 255.0 if frames.is_floating_point() else 1.0
    clip, detail = (_resize(v.detach().cpu().float() * unit, height) for v in (frames, volume))
    (T, H, W), W_clip = frames.shape[1:], clip.shape[3]
    times, right = detail_times(theta, T, volume.shape[1]), W_clip + GAP  # (T_D,)
    width = right + detail.shape[3]
    shots = torch.full((T, 3, height + BAR, width), 255, dtype=torch.uint8)
    blue = (255 * torch.tensor(BLUE)).byte()[:, None, None]
    for t, shot in enumerate(shots):
        far, z = (times - (t + 0.5)).abs().min(0)
        seen = float(far) <= max(0.5, float(theta.delta_t) / 2)
        shot[:, :height, :W_clip] = clip[t]
        shot[:, :height, right:] = detail[z] if seen else detail[z] // 3
        if seen:
            box = detail_box(theta, int(z), (H, W), volume.shape[1:])
            _outline(shot[:, :height, :W_clip], box, (height / H, W_clip / W), blue)
        shot[:, height + 6 : height + 11] = 230
        for moment in times.clamp(0, T) / T * (width - 2):
            shot[:, height + 4 : height + 13, int(moment) : int(moment) + 2] = blue
        now = int((t + 0.5) / T * (width - 3))
        shot[:, height + 2 : height + 15, now : now + 3] = 0
    return shots.permute(0, 2, 3, 1)


def _resize(clip: Tensor, height: int) -> Tensor:
    """(C, T, H, W), C 1 or 3 -> uint8 colour pictures of a height. (T, 3, height, W')"""
    size = (height, round(clip.shape[-1] * height / clip.shape[-2]))
    pictures = F.interpolate(clip.transpose(0, 1).expand(-1, 3, -1, -1), size)
    return pictures.round().clamp(0, 255).byte()


def _outline(
    image: Tensor,
    box: tuple[float, float, float, float],
    scales: tuple[float, float],
    colour: Tensor,
) -> None:
    """Draw a box into an image, in place, moved to the border where it leaves the image.

    Args:
        image: uint8. (3, h, w)
        box: of detail_box: y, x of its middle, height, width; raw pixels.
        scales: of the image, pixels a raw pixel: down, across.
        colour: (3, 1, 1)
    """
    (top, bottom), (left, right) = (
        [int(min(max((middle + half) * k, 0), n - 2)) for half in (-side / 2, side / 2)]
        for middle, side, k, n in zip(box[:2], box[2:], scales, image.shape[1:], strict=True)
    )
    for y in (top, bottom):
        image[:, y : y + 2, left : right + 2] = colour
    for x in (left, right):
        image[:, top : bottom + 2, x : x + 2] = colour
