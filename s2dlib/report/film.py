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
    blue = (255 * torch.tensor(BLUE)).byte()
    shots = torch.full((T, 3, height + BAR, width), 255, dtype=torch.uint8)
    shots[:, :, height + 6 : height + 11] = 230
    for moment in (times.clamp(0, T) / T * (width - 2)).int():
        shots[:, :, height + 4 : height + 13, moment : moment + 2] = blue[:, None, None]
    for t, shot in enumerate(shots):
        far, z = (times - (t + 0.5)).abs().min(0)
        seen = float(far) <= max(0.5, float(theta.delta_t) / 2)
        shot[:, :height, :W_clip] = clip[t]
        shot[:, :height, right:] = detail[z] if seen else detail[z] // 3
        if seen:
            box = torch.tensor(detail_box(theta, int(z), (H, W), volume.shape[1:]))  # (4,)
            box *= torch.tensor([W_clip / W, height / H] * 2)
            shot[:, :height, :W_clip] = _outlined(clip[t], box, blue)
        now = int((t + 0.5) / T * (width - 3))
        shot[:, height + 2 : height + 15, now : now + 3] = 0
    return shots.permute(0, 2, 3, 1)


def _outlined(picture: Tensor, box: Tensor, colour: Tensor) -> Tensor:
    """A picture with a box drawn on it, or on its edge. (3, H, W) and (4,) -> (3, H, W)

    box: left, top, right, bottom.
    """
    H, W = picture.shape[1:]
    inside = box.clamp(min=0).minimum(torch.tensor([W - 2, H - 2] * 2)).int()
    left, top, right, bottom = (inside + torch.tensor([0, 0, 2, 2])).tolist()  # lines are 2 wide
    line = torch.zeros(H, W, dtype=torch.bool)
    line[top:bottom, left:right] = True
    line[top + 2 : bottom - 2, left + 2 : right - 2] = False
    return torch.where(line, colour[:, None, None], picture)


def _resize(clip: Tensor, height: int) -> Tensor:
    """(C, T, H, W), C 1 or 3 -> uint8 colour pictures of a height. (T, 3, height, W')"""
    size = (height, round(clip.shape[-1] * height / clip.shape[-2]))
    pictures = F.interpolate(clip.transpose(0, 1).expand(-1, 3, -1, -1), size)
    return pictures.round().clamp(0, 255).byte()
