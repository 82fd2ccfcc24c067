"""Where DNet looks while it is trained or judged, other than where SNet says; how far that is off.

Axes: B clips, T_D detail frames.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from s2dlib.config import Size, ThetaSource
from s2dlib.data.loader import Batch
from s2dlib.model import S2DNet
from s2dlib.sampler import Extent, Theta, anchored_zoom, centred_zoom, frozen_theta, grid_centres

MOTION_CELLS = 40  # cells a side, over whose means motion is seen
MOTION_BLUR = 5  # cells, of the window whose mean motion is compared


@torch.no_grad()
def moving_place(frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
    """The place of a clip that moves most, a start that needs no label: rows, columns. (B,) each

    Mean absolute difference of successive frames, on means over cells of 1/40 of the side, then the
    largest mean over 5 x 5 cells. Deviation over time instead finds what moves slowly, as a
    body does, and differences of frames further apart find it, too.

    Args:
        frames: raw frames I. (B, C, T, H, W)
        n_frames: real frames of each clip; differences with padding count nothing. (B,)

    Returns:
        Fractions of the height and of the width.
    """
    B, _, T = frames.shape[:3]
    # Every other pixel and one colour: means over cells need no more, and it takes a tenth.
    gray = frames[:, 0, :, ::2, ::2].float()  # (B, T, H / 2, W / 2)
    cells = F.adaptive_avg_pool2d(gray, MOTION_CELLS)  # (B, T, cells, cells)
    real = torch.arange(1, T, device=frames.device) < n_frames[:, None]  # (B, T - 1)
    change = (cells.diff(dim=1).abs() * real[..., None, None]).sum(1, keepdim=True)
    blurred = F.avg_pool2d(
        change, MOTION_BLUR, 1, MOTION_BLUR // 2, count_include_pad=False
    )  # (B, 1, cells, cells)
    place = blurred.flatten(1).argmax(1)  # (B,)
    y, x = place // MOTION_CELLS, place % MOTION_CELLS
    return (y + 0.5) / MOTION_CELLS, (x + 0.5) / MOTION_CELLS


def moving_theta(frames: Tensor, n_frames: Tensor, size: Size, jitter: bool = True) -> Theta:
    """Small windows around the place that moves most: DNet learns to read details.

    Args:
        frames, n_frames: as in moving_place.
        size: (T_D, H_D, W_D)
        jitter: draw, from torch's global generator: s in space from [0.2, 0.4], log-uniform; the
            centre up to a quarter of the window off that place; time as in random_theta. Else
            s = 0.28, there, and frames uniform over the clip.
    """
    extent, (T_D, H_D, W_D) = Extent.of(frames, n_frames), size
    theta = random_theta(extent, size) if jitter else frozen_theta(extent, size, "full")
    y, x = moving_place(frames, n_frames)  # (B,) each
    s = 0.2 * 2 ** (torch.rand_like(y) if jitter else torch.full_like(y, 0.5))  # (B,)
    off = (torch.rand(2, *y.shape, device=y.device) - 0.5) / 2 * jitter  # (2, B)
    mu_y, delta_y = centred_zoom(y + s * off[0], s, extent.height / H_D)
    mu_x, delta_x = centred_zoom(x + s * off[1], s, extent.width / W_D)
    mu_y, mu_x, delta_y, delta_x = (
        v[:, None].expand(-1, T_D) for v in (mu_y, mu_x, delta_y, delta_x)
    )
    return replace(theta, mu_y=mu_y, mu_x=mu_x, delta_y=delta_y, delta_x=delta_x)


def random_theta(extent: Extent, size: Size) -> Theta:
    """Windows at random, knowing nothing of the clip: DNet learns to read at any zoom (D9).

    In time s is log-uniform in [1/4, 1], in space in [0.45, 1]; half of the clips keep the uniform
    grid on either axis. Drawn from torch's global generator.

    Args: as in frozen_theta.
    """
    T_D, H_D, W_D = size
    n = extent.n_frames.float()  # (B,)
    B = len(n)

    def zoom(smallest: float) -> Tensor:
        s = smallest ** torch.rand(B, device=n.device)  # (B,)
        return torch.where(torch.rand(B, device=n.device) < 0.5, torch.ones_like(s), s)

    s_t, s_yx = zoom(0.25), zoom(0.45)
    a_t, a_y, a_x = torch.rand(3, B, device=n.device)
    mu_t, delta_t = anchored_zoom(a_t, s_t, n / T_D)
    mu_y, delta_y = anchored_zoom(a_y, s_yx, extent.height / H_D)
    mu_x, delta_x = anchored_zoom(a_x, s_yx, extent.width / W_D)
    space = [v[:, None].expand(B, T_D) for v in (mu_y, mu_x, delta_y, delta_x)]
    return Theta(mu_t, delta_t, *space)


def true_theta(truth: Tensor, extent: Extent, size: Size, elsewhere: Theta | None = None) -> Theta:
    """A window of twice the detail's size and duration around it: the ceiling of what theta can do.

    Strides are at least one frame or pixel, and at most full coverage.

    Args:
        truth: t, duration (raw frames), size, y, x (raw pixels) of each clip's detail (B, 5), or
            the first two of them (B, 2).
        extent, size: as in frozen_theta.
        elsewhere: whose place is taken where the truth tells none.

    Raises:
        ValueError: no place is known.
    """
    T_D, H_D, W_D = size
    n = extent.n_frames.float()  # (B,)
    t, duration = truth[:, :2].to(n).unbind(1)  # (B,) each
    delta_t = torch.minimum((2 * duration / T_D).clamp(min=1), n / T_D)
    if truth.shape[1] == 2:
        if elsewhere is None:
            raise ValueError("expected where the details are, or a theta that says it; got t alone")
        return replace(elsewhere, mu_t=t / n, delta_t=delta_t)
    side, y, x = truth[:, 2:].to(n).unbind(1)  # (B,) each
    delta_y = (2 * side / H_D).clamp(1, max(1.0, extent.height / H_D))
    delta_x = (2 * side / W_D).clamp(1, max(1.0, extent.width / W_D))
    space = [
        v[:, None].expand(-1, T_D) for v in (y / extent.height, x / extent.width, delta_y, delta_x)
    ]
    return Theta(t / n, delta_t, *space)


def nearest_detail_frame(theta: Theta, moment: Tensor, n_frames: Tensor, T_D: int) -> Tensor:
    """The detail frame z nearest to a moment (raw frames) of each clip. (B,) -> (B, 1)"""
    p_t = grid_centres(theta.mu_t, theta.delta_t, T_D, n_frames)  # (B, T_D)
    return (p_t - moment[:, None]).abs().argmin(dim=1, keepdim=True)


def distance_to_truth(theta: Theta, truth: Tensor, extent: Extent, size: Size) -> dict[str, Tensor]:
    """How far the sampled volume is from the detail, clip by clip.

    Args: as in true_theta.

    Returns:
        Each (B,): distance_t = |mu_t T - t| (raw frames); iou_t, of the sampled span and the
        detail's duration; and, where the truth tells a place, distance_yx, between the centres (raw
        pixels); iou_yx, of the sampled window and the detail's square. Space is that of the detail
        frame nearest to the true moment.
    """
    T_D, H_D, W_D = size
    n = extent.n_frames.to(theta.mu_t)
    t, duration = truth[:, :2].to(n).unbind(1)  # (B,) each
    both_t = _overlap(theta.mu_t * n, T_D * theta.delta_t, t, duration)
    in_time = {
        "distance_t": (theta.mu_t * n - t).abs(),
        "iou_t": both_t / (T_D * theta.delta_t + duration - both_t),
    }
    if truth.shape[1] == 2:
        return in_time
    side, y, x = truth[:, 2:].to(n).unbind(1)  # (B,) each
    z = nearest_detail_frame(theta, t, n, T_D)  # (B, 1)
    names = ("mu_y", "mu_x", "delta_y", "delta_x")
    mu_y, mu_x, delta_y, delta_x = (getattr(theta, name).gather(1, z)[:, 0] for name in names)
    at_y, at_x = mu_y * extent.height, mu_x * extent.width

    both_yx = _overlap(at_y, H_D * delta_y, y, side) * _overlap(at_x, W_D * delta_x, x, side)
    return in_time | {
        "distance_yx": torch.hypot(at_y - y, at_x - x),
        "iou_yx": both_yx / (H_D * delta_y * W_D * delta_x + side**2 - both_yx),
    }


def _overlap(a: Tensor, length_a: Tensor, b: Tensor, length_b: Tensor) -> Tensor:
    """Of two intervals, given by their middles. (B,) each"""
    low = torch.maximum(a - length_a / 2, b - length_b / 2)
    high = torch.minimum(a + length_a / 2, b + length_b / 2)
    return (high - low).clamp(min=0)


def theta_from_source(model: S2DNet, batch: Batch, source: ThetaSource) -> Theta | None:
    """Where DNet looks, on the device of the batch; None: where the model says.

    Raises:
        ValueError: the truth is asked for, of clips that have none.
    """
    extent, size = Extent.of(batch["frames"], batch["n_frames"]), model.config.detail_size
    if source == "random":
        return random_theta(extent, size)
    if source == "frozen":
        return model.frozen_theta(extent)
    if source == "motion":
        return moving_theta(batch["frames"], batch["n_frames"], size, model.training)
    if source == "truth":
        if "truth" not in batch:
            raise ValueError(
                "theta_source='truth': expected clips whose CSV has t and duration; these have no "
                "truth"
            )
        elsewhere = None
        if batch["truth"].shape[1] == 2:
            elsewhere = moving_theta(batch["frames"], batch["n_frames"], size, model.training)
        return true_theta(batch["truth"], extent, size, elsewhere)
    return None
