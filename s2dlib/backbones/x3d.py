"""X3D-S, M and XL as named stages (Feichtenhofer, CVPR 2020).

Axes: B videos, C channels, T x H x W. S and M are one network, fed with clips of different size.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.weights import load_weights, read_weights

STAGES = {"res2": (12, 1), "res3": (24, 2), "res4": (48, 5), "res5": (96, 3)}  # width, blocks
STEM_WIDTH, BOTTLENECK, POOLED = 12, 2.25, 2048  # before the width factor; ratio; after pooling
SE_RATIO = 1 / 16  # of the squeezed channels to the bottleneck's


def round_width(width: float) -> int:
    """To a multiple of 8, at least 8, and not below nine tenths."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def conv_bn(
    c_in: int,
    c_out: int,
    **options: Any,  # noqa: ANN401
) -> tuple[nn.Conv3d, nn.BatchNorm3d]:
    """A 3-D convolution without bias, and its batch norm."""
    return nn.Conv3d(c_in, c_out, bias=False, **options), nn.BatchNorm3d(c_out)


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole clip shows (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_width(channels * SE_RATIO)
        self.fc1 = nn.Conv3d(channels, squeezed, 1)
        self.fc2 = nn.Conv3d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, T, H, W). Returns the same shape."""
        return x * self.fc2(self.fc1(x.mean((2, 3, 4), keepdim=True)).relu()).sigmoid()


class Block(nn.Module):
    """Widen, a 3 x 3 x 3 convolution of each channel, narrow; every other block squeezes."""

    def __init__(self, c_in: int, c_out: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        C, steps = int(BOTTLENECK * c_out), (1, stride, stride)
        self.widen, self.widen_bn = conv_bn(c_in, C, kernel_size=1)
        self.channelwise, self.channelwise_bn = conv_bn(
            C, C, kernel_size=3, stride=steps, padding=1, groups=C
        )
        self.squeeze = SqueezeExcite(C) if squeeze else nn.Identity()
        self.narrow, self.narrow_bn = conv_bn(C, c_out, kernel_size=1)
        self.shortcut = None
        if c_in != c_out or stride != 1:
            conv, bn = conv_bn(c_in, c_out, kernel_size=1, stride=steps)
            # pytorchvideo's network, 3,794,274 parameters; SlowFast's has a batch norm here too.
            self.shortcut = nn.Sequential(conv, bn) if c_in != c_out else nn.Sequential(conv)
        nn.init.zeros_(self.narrow_bn.weight)  # starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, T, H, W). Returns (B, C', T, H', W')."""
        y = self.widen_bn(self.widen(x)).relu()
        y = nn.functional.silu(self.squeeze(self.channelwise_bn(self.channelwise(y))))
        y = self.narrow_bn(self.narrow(y))
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


def x3d(width: float, depth: float, weights: str | None = None) -> Backbone:
    """X3D by its factors of width and depth.

    The network's own last layers go along: the 1 x 1 x 1 convolution ends stage res5, the layer of
    2,048 channels after pooling is the backbone's neck.

    Args:
        width, depth: factors of channels and of blocks a stage; S and M 2.0, 2.2; XL 2.9, 5.0.
        weights: a file of pytorchvideo's weights, or None. Its classifier ("proj") is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: keys are missing, left over or of another size (load_weights).
    """
    C = round_width(STEM_WIDTH * width)
    spatial = nn.Conv3d(3, C, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
    temporal, bn = conv_bn(C, C, kernel_size=(5, 1, 1), padding=(2, 0, 0), groups=C)
    stages: dict[str, nn.Sequential] = {"stem": nn.Sequential(spatial, temporal, bn, nn.ReLU())}
    channels = {"stem": C}
    for name, (basis, n_blocks) in STAGES.items():
        c_out, blocks = round_width(basis * width), []
        for i in range(math.ceil(n_blocks * depth)):
            blocks.append(Block(C if i == 0 else c_out, c_out, 2 if i == 0 else 1, i % 2 == 0))
        stages[name], channels[name] = nn.Sequential(*blocks), c_out
        C = c_out
    last = int(BOTTLENECK * C)
    stages["res5"].extend([*conv_bn(C, last, kernel_size=1), nn.ReLU()])
    channels["res5"] = last
    neck = nn.Sequential(nn.Linear(last, POOLED, bias=False), nn.ReLU())
    backbone = Backbone(stages, channels, neck, POOLED)
    if weights is not None:
        theirs = {k: v for k, v in read_weights(weights).items() if "proj" not in k}
        load_weights(backbone, theirs, weights, names=published_keys(backbone))
    return backbone


def published_keys(backbone: Backbone) -> dict[str, str]:
    """Each of our keys -> its name in pytorchvideo's files."""
    modules = {  # its stem calls the convolution in space conv_t, and the other one conv_xy
        "stages.stem.0": "blocks.0.conv.conv_t",
        "stages.stem.1": "blocks.0.conv.conv_xy",
        "stages.stem.2": "blocks.0.norm",
        "neck.0": "blocks.5.pool.post_conv",
    }
    parts = {  # of a block
        "widen": "branch2.conv_a",
        "widen_bn": "branch2.norm_a",
        "channelwise": "branch2.conv_b",
        "channelwise_bn": "branch2.norm_b.0",
        "squeeze.fc1": "branch2.norm_b.1.block.0",
        "squeeze.fc2": "branch2.norm_b.1.block.2",
        "narrow": "branch2.conv_c",
        "narrow_bn": "branch2.norm_c",
        "shortcut.0": "branch1_conv",
        "shortcut.1": "branch1_norm",
    }
    for stage, name in enumerate(STAGES, start=1):
        for i, block in enumerate(backbone.stages[name].children()):
            if isinstance(block, Block):
                there = f"blocks.{stage}.res_blocks.{i}"
                modules |= {f"stages.{name}.{i}.{k}": f"{there}.{v}" for k, v in parts.items()}
    n = sum(isinstance(block, Block) for block in backbone.stages["res5"].children())
    modules[f"stages.res5.{n}"] = "blocks.5.pool.pre_conv"
    modules[f"stages.res5.{n + 1}"] = "blocks.5.pool.pre_norm"
    keys = {}
    for key in backbone.state_dict():
        module, _, leaf = key.rpartition(".")
        keys[key] = f"{modules[module]}.{leaf}"
    return keys
