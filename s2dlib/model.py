"""S2DNet: two samplers and two networks (Fig. 2); any row of the tables, built by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2dlib.backbones import Backbone, mobilenet_v2, resnet50, tiny
from s2dlib.config import PRESETS, ModelConfig, variant_of
from s2dlib.detail import DNet
from s2dlib.sampler import DetailSampler, Theta, UniformSampler, check_clips, frozen_theta
from s2dlib.swin import swin3d_t
from s2dlib.synopsis import SNet
from s2dlib.tdn import tdn_resnet50
from s2dlib.x3d import x3d

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Output:
    """All of Fig. 2 by name. What a network alone does not make is None."""

    scores: Tensor | None  # p-hat * s; p of SNet alone, p-hat of DNet alone. (B, N)
    logits: Tensor | None  # SNet's; softmax is p. (B, N)
    topk_mask: Tensor | None  # s. (B, N)
    theta: Theta | None
    context: Tensor | None  # m. (B, C_m)
    synopsis_frames: Tensor | None  # V, in the units of the frames. (B, C, T_S, H_S, W_S)
    detail_volume: Tensor | None  # V-hat, in the units of the frames. (B, C, T_D, H_D, W_D)
    detail_logits: Tensor | None  # DNet's; softmax is p-hat. (B, N)


class S2DNet(nn.Module):
    """Synopsis-to-Detail Network (Sec. 3); rows a1 and a2 of Table 2 lack one of its networks."""

    def __init__(self, config: ModelConfig, snet: SNet | None, dnet: DNet | None) -> None:
        super().__init__()
        self.config = config
        self.snet, self.dnet = snet, dnet
        self.synopsis_sampler = UniformSampler(config.synopsis_size)
        self.detail_sampler = DetailSampler(config.detail_size, config.filters)
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1, 1), persistent=False)

    def normalise(self, frames: Tensor, scale: float) -> Tensor:
        """Per channel, to ImageNet's mean and spread; gray clips become three channels here.

        Filters sum to 1, so this commutes with sampling, and raw frames stay uint8 until then (D5).
        """
        return (frames * scale - self.mean) / self.std

    def frozen_theta(self, n_frames: Tensor, height: int, width: int) -> Theta:
        """Where a row without sampling looks. n_frames: (B,)"""
        how = (self.config.frozen_space, self.config.frozen_zoom)
        return frozen_theta(n_frames, height, width, self.config.detail_size, *how)

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
        extent = (n_frames, *frames.shape[-2:])
        if self.snet is None:
            return Output(None, None, None, self.frozen_theta(*extent), None, None, None, None)
        synopsis = self.synopsis_sampler(frames, n_frames)
        normalised = self.normalise(synopsis, scale_of(frames))
        logits, mask, theta, context = self.snet(normalised, extent)
        if self.dnet is None:
            theta = context = None
        p = logits.float().softmax(dim=1)
        return Output(p, logits, mask, theta, context, synopsis, None, None)

    def look_closely(
        self, seen: Output, frames: Tensor, n_frames: Tensor, theta: Theta | None = None
    ) -> Output:
        """DNet's part, on what glance gave; arguments as of forward."""
        theta = seen.theta if theta is None else theta
        volume = self.detail_sampler(frames, theta, n_frames)
        logits = self.dnet(self.normalise(volume, scale_of(frames)), seen.context)
        scores = logits.float().softmax(dim=1)
        if seen.topk_mask is not None:  # no candidate's score may underflow to the others' zero
            scores = scores.clamp(min=torch.finfo(scores.dtype).tiny) * seen.topk_mask
        return replace(seen, scores=scores, theta=theta, detail_volume=volume, detail_logits=logits)


def scale_of(frames: Tensor) -> float:
    """What brings raw frames into [0, 1]."""
    return 1.0 if frames.is_floating_point() else 1 / 255


BACKBONES = {
    "mobilenet_v2": mobilenet_v2,
    "resnet50": resnet50,
    "x3d-s": lambda weights: x3d(2.0, 2.2, weights),  # S and M differ in their clips alone
    "x3d-m": lambda weights: x3d(2.0, 2.2, weights),
    "x3d-xl": lambda weights: x3d(2.9, 5.0, weights),
    "tdn-r50": tdn_resnet50,
    "swin3d-t": swin3d_t,
    "tiny-s": lambda weights: tiny((16, 32, 48), (2, 2, 1)),
    "tiny-d": lambda weights: tiny((16, 32, 48, 64), (2, 2, 2, 1)),
}


def build_backbone(name: str, weights: str | None = None) -> Backbone:
    """A backbone by name, one of BACKBONES, with published weights.

    Args:
        weights: of MobileNetV2, ResNet-50 and Swin-T as load_torchvision takes them; of X3D a file
            of pytorchvideo's; of TDN the same as of ResNet-50, or a file of its authors'; None:
            random weights.

    Raises:
        ValueError: no such backbone, or weights for one that has none.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    if weights is not None and name.startswith("tiny"):
        raise ValueError(f"{name} has no published weights, got weights={weights!r}")
    return BACKBONES[name](weights)


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
    config = variant_of(preset, variant)
    snet = dnet = None
    if config.snet is not None:
        backbone = build_backbone(config.snet, snet_weights)
        snet = SNet(backbone, config, synopsis=config.dnet is not None)
    if config.dnet is not None:
        backbone = build_backbone(config.dnet, dnet_weights)
        context_dim = config.context_dim if snet is not None else 0
        dnet = DNet(backbone, config.n_classes, context_dim, config.fuse_context, config.dropout)
    return S2DNet(config, snet, dnet)


def load_networks(model: S2DNet, snet: str | Path | None, dnet: str | Path | None) -> None:
    """Start a model's networks from those of other runs, in which each was trained alone, or both.

    What the lone network did not have (f_theta, f_m, the fusions, DNet's weights for m) keeps its
    own start; DNet's weights for m are scaled down, so that its verdict starts as it was.

    Args:
        snet, dnet: weights files (.safetensors) of such runs; None leaves that network as it is.

    Raises:
        ValueError: a weight of the file has no place in the model, or another shape.
    """
    for part, path in (("snet", snet), ("dnet", dnet)):
        if path is None:
            continue
        network = getattr(model, part)
        if network is None:
            raise ValueError(f"{path}: given for {part}, which this model does not have")
        state = {k: v for k, v in load_file(path).items() if k.startswith(f"{part}.")}
        state = {k.removeprefix(f"{part}."): v for k, v in state.items()}
        own = network.state_dict()
        if part == "dnet" and "classifier.weight" in state:
            seen, weight = state["classifier.weight"], own["classifier.weight"]
            if len(seen) == len(weight) and seen.shape[1] <= weight.shape[1]:
                unseen = weight[:, seen.shape[1] :] * 0.1  # for m. (N, C_m)
                state["classifier.weight"] = torch.cat((seen, unseen), dim=1)
        misfits = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
        if misfits or not state:
            raise ValueError(f"{path}: no {part} for this model; it differs in {misfits[:5]}")
        network.load_state_dict(state, strict=False)
