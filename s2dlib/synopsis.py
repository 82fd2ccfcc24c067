"""The Synopsis Network: V -> e -> p, s, theta, m (Sec. 3.1, Eq. 1-5, Fig. 3a-b).

Axes: B videos, C_S channels, T_S x h x w positions of the features e, N classes, T_D detail frames.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from s2dlib.backbones.base import Backbone
from s2dlib.config import ModelConfig, Size
from s2dlib.sampler import (
    Extent,
    Theta,
    anchored_zoom,
    centred_zoom,
    frozen_theta,
    grid_centres,
    log_stride_bounds,
)


def topk_mask(logits: Tensor, k: int) -> Tensor:
    """s: ones for the k most probable actions, zeros for the rest (footnote 3). (B, N) -> (B, N)"""
    return torch.zeros_like(logits).scatter(1, logits.topk(k, dim=1).indices, 1.0)


def expand_like(vector: Tensor, features: Tensor) -> Tensor:
    """E(.): repeat a vector over time and space. (B, N), (B, C, T, h, w) -> (B, N, T, h, w)"""
    return vector[:, :, None, None, None].expand(-1, -1, *features.shape[2:])


class FcHead(nn.Module):
    """theta by fully-connected layers over all positions, as the paper words it (Sec. 3.1).

    mu = (1 + tanh raw) / 2. The stride is full exp(raw), bounded in log space between one frame or
    pixel and twice full coverage: unbounded, it runs away (docs/decisions.md, D2).
    """

    def __init__(self, config: ModelConfig, features: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.detail_size = T_D, _, _ = config.detail_size
        n = math.prod(features)
        self.time = nn.Linear(n, 2) if config.sample_time else None
        self.space = nn.Linear(n, 4 * T_D) if config.sample_space else None
        for layer in filter(None, (self.time, self.space)):  # start at the uniform grid
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)

    def zooms(self) -> list[nn.Parameter]:
        """The weights of the strides alone, which a recipe may hold: none, they share layers."""
        return []

    def forward(self, h: Tensor, frozen: Theta, extent: Extent) -> Theta:
        """h: features of f_theta's convolutions. (B, C, T_S, h, w). Returns theta."""
        (T_D, H_D, W_D), n = self.detail_size, extent.n_frames
        h = h.flatten(1)
        if self.time is not None:
            mu, delta = self.time(h).float().unbind(1)  # (B,) each
            frozen = replace(frozen, mu_t=squash(mu), delta_t=bounded_stride(delta, n / T_D))
        if self.space is not None:
            mu_y, mu_x, delta_y, delta_x = self.space(h).float().unflatten(1, (4, T_D)).unbind(1)
            frozen = replace(
                frozen,
                mu_y=squash(mu_y),
                mu_x=squash(mu_x),
                delta_y=bounded_stride(delta_y, extent.height / H_D),
                delta_x=bounded_stride(delta_x, extent.width / W_D),
            )
        return frozen


def squash(raw: Tensor) -> Tensor:
    """A centre in (0, 1), the middle at raw = 0. (...,) -> (...,)"""
    return (1 + raw.tanh()) / 2


def bounded_stride(raw: Tensor, full: Tensor | float) -> Tensor:
    """A stride of `full` at raw = 0, growing as exp(raw) there, and bounded (D2). (...,)"""
    smallest, largest = log_stride_bounds(full)
    limit = torch.where(raw < 0, smallest, largest).abs().clamp(min=1e-6)  # in log space
    return full * torch.exp(limit * torch.tanh(raw / limit))


