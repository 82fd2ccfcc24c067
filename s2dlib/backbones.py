"""Video backbones as named stages: MobileNetV2 and ResNet-50 with TSM, and a small one.

A backbone is a list of named stages, (B, C, T, H, W) in and out, and a neck for what it pools. SNet
runs them all (f_s, Eq. 1); DNet walks them and fuses m after res3 and res4 (f_d, Eq. 8-9). Nothing
rewires a network in place.

TSM: Lin et al., ICCV 2019. MobileNetV2: Sandler et al., CVPR 2018. ResNet: He et al., CVPR 2016.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torchvision.models import get_model, get_model_weights
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import Bottleneck

SHIFT_DIV = 8  # 1/8 of the channels shift by one frame each way (TSM, Sec. 3)


class Backbone(nn.Module):
    """Stages by name, in order, and a neck; `channels` says what each stage gives.

    The neck is what some networks have between the pooling and the classifier (X3D), of
    `pooled_channels`; the others have none.
    """

    def __init__(
        self,
        stages: dict[str, nn.Module],
        channels: dict[str, int],
        neck: nn.Module | None = None,
        pooled_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.neck = nn.Identity() if neck is None else neck
        self.channels = channels
        self.pooled_channels = pooled_channels or self.out_channels

    @property
    def out_channels(self) -> int:
        return list(self.channels.values())[-1]

    def forward(self, video: Tensor) -> Tensor:
        """video: (B, 3, T, H, W). Returns the features of the last stage. (B, C, T, h, w)"""
        for stage in self.stages.values():
            video = stage(video)
        return video


class _Shift(torch.autograd.Function):
    """A copy in the memory layout of x, in which two slices of the channels are moved by a frame.

    By autograd of the copies, each would copy the whole gradient; it is the opposite shift.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, fold: int, step: int) -> Tensor:
        """x: (B, T, C, H, W); step: 1, or -1 for the opposite. Returns the same shape."""
        ctx.fold, ctx.step = fold, step
        y = x.clone()
        first, second = (slice(fold), slice(fold, 2 * fold))[::step]
        y[:, :-1, first], y[:, -1:, first] = x[:, 1:, first], 0
        y[:, 1:, second], y[:, :1, second] = x[:, :-1, second], 0
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Shift.apply(gradient, ctx.fold, -ctx.step), None, None


def temporal_shift(x: Tensor, n_frames: int) -> Tensor:
    """TSM: one part of the channels comes from the next frame, one from the frame before.

    Args:
        x: frames of B clips, one after another. (B T, C, H, W)
        n_frames: T.

    Returns:
        The same shape; the first C / 8 channels of frame t are those of t + 1, the next C / 8 those
        of t - 1, zeros beyond the ends. (B T, C, H, W)
    """
    x = x.unflatten(0, (-1, n_frames))  # (B, T, C, H, W)
    fold = x.shape[2] // SHIFT_DIV
    if torch.compiler.is_exporting():  # each copy into a slice is a dozen nodes of ONNX
        first, second, rest = x.split((fold, fold, x.shape[2] - 2 * fold), dim=2)
        nothing = torch.zeros_like(first[:, :1])  # (B, 1, C / 8, H, W)
        first = torch.cat((first[:, 1:], nothing), dim=1)
        second = torch.cat((nothing, second[:, :-1]), dim=1)
        return torch.cat((first, second, rest), dim=2).flatten(0, 1)
    return _Shift.apply(x, fold, 1).flatten(0, 1)


class Shifted(nn.Module):
    """A block whose branch sees shifted frames; its shortcut, if any, does not (TSM, Sec. 4)."""

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """x: (B T, C, H, W). Returns (B T, C', H', W')."""
        y = self.branch(temporal_shift(x, n_frames))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return y if self.activation is None else self.activation(y)


