"""Where DNet looks while it is trained or judged, other than where SNet says; how far that is off.

Axes: B clips, T_D detail frames.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from s2dlib.config import ModelConfig, Size, ThetaSource
from s2dlib.data.loader import Batch
from s2dlib.kernels.motion import find_motion
from s2dlib.model import S2DNet
from s2dlib.sampler import Extent, Theta, anchored_zoom, centred_zoom, grid_centres


def moving_theta(
    frames: Tensor, n_frames: Tensor, config: ModelConfig, jitter: bool, at_random: bool = False
) -> Theta:
    """Windows around what moves, where an attention with start="motion" looks at first.

    What is drawn comes from torch's global generator.

    Args:
        frames, n_frames: as in find_motion.
        config: detail_size, start_zoom, start_shift.
        jitter: in space a zoom times 0.8 to 1.25, and a centre up to a sixth of the window off. In
            time the moment of motion is off by itself.
        at_random: in time a zoom that is log-uniform between the start's and four times that, and a
            centre up to a start's window off; a tenth of the clips keep the whole of it.
    """
    extent, (T_D, H_D, W_D) = Extent.of(frames, n_frames), config.detail_size
    t, y, x = find_motion(frames, n_frames)  # (B,) each
    n, B = n_frames.float(), len(t)  # (B,)
    off = (torch.rand(3, B, device=t.device) * 2 - 1) * jitter  # in [-1, 1]. (3, B)
    s_t = torch.full_like(t, config.start_zoom[0])  # (B,)
    s_yx = config.start_zoom[1] * 1.25 ** off[0]  # (B,)
    t, y, x = (t + config.start_shift) / n, y + s_yx * off[1] / 6, x + s_yx * off[2] / 6
    if at_random:
        by, zoom, whole = torch.rand(3, B, device=t.device)
        t = t + (by * 2 - 1) * s_t
        s_t = torch.where(whole < 0.1, 1.0, (s_t * 4**zoom).clamp(max=1))
    mu_t, delta_t = centred_zoom(t, s_t, n / T_D)
    mu_y, delta_y = centred_zoom(y, s_yx, extent.height / H_D)
    mu_x, delta_x = centred_zoom(x, s_yx, extent.width / W_D)
    space = (v[:, None].expand(-1, T_D) for v in (mu_y, mu_x, delta_y, delta_x))
    return Theta(mu_t, delta_t, *space)


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
    moving = partial(
        moving_theta, batch["frames"], batch["n_frames"], model.config, jitter=model.training
    )
    if source == "random":
        return random_theta(extent, size)
    if source == "frozen":
        return model.frozen_theta(extent)
    if source == "motion":
        return moving()
    if source == "around":
        return moving(at_random=model.training)
    if source == "truth":
        if "truth" not in batch:
            raise ValueError(
                "theta_source='truth': expected clips whose CSV has t and duration; these have no "
                "truth"
            )
        elsewhere = moving() if batch["truth"].shape[1] == 2 else None
        return true_theta(batch["truth"], extent, size, elsewhere)
    return None
