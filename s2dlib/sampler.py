"""Where each network looks: I -> V for SNet, and I, theta -> V-hat for DNet (Sec. 3.1-3.2).

    theta -> grid centres (Eq. 6) -> Gaussian filters (Eq. 7) -> V-hat = G_X G_Y G_T I

Axes: B videos, C colours, T x H x W raw frames, T_D x H_D x W_D detail volume. Clips of different
length share a batch: n_frames (B,) says how many of the T frames of each clip are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2dlib.config import Size
from s2dlib.kernels import band, banded


@dataclass
class Theta:
    """Location and scale of the details, the paper's six parameters (Eq. 4, 6)."""

    mu_t: Tensor  # centre in time, fraction of the clip. (B,)
    delta_t: Tensor  # stride in time, raw frames. (B,)
    mu_y: Tensor  # centre of each detail frame, fraction of the height. (B, T_D)
    mu_x: Tensor  # the same, fraction of the width. (B, T_D)
    delta_y: Tensor  # stride between rows, raw pixels. (B, T_D)
    delta_x: Tensor  # stride between columns, raw pixels. (B, T_D)

    def map(self, function: Callable[[Tensor], Tensor]) -> Theta:
        """Apply one function to each of the six, e.g. to pick a clip: theta.map(lambda v: v[i])."""
        return Theta(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass
class Extent:
    """How long and how large the raw clips of a batch are, and perhaps where they move."""

    n_frames: Tensor  # real frames of each clip. (B,)
    height: int  # pixels
    width: int
    motion: tuple[Tensor, Tensor, Tensor] | None = None  # find_motion's t, y, x. (B,) each

    @classmethod
    def of(cls, frames: Tensor, n_frames: Tensor) -> Extent:
        """Of raw frames I (B, C, T, H, W) of which n_frames (B,) are real."""
        return cls(n_frames, *frames.shape[-2:])


def grid_centres(mu: Tensor, delta: Tensor, n_out: int, n_in: int | Tensor) -> Tensor:
    """p(z) = mu L + (z - n_out / 2 - 0.5) delta for z = 1..n_out (Eq. 6).

    Taken literally, with input r (from 0) lying at r + 0.5: mu = 0.5, delta = 1 and n_out = L is
    the identity grid, and mu is a fraction of the axis (docs/decisions.md, D1).

    Args:
        mu: centre of the grid, fraction of the axis. (...,)
        delta: stride, in frames or pixels. (...,)
        n_out: filters along this axis.
        n_in: length L of the axis; one number, or one for each clip. ()  or (B,)

    Returns:
        Centres, in frames or pixels. (..., n_out)
    """
    steps = torch.arange(n_out, device=mu.device, dtype=mu.dtype) + 0.5 - n_out / 2  # (n_out,)
    return (mu * n_in)[..., None] + steps * delta[..., None]


def gaussian_filters(p: Tensor, n_in: int, valid: Tensor | None = None) -> Tensor:
    """Unit-variance Gaussian filters G around the centres p; every row sums to 1 (Eq. 7).

    A softmax is exp / Z, and stays finite where the whole row lies off-screen (such a row repeats
    the border). Frames beyond a clip's own length weigh nothing.

    Args:
        p: centres along one axis, in frames or pixels. (..., n_out)
        n_in: length of the axis, padding included.
        valid: real length of each clip's axis; None: n_in. (...,)

    Returns:
        G[z, r], the weight of input r in output z. (..., n_out, n_in)
    """
    r = torch.arange(n_in, device=p.device, dtype=p.dtype) + 0.5  # (n_in,)
    log_weights = band.log_gaussian(p[..., None] - r)  # (..., n_out, n_in)
    if valid is not None:
        log_weights = log_weights.masked_fill(r > valid[..., None, None], -torch.inf)
    return band.normalise(log_weights)


def linear_filters(p: Tensor, n_in: int, valid: Tensor | None = None) -> Tensor:
    """Linear interpolation of the two nearest inputs, which the paper compares with (Sec. 3.2).

    Centres off-screen are moved to the border, as the Gaussian rows are. Arguments and result as in
    gaussian_filters.
    """
    r = torch.arange(n_in, device=p.device, dtype=p.dtype) + 0.5  # (n_in,)
    p = p.clamp(min=0.5, max=n_in - 0.5)
    if valid is not None:
        p = torch.minimum(p, (valid[..., None] - 0.5).to(p.dtype))
    return (1 - (p[..., None] - r).abs()).clamp(min=0)


FILTERS = {"gaussian": gaussian_filters, "linear": linear_filters}


def frozen_theta(
    extent: Extent, size: Size, space: str,
    zoom: tuple[float, float] = (1.0, 1.0), at: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Theta:  # fmt: skip
    """Theta that knows nothing of the clip: rows a2, b1, b3, c1 of Table 2 (Sec. 4.3).

    Args:
        size: (T_D, H_D, W_D)
        space: "crop" (centre crop at stride 1, the paper's) or "full" (the whole frame).
        zoom: strides in time and in space are this share of those.
        at: the middle of the window, fractions of time, height and width.

    Returns:
        Frames uniform over the clip, in segment centres, and the same window in each.
    """
    T_D, H_D, W_D = size
    n = extent.n_frames.float()  # (B,)
    mu_t, full = torch.full_like(n, at[0]), n.new_ones(n.shape[0], T_D)  # (B,), (B, T_D)
    delta_y, delta_x = (1.0, 1.0) if space == "crop" else (extent.height / H_D, extent.width / W_D)
    delta_y, delta_x = delta_y * zoom[1], delta_x * zoom[1]
    delta_t = n / T_D * zoom[0]  # (B,)
    return Theta(mu_t, delta_t, full * at[1], full * at[2], full * delta_y, full * delta_x)


def anchored_zoom(anchor: Tensor, zoom: Tensor, full: Tensor | float) -> tuple[Tensor, Tensor]:
    """Shrink the uniform grid towards an anchor: p = a + s (p_uniform - a), in mu and delta.

    The window never leaves the clip, whatever a and s in (0, 1] are (docs/decisions.md, D8).

    Args:
        anchor: a, the point that stays where it is, fraction of the axis. (...,)
        zoom: s; 1 is the uniform grid. (...,)
        full: stride of the uniform grid, L / n_out. () or broadcastable to (...,)

    Returns:
        mu (...,) and delta (...,).
    """
    return anchor + zoom * (0.5 - anchor), zoom * full


def centred_zoom(centre: Tensor, zoom: Tensor, full: Tensor | float) -> tuple[Tensor, Tensor]:
    """Shrink the uniform grid around a centre, moved as far as the window would leave the clip.

    A start that knows where to look needs it; an anchor is not where its window is (D8). Arguments
    as above.
    """
    return torch.minimum(torch.maximum(centre, zoom / 2), 1 - zoom / 2), zoom * full


def uniform_times(n_frames: Tensor, T_S: int) -> Tensor:
    """The frames at the centres of T_S equal segments of each clip. (B,) -> (B, T_S) int64"""
    z = torch.arange(T_S, device=n_frames.device)  # (T_S,)
    return (2 * z + 1) * n_frames[:, None] // (2 * T_S)  # (z + 0.5) n / T_S, exact


class UniformSampler(nn.Module):
    """The synopsis sampler: T_S frames, uniform over the clip, resized to H_S x W_S (Sec. 3.1).

    Frames are the centres of T_S equal segments; the resize is bilinear with antialiasing.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        """frames: raw frames I (B, C, T, H, W); n_frames (B,). Returns V (B, C, T_S, H_S, W_S)."""
        B, C, T, H, W = frames.shape
        T_S, H_S, W_S = self.size
        t = uniform_times(n_frames, T_S)[..., None]  # (B, T_S, 1)
        clip = torch.arange(B, device=t.device)[:, None, None]
        places = (clip * C + torch.arange(C, device=t.device)) * T + t  # (B, T_S, C)
        picked = frames.flatten(0, 2).index_select(0, places.flatten())  # not pixel by pixel
        images = picked.view(B * T_S, C, H, W).float()
        if images.shape[-2:] != (H_S, W_S):
            images = F.interpolate(images, (H_S, W_S), mode="bilinear", antialias=True)
        return images.view(B, T_S, C, H_S, W_S).transpose(1, 2)


class DetailSampler(nn.Module):
    """The detail sampler: V-hat = G_X G_Y G_T I, three 1-D filterings, time first (Sec. 3.2).

    Attributes:
        algorithm: "dense" is Eq. 7 as written; "banded" reads only what the Gaussians reach
            (kernels/); "auto" takes the faster. They agree to 1e-6 of the largest value.
    """

    def __init__(self, size: Size, filters: str = "gaussian", algorithm: str = "auto") -> None:
        super().__init__()
        allowed = ("auto", "dense", "banded") if filters == "gaussian" else ("auto", "dense")
        if algorithm not in allowed:
            raise ValueError(
                f"algorithm must be one of {allowed} with {filters} filters, got {algorithm!r}"
            )
        self.size, self.algorithm = size, algorithm
        self.filters = FILTERS[filters]

    def forward(self, frames: Tensor, theta: Theta, n_frames: Tensor | None = None) -> Tensor:
        """Sample the detail volume, in float32 also under autocast.

        Args:
            frames: raw frames I, uint8 or float. (B, C, T, H, W)
            theta: where to look.
            n_frames: real frames of each clip; None: T. (B,)

        Returns:
            V-hat, in the units of the frames. (B, C, T_D, H_D, W_D)
        """
        (T, H, W), (T_D, H_D, W_D) = frames.shape[-3:], self.size
        theta = theta.map(torch.Tensor.float)
        n = torch.full_like(theta.mu_t, T) if n_frames is None else n_frames.to(theta.mu_t)
        with torch.autocast(frames.device.type, enabled=False):
            p_t = grid_centres(theta.mu_t, theta.delta_t, T_D, n)  # (B, T_D)
            p_y = grid_centres(theta.mu_y, theta.delta_y, H_D, H)  # (B, T_D, H_D)
            p_x = grid_centres(theta.mu_x, theta.delta_x, W_D, W)  # (B, T_D, W_D)
            may = self.filters is gaussian_filters and self.algorithm != "dense"
            if may and (self.algorithm == "banded" or banded.pays(frames)):
                return banded.BandedVolume.apply(frames, p_t, p_y, p_x, n)
            G_t = self.filters(p_t, T, n)[:, None]  # (B, 1, T_D, T)
            G_y = self.filters(p_y, H)[:, None]  # (B, 1, T_D, H_D, H)
            G_x = self.filters(p_x, W)[:, None]  # (B, 1, T_D, W_D, W)
            volume = (G_t @ frames.float().flatten(3)).unflatten(3, (H, W))  # (B, C, T_D, H, W)
            return G_y @ volume @ G_x.transpose(-1, -2)  # (B, C, T_D, H_D, W_D)


def check_clips(frames: Tensor, n_frames: Tensor | None) -> Tensor:
    """The number of real frames of each clip, on the device of the frames. (B,)

    Values on the CPU are checked. On a GPU that would stall the queue: lengths are moved into
    [1, T], and float frames are taken as they are.

    Raises:
        ValueError: frames are not (B, 1 or 3, T, H, W), or neither uint8 nor float in [0, 1], a
            batch or clip is empty, or a length does not lie in [1, T].
    """
    if frames.ndim != 5 or frames.shape[1] not in (1, 3) or 0 in frames.shape:
        raise ValueError(
            f"frames must be (B, 3, T, H, W), or (B, 1, T, H, W) for gray clips, with no size 0, "
            f"got {tuple(frames.shape)}"
        )
    if frames.dtype != torch.uint8:  # 0..255 as float, or normalised, would pass for a video
        low, high = frames.detach().aminmax() if frames.device.type == "cpu" else (0.0, 1.0)
        if not frames.is_floating_point() or not -1e-3 <= low <= high <= 1 + 1e-3:
            raise ValueError(
                f"frames must be uint8, or float in [0, 1] and not normalised (the model does "
                f"that), got {frames.dtype} from {low:.4g} to {high:.4g}; divide 0..255 by 255"
            )
    B, T = frames.shape[0], frames.shape[2]
    if n_frames is None:
        return torch.full((B,), T, device=frames.device)
    if n_frames.shape != (B,):
        raise ValueError(f"n_frames must hold {B} lengths, one a clip, got {tuple(n_frames.shape)}")
    if torch.compiler.is_exporting():  # a graph cannot raise on values (export.py)
        return n_frames
    if n_frames.device.type != "cpu":
        return n_frames.to(frames.device).clamp(1, T)
    if not (1 <= n_frames.min() and n_frames.max() <= T):
        raise ValueError(f"n_frames must lie in [1, T={T}], got {n_frames.tolist()}")
    return n_frames.to(frames.device, non_blocking=True)


def log_stride_bounds(full: Tensor | float) -> tuple[float | Tensor, float]:
    """Bounds of log(delta / full): one frame or pixel (or full, if less), and twice full."""
    largest = math.log(2.0)
    if isinstance(full, Tensor):
        return -full.clamp(min=1).log(), largest
    return -math.log(max(full, 1.0)), largest
