"""MobileNetV2 and ResNet-50 with TSM, and a small network.

TSM: Lin et al., ICCV 2019. MobileNetV2: Sandler et al., CVPR 2018. ResNet: He et al., CVPR 2016.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.weights import load_torchvision

if TYPE_CHECKING:
    from torchvision.models.resnet import Bottleneck

SHIFT_DIV = 8  # 1/8 of the channels shift by one frame each way (TSM, Sec. 3)


class _Shift(torch.autograd.Function):
    """A copy in the memory layout of x, in which two slices of the channels are moved by a frame.

    By autograd of the copies, each would copy the whole gradient; it is the opposite shift.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, fold: int, step: int) -> Tensor:  # noqa: ANN401
        """x: (B, T, C, H, W); step: 1, or -1 for the opposite. Returns the same shape."""
        ctx.fold, ctx.step = fold, step
        y = x.clone()
        first, second = (slice(fold), slice(fold, 2 * fold))[::step]
        y[:, :-1, first], y[:, -1:, first] = x[:, 1:, first], 0
        y[:, 1:, second], y[:, :1, second] = x[:, :-1, second], 0
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
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
        self.branch, self.shortcut = branch, shortcut
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """x: (B T, C, H, W). Returns (B T, C', H', W')."""
        y = self.branch(temporal_shift(x, n_frames))
        return self.activation(y if self.shortcut is None else y + self.shortcut(x))


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


def mobilenet_v2(weights: str | None = None) -> Backbone:
    """TSM-MobileNetV2 1.0: a shift in each inverted residual block that has a shortcut."""
    from torchvision.models.mobilenetv2 import InvertedResidual

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
        """x: (n, 3, ...). Returns (n, 1, ...)."""
        return x.mean(dim=1, keepdim=True)


def conv_bn(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch norm; the size is kept but for the stride."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


def conv_bn_relu(n_in: int, n_out: int, kernel: int, stride: int) -> nn.Sequential:
    """The same, and ReLU."""
    return conv_bn(n_in, n_out, kernel, stride).append(nn.ReLU(inplace=True))


def tiny(widths: tuple[int, ...], strides: tuple[int, ...]) -> Backbone:
    """A shift network for gray videos of some 20 pixels, small enough to train on a CPU."""

    stem = conv_bn_relu(1, widths[0], 5, strides[0])
    stages = {"stem": FramewiseStage(Luminance(), stem)}
    for i, name in enumerate(("res3", "res4", "res5")[: len(widths) - 1], start=1):
        conv = conv_bn_relu(widths[i - 1], widths[i], 3, strides[i])
        stages[name] = FramewiseStage(Shifted(conv))
    return Backbone(stages, dict(zip(stages, widths, strict=True)))
