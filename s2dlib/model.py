"""S2DNet: two samplers and two networks (Fig. 2); any row of the tables, built by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from s2dlib.backbones.build import build_backbone
from s2dlib.config import ModelConfig
from s2dlib.detail import DNet
from s2dlib.hub.mixin import PretrainedMixin
from s2dlib.kernels.motion import find_motion
from s2dlib.presets import PRESETS, variant_of
from s2dlib.sampler import DetailSampler, Extent, Theta, UniformSampler, check_clips, frozen_theta
from s2dlib.synopsis import SNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Output:
    """All of Fig. 2 by name. What a network alone does not make is None."""

    # p-hat * s; p of SNet alone, p-hat of DNet alone; empty before a verdict. (B, N)
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor | None = None  # SNet's; softmax is p. (B, N)
    topk_mask: Tensor | None = None  # s. (B, N)
    theta: Theta | None = None
    context: Tensor | None = None  # m. (B, C_m)
    synopsis_frames: Tensor | None = None  # V, in units of the frames. (B, C, T_S, H_S, W_S)
    detail_volume: Tensor | None = None  # V-hat, in units of the frames. (B, C, T_D, H_D, W_D)
    detail_logits: Tensor | None = None  # DNet's; softmax is p-hat. (B, N)


class S2DNet(PretrainedMixin, nn.Module):
    """Synopsis-to-Detail Network (Sec. 3); rows a1 and a2 of Table 2 lack one of its networks.

    Shared by folder or hub id: from_pretrained, save_pretrained, push_to_hub (hub/mixin.py).
    """

    def __init__(self, config: ModelConfig, snet: SNet | None, dnet: DNet | None) -> None:
        super().__init__()
        self.config = config
        self.record: dict[str, Any] = {}
        self.snet, self.dnet = snet, dnet
        self.synopsis_sampler = UniformSampler(config.synopsis_size)
        self.detail_sampler = DetailSampler(config.detail_size, config.filters)
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1, 1), persistent=False)

    @classmethod
    def from_config(
        cls, config: ModelConfig, snet_weights: str | None = None, dnet_weights: str | None = None
    ) -> Self:
        """A model from its parts; weights as of build_model."""
        snet = dnet = None
        if config.snet is not None:
            backbone = build_backbone(config.snet, snet_weights)
            snet = SNet(backbone, config, synopsis=config.dnet is not None)
        if config.dnet is not None:
            backbone = build_backbone(config.dnet, dnet_weights)
            context_dim = config.context_dim if snet is not None else 0
            dnet = DNet(
                backbone, config.n_classes, context_dim, config.fuse_context, config.dropout
            )
        return cls(config, snet, dnet)

    def normalise(self, frames: Tensor, scale: float) -> Tensor:
        """Per channel, to ImageNet's mean and spread; gray clips become three channels here.

        Filters sum to 1, so this commutes with sampling, and raw frames stay uint8 until then (D5).
        """
        return (frames * scale - self.mean) / self.std

    def frozen_theta(self, extent: Extent) -> Theta:
        """Where a row without sampling looks."""
        c = self.config
        return frozen_theta(extent, c.detail_size, c.frozen_space, c.frozen_zoom, c.frozen_at)

    def forward(
        self, frames: Tensor, n_frames: Tensor | None = None, theta: Theta | None = None
    ) -> Output:
        """Fig. 2, from raw frames to the verdict.

        Args:
            frames: raw frames I, uint8, or float in [0, 1]; gray clips may have one channel.
                (B, 3, T, H, W)
            n_frames: real frames of each clip, the rest is padding; None: T. (B,)
            theta: look here, instead of where SNet says (controls, training of DNet alone).

        Returns:
            Output, every symbol of Fig. 2 by name.

        Raises:
            ValueError: frames or n_frames of wrong shape or range (sampler.check_clips).
        """
        n_frames = check_clips(frames, n_frames)
        out = self.glance(frames, n_frames)
        return out if self.dnet is None else self.look_closely(out, frames, n_frames, theta)

    def glance(self, frames: Tensor, n_frames: Tensor) -> Output:
        """SNet's part: V, p, s, theta and m; scores are p. Without SNet, the frozen theta alone."""
        extent = Extent.of(frames, n_frames)
        if self.snet is None:
            return Output(theta=self.frozen_theta(extent))
        if self.config.start == "motion" and self.snet.theta_head is not None:
            extent = replace(extent, motion=find_motion(frames, n_frames))
        synopsis = self.synopsis_sampler(frames, n_frames)
        normalised = self.normalise(synopsis, scale_of(frames))
        logits, mask, theta, context = self.snet(normalised, extent)
        if self.dnet is None:
            theta = context = None
        return Output(logits.float().softmax(dim=1), logits, mask, theta, context, synopsis)

    def look_closely(
        self, seen: Output, frames: Tensor, n_frames: Tensor, theta: Theta | None = None
    ) -> Output:
        """DNet's part, on what glance gave; arguments as of forward."""
        theta = seen.theta if theta is None else theta
        if self.dnet is None or theta is None:
            raise ValueError("expected a model with DNet, and a theta to look at")
        volume = self.detail_sampler(frames, theta, n_frames)
        logits = self.dnet(self.normalise(volume, scale_of(frames)), seen.context)
        scores = logits.float().softmax(dim=1)
        if seen.topk_mask is not None:  # no candidate's score may underflow to the others' zero
            scores = scores.clamp(min=torch.finfo(scores.dtype).tiny) * seen.topk_mask
        return replace(seen, scores=scores, theta=theta, detail_volume=volume, detail_logits=logits)


def scale_of(frames: Tensor) -> float:
    """What brings raw frames into [0, 1]."""
    return 1.0 if frames.is_floating_point() else 1 / 255


def build_model(
    preset: str | ModelConfig,
    variant: str = "a0",
    *,
    n_classes: int | None = None,
    snet_weights: str | None = None,
    dnet_weights: str | None = None,
) -> S2DNet:
    """A model by the name of a preset and of a row of Table 2, or from a configuration.

    Args:
        preset: a key of PRESETS, or a ModelConfig.
        variant: a row of Table 2, applied to it.
        n_classes: N, in place of the preset's.
        snet_weights, dnet_weights: published weights for the backbones: one of torchvision's names
            or a local file.

    Raises:
        ValueError: no such preset, row or backbone.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        preset = PRESETS[preset].model
    if n_classes is not None:
        preset = replace(preset, n_classes=n_classes, k=min(preset.k, n_classes))
    return S2DNet.from_config(variant_of(preset, variant), snet_weights, dnet_weights)