class AttentionHead(nn.Module):
    """theta by attention over the positions of e, which keeps where things are (D8).

    The centres are soft-argmaxes, over T_S frames for time and over h x w for each frame, carried
    over to the detail frames by interpolation in time; the zooms come from pooled features. Both
    are read as an anchored zoom, so that the window never leaves the clip: six parameters, as in
    Eq. 4. Where extent.motion is given, the attention starts there, and its windows are centred.
    """

    SHARPNESS = 4.0  # of the soft-argmax, so that small weights already move it
    SPREAD_T, SPREAD_YX = 3.0, 1.0  # of a start on motion, in positions of e

    def __init__(self, config: ModelConfig, features: tuple[int, int, int, int]) -> None:
        super().__init__()
        C = features[0]
        self.detail_size = config.detail_size
        # Zooms at the first step; 1 is the uniform grid, at which an anchor moves nothing.
        self.start_zoom, self.start_shift = config.start_zoom, config.start_shift
        self.time_score = nn.Linear(2 * C, 1, bias=False) if config.sample_time else None
        # What changes over a clip is small beside what tells clips apart, and it is all that an
        # attention over time can see: it is brought to unit variance.
        self.time_norm = nn.BatchNorm1d(2 * C, affine=False) if config.sample_time else None
        self.time_zoom = nn.Linear(2 * C, 1) if config.sample_time else None
        self.space_score = nn.Linear(C, 1, bias=False) if config.sample_space else None
        self.space_zoom = nn.Linear(2 * C, 2) if config.sample_space else None
        for layer in (self.time_score, self.time_zoom, self.space_score, self.space_zoom):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.time_zoom, self.space_zoom):
            if layer is not None:
                nn.init.zeros_(layer.bias)

    def zooms(self) -> list[nn.Parameter]:
        """The weights of the strides alone, which a recipe may hold (TrainConfig.hold_zoom)."""
        layers = [layer for layer in (self.time_zoom, self.space_zoom) if layer is not None]
        return [p for layer in layers for p in layer.parameters()]

    def forward(self, h: Tensor, frozen: Theta, extent: Extent) -> Theta:
        """h: features of f_theta's convolutions. (B, C, T_S, h, w). Returns theta."""
        (T_D, H_D, W_D), n = self.detail_size, extent.n_frames
        pooled = torch.cat((h.mean((3, 4)), h.amax((3, 4))), dim=1).transpose(1, 2)  # (B, T_S, 2C)
        theta, motion = frozen, extent.motion
        window = anchored_zoom if motion is None else centred_zoom
        if self.time_score and self.time_norm and self.time_zoom:
            change = pooled - pooled.mean(dim=1, keepdim=True)  # (B, T_S, 2C)
            change = self.time_norm(change.flatten(0, 1)).view_as(change)
            score = self.SHARPNESS * self.time_score(change)  # (B, T_S, 1)
            if motion is not None:
                score = score + bump(motion[0] / n, h.shape[2], self.SPREAD_T)[..., None]
            weights = score.float().softmax(dim=1)  # (B, T_S, 1)
            anchor = (weights[..., 0] * centres_of(h.shape[2], h)).sum(1)  # (B,)
            anchor = anchor if motion is None else anchor + self.start_shift / n
            raw = self.time_zoom((pooled * weights).sum(1))[:, 0].float()  # (B,)
            zoom = bounded_zoom(raw, n / T_D, self.start_zoom[0])
            mu_t, delta_t = window(anchor, zoom, n / T_D)
            theta = replace(theta, mu_t=mu_t, delta_t=delta_t)
        if self.space_score and self.space_zoom:
            score = self.SHARPNESS * self.space_score(h.movedim(1, -1))[..., 0].float()
            if motion is not None:  # score: (B, T_S, h, w)
                at_y = bump(motion[1], h.shape[3], self.SPREAD_YX)  # (B, h)
                at_x = bump(motion[2], h.shape[4], self.SPREAD_YX)  # (B, w)
                score = score + (at_y[..., None] + at_x[:, None])[:, None]
            weights = score.flatten(2).softmax(-1).view_as(score)
            a_y = (weights.sum(3) * centres_of(h.shape[3], h)).sum(2)  # (B, T_S)
            a_x = (weights.sum(2) * centres_of(h.shape[4], h)).sum(2)  # (B, T_S)
            raw_y, raw_x = self.space_zoom(pooled).float().unbind(2)  # (B, T_S)
            at = grid_centres(theta.mu_t, theta.delta_t, T_D, n).detach() / n[:, None]  # (B, T_D)
            a_y, a_x, raw_y, raw_x = (interpolate(v, at) for v in (a_y, a_x, raw_y, raw_x))
            zoom_y = bounded_zoom(raw_y, extent.height / H_D, self.start_zoom[1])
            zoom_x = bounded_zoom(raw_x, extent.width / W_D, self.start_zoom[1])
            mu_y, delta_y = window(a_y, zoom_y, extent.height / H_D)
            mu_x, delta_x = window(a_x, zoom_x, extent.width / W_D)
            theta = replace(theta, mu_y=mu_y, mu_x=mu_x, delta_y=delta_y, delta_x=delta_x)
        return theta


def bounded_zoom(raw: Tensor, full: Tensor | float, start: float) -> Tensor:
    """s in [one frame or pixel / full, 1], equal to `start` or more at raw = 0. (...,) -> (...,)"""
    if not isinstance(full, Tensor):  # on the device of raw, without a copy from the CPU
        full = torch.full((1,), full, dtype=raw.dtype, device=raw.device)
    smallest = 1 / full.clamp(min=1)
    smallest = smallest.view(-1, *[1] * (raw.ndim - 1))  # (B, 1...) or (1, 1...)
    share = ((start - smallest) / (1 - smallest).clamp(min=1e-6)).clamp(1e-3, 1 - 1e-3)
    return smallest + (1 - smallest) * torch.sigmoid(raw + torch.logit(share))


def bump(centre: Tensor, n: int, spread: float) -> Tensor:
    """Logits of n positions, highest at a fraction of the axis, `spread` wide. (B,) -> (B, n)"""
    return -0.5 * ((centres_of(n, centre) - centre[:, None]) * n / spread) ** 2


def centres_of(n: int, like: Tensor) -> Tensor:
    """Centres of n equal segments of (0, 1). (n,)"""
    return (torch.arange(n, device=like.device) + 0.5) / n