class FramewiseStage(nn.Module):
    """2-D layers applied to every frame of a video; blocks that shift get the number of frames."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, video: Tensor) -> Tensor:
        """video: (B, C, T, H, W). Returns (B, C', T, H', W').

        Frames stay apart in memory, so that the next stage need not copy them.
        """
        B, _, T = video.shape[:3]
        x = video.transpose(1, 2).flatten(0, 1)  # (B T, C, H, W)
        for layer in self.layers:
            x = layer(x, T) if isinstance(layer, Shifted) else layer(x)
        return x.unflatten(0, (B, T)).transpose(1, 2)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state_dict of a published file; only tensors are unpickled.

    Raises:
        FileNotFoundError: no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {str(path)!r}: no such file")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("model_state", "state_dict"):  # SlowFast's and pytorchvideo's, TSM's
        state = state.get(name, state)
    return {k.removeprefix("module."): v for k, v in state.items()}


def load_state(
    module: nn.Module, theirs: dict[str, Tensor], names: dict[str, str], path: str | Path
) -> None:
    """Load published weights whose keys have other names.

    Args:
        module: gets the weights.
        theirs: what read_weights gave of the file, without what has no place here.
        names: each key of the module -> its name there.
        path: the file, for the error.

    Raises:
        ValueError: keys are missing, left over or of another size; lists the first of them.
    """
    own = module.state_dict()
    differ = sorted(set(theirs) ^ set(names.values()))
    differ += [n for k, n in names.items() if n in theirs and theirs[n].numel() != own[k].numel()]
    if differ:
        raise ValueError(
            f"{path}: not the weights of this network; {len(differ)} keys are missing, left over "
            f"or of another size, the first: {', '.join(differ[:5])}"
        )
    module.load_state_dict({k: theirs[name].view_as(own[k]) for k, name in names.items()})


def load_torchvision(name: str, weights: str | None) -> nn.Module:
    """A torchvision classifier; its own classifier layer is not used here.

    Args:
        name: as torchvision's get_model takes it.
        weights: one of torchvision's weights names ("IMAGENET1K_V1", "DEFAULT"), a local file that
            holds a state_dict under torchvision's or the TSM authors' names, or None for random
            weights.

    Raises:
        FileNotFoundError: weights is neither a name nor a file.
        ValueError: the file's keys or shapes are not those of this model (its classifier apart).
    """
    names = [w.name for w in get_model_weights(name)] + ["DEFAULT"]
    if weights is None or weights in names:
        return get_model(name, weights=weights)
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights {weights!r} of {name}: neither a file nor one of torchvision's names {names}"
        )
    model = get_model(name, weights=None)
    state = {_torchvision_key(k): v for k, v in read_weights(weights).items()}
    ours, theirs = (
        {k: v for k, v in d.items() if not k.startswith(("classifier.", "fc.", "head."))}
        for d in (model.state_dict(), state)
    )
    differ = sorted(
        k
        for k in ours | theirs
        if getattr(ours.get(k), "shape", 0) != getattr(theirs.get(k), "shape", 1)
    )
    if differ:
        raise ValueError(
            f"{weights}: not the weights of {name}; {len(differ)} keys are missing, left over or "
            f"of another shape, the first: {', '.join(differ[:5])}"
        )
    model.load_state_dict(theirs, strict=False)
    return model


def _torchvision_key(key: str) -> str:
    """A key of a TSM checkpoint by torchvision's name; one of torchvision's stays as it is.

    TSM's files: base_model., then the network, ".net." where a convolution is shifted, new_fc.
    Their MobileNetV2 has all layers of a block in one row, torchvision's has each convolution but
    the last with its batch norm.
    """
    if not key.startswith(("base_model.", "new_fc.")):
        return key
    key = key.removeprefix("base_model.").replace(".net.", ".").replace("new_fc.", "fc.")
    found = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(\w+)", key)
    if found is None:
        return key
    block, layer, rest = int(found[1]), int(found[2]), found[3]
    last = 3 if block == 1 else 6  # the first block does not widen
    if layer >= last:
        return f"features.{block}.conv.{last // 3 + layer - last}.{rest}"
    return f"features.{block}.conv.{layer // 3}.{layer % 3}.{rest}"


def mobilenet_v2(weights: str | None = None) -> Backbone:
    """TSM-MobileNetV2 1.0: a shift in each inverted residual block that has a shortcut."""

    def block(layer: nn.Module) -> nn.Module:
        if isinstance(layer, InvertedResidual) and layer.use_res_connect:
            return Shifted(layer.conv, nn.Identity())
        return layer

    layers = [block(layer) for layer in load_torchvision("mobilenet_v2", weights).features]
    cuts = {"stem": (0, 2), "res2": (2, 4), "res3": (4, 7), "res4": (7, 14), "res5": (14, 19)}
    stages = {name: FramewiseStage(*layers[a:b]) for name, (a, b) in cuts.items()}
    channels = {"stem": 16, "res2": 24, "res3": 32, "res4": 96, "res5": 1280}
    return Backbone(stages, channels).to(memory_format=torch.channels_last)  # twice as fast


def resnet50(weights: str | None = None) -> Backbone:
    """TSM-ResNet-50: a shift before the first convolution of each bottleneck's branch."""

    def block(b: Bottleneck) -> Shifted:
        branch = nn.Sequential(b.conv1, b.bn1, b.relu, b.conv2, b.bn2, b.relu, b.conv3, b.bn3)
        return Shifted(branch, b.downsample or nn.Identity(), b.relu)

    net = load_torchvision("resnet50", weights)
    stages = {"stem": FramewiseStage(net.conv1, net.bn1, net.relu, net.maxpool)}
    layers = (net.layer1, net.layer2, net.layer3, net.layer4)
    for name, layer in zip(("res2", "res3", "res4", "res5"), layers, strict=True):
        stages[name] = FramewiseStage(*(block(b) for b in layer))
    channels = {"stem": 64, "res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
    return Backbone(stages, channels).to(memory_format=torch.channels_last)


class Luminance(nn.Module):
    """The mean of the colour channels: a third of the work where videos are gray anyway."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B T, 3, H, W). Returns (B T, 1, H, W)."""
        return x.mean(dim=1, keepdim=True)


def tiny(widths: tuple[int, ...], strides: tuple[int, ...]) -> Backbone:
    """A shift network for gray videos of some 20 pixels, small enough to train on a CPU."""

    def conv(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )

    stages = {"stem": FramewiseStage(Luminance(), conv(1, widths[0], 5, strides[0]))}
    for i, name in enumerate(("res3", "res4", "res5")[: len(widths) - 1], start=1):
        stages[name] = FramewiseStage(Shifted(conv(widths[i - 1], widths[i], 3, strides[i])))
    return Backbone(stages, dict(zip(stages, widths, strict=True)))