def interpolate(values: Tensor, at: Tensor) -> Tensor:
    """Read values of T_S segment centres at other times, linearly; the ends are held.

    Args:
        values: one a frame of V. (B, T_S)
        at: times, fractions of the clip. (B, T_D)

    Returns:
        (B, T_D)
    """
    last = values.shape[1] - 1
    position = (at * values.shape[1] - 0.5).clamp(0, last)  # (B, T_D)
    left = position.nan_to_num().floor().long()  # NaN is for the loss to show, not an index
    right = (left + 1).clamp(max=last)
    return torch.lerp(values.gather(1, left), values.gather(1, right), position - left)


HEADS: dict[str, type[FcHead | AttentionHead]] = {"fc": FcHead, "attention": AttentionHead}


class ThetaHead(nn.Module):
    """f_theta: 1x1x1 and 3x3x3 convolutions over [e, E(s)], then two branches (Eq. 4, Fig. 3a)."""

    def __init__(self, config: ModelConfig, features: tuple[int, int, int, int]) -> None:
        super().__init__()
        C_S, T_S, h, w = features
        C = config.theta_dim
        self.convolutions = nn.Sequential(
            nn.Conv3d(C_S + config.n_classes, C, 1, bias=False),
            nn.BatchNorm3d(C),
            nn.ReLU(inplace=True),
            nn.Conv3d(C, C, 3, padding=1, bias=False),
            nn.BatchNorm3d(C),
            nn.ReLU(inplace=True),
        )
        self.branches: FcHead | AttentionHead = HEADS[config.theta_head](config, (C, T_S, h, w))

    def forward(self, features: Tensor, mask: Tensor, frozen: Theta, extent: Extent) -> Theta:
        """features: e (B, C_S, T_S, h, w); mask: s (B, N); frozen: theta where not learned.

        In the precision of the weights also under autocast: in bfloat16, whose step below 1 is
        1/256, a centre would lie on a grid of about one raw pixel (authors' release: float32, too).
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(next(self.parameters()).dtype)
            h = self.convolutions(torch.cat((features, expand_like(mask, features)), dim=1))
            return self.branches(h, frozen, extent)


class ContextHead(nn.Module):
    """f_m: a fully-connected layer with ReLU and BN over [GAP(e), s] (Eq. 5, Fig. 3b)."""

    def __init__(self, in_channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels + config.n_classes, config.context_dim)
        self.bn = nn.BatchNorm1d(config.context_dim)

    def forward(self, pooled: Tensor, mask: Tensor) -> Tensor:
        """pooled: GAP(e) (B, C_S); mask: s (B, N). Returns m. (B, C_m)"""
        return self.bn(self.fc(torch.cat((pooled, mask), dim=1)).relu())


class SNet(nn.Module):
    """Glance: likely actions, and a synopsis of where and how to look for details (Sec. 3.1).

    `synopsis` False leaves out f_theta and f_m: SNet alone, row a1.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, synopsis: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(backbone.pooled_channels, config.n_classes)  # h_s
        self.theta_head = self.context_head = None
        if synopsis:
            self.context_head = ContextHead(backbone.out_channels, config)
            if config.sample_time or config.sample_space:
                self.theta_head = ThetaHead(config, feature_shape(backbone, config.synopsis_size))

    def forward(
        self, synopsis_frames: Tensor, extent: Extent
    ) -> tuple[Tensor, Tensor, Theta | None, Tensor | None]:
        """Eq. 1-5.

        Args:
            synopsis_frames: V, normalised. (B, 3, T_S, H_S, W_S)
            extent: of the raw clips, which bounds theta.

        Returns:
            logits, whose softmax is p (B, N); s (B, N); theta; m (B, C_m). The last two are None
            for SNet alone.
        """
        features = self.backbone(synopsis_frames)  # e (B, C_S, T_S, h, w), Eq. 1
        pooled = features.mean((2, 3, 4))  # GAP(e) (B, C_S)
        logits = self.classifier(self.dropout(self.backbone.neck(pooled)))  # Eq. 2
        mask = topk_mask(logits, self.config.k)
        if self.context_head is None:
            return logits, mask, None, None
        context = self.context_head(self.dropout(pooled), mask)  # Eq. 5
        c = self.config
        theta = frozen_theta(extent, c.detail_size, c.frozen_space, c.frozen_zoom, c.frozen_at)
        if self.theta_head is not None:  # Eq. 4
            e = features.detach() if c.detach_theta else features
            theta = self.theta_head(e, mask, theta, extent)
        return logits, mask, theta, context


@torch.no_grad()
def feature_shape(backbone: Backbone, size: Size) -> tuple[int, int, int, int]:
    """C_S, T_S, h, w of the features that a backbone makes of V, by asking it once."""
    was_training = backbone.training
    backbone.eval()  # or the batch norms would learn from zeros
    _, C_S, T_S, h, w = backbone(torch.zeros(1, 3, *size)).shape
    backbone.train(was_training)
    return C_S, T_S, h, w
