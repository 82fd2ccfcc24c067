"""X3D-S, M and XL as named stages (Feichtenhofer, CVPR 2020).

Axes: B videos, C channels, T x H x W. S and M are one network, fed with clips of different size.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.weights import load_weights, read_weights

Triple = tuple[int, int, int]  # in time, rows and columns
POINT, CUBE = (1, 1, 1), (3, 3, 3)  # kernels of convolutions
STAGES = {"res2": (12, 1), "res3": (24, 2), "res4": (48, 5), "res5": (96, 3)}  # width, blocks
STEM_WIDTH, BOTTLENECK, POOLED = 12, 2.25, 2048  # before the width factor; ratio; after pooling
SE_RATIO = 1 / 16  # of the squeezed channels to the bottleneck's
PUBLISHED = {  # parts of our keys -> what pytorchvideo's files call them
    "stages.stem.0": "blocks.0.conv.conv_t",  # in space, and the next in time, in spite of its name
    "stages.stem.1": "blocks.0.conv.conv_xy",
    "stages.stem.2": "blocks.0.norm",
    **{f"stages.{name}": f"blocks.{i}.res_blocks" for i, name in enumerate(STAGES, start=1)},
    ".widen_bn": ".branch2.norm_a",
    ".widen": ".branch2.conv_a",
    ".channelwise_bn": ".branch2.norm_b.0",
    ".channelwise": ".branch2.conv_b",
    ".squeeze.fc1": ".branch2.norm_b.1.block.0",
    ".squeeze.fc2": ".branch2.norm_b.1.block.2",
    ".narrow_bn": ".branch2.norm_c",
    ".narrow": ".branch2.conv_c",
    ".shortcut.0": ".branch1_conv",
    ".shortcut.1": ".branch1_norm",
    "neck.0": "blocks.5.pool.post_conv",
}


def conv_bn(
    n_in: int, n_out: int, kernel: Triple, stride: Triple = POINT, groups: int = 1
) -> tuple[nn.Conv3d, nn.BatchNorm3d]:
    """A convolution without bias, and batch norm; the size is kept but for the stride."""
    t, y, x = kernel
    padding = (t // 2, y // 2, x // 2)
    conv = nn.Conv3d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False)
    return conv, nn.BatchNorm3d(n_out)


def round_width(width: float) -> int:
    """To a multiple of 8, at least 8, and not below nine tenths."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


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
        self.widen, self.widen_bn = conv_bn(c_in, C, POINT)
        self.channelwise, self.channelwise_bn = conv_bn(C, C, CUBE, steps, groups=C)
        self.squeeze = SqueezeExcite(C) if squeeze else nn.Identity()
        self.narrow, self.narrow_bn = conv_bn(C, c_out, POINT)
        self.shortcut = None
        if c_in != c_out or stride != 1:
            conv, bn = conv_bn(c_in, c_out, POINT, steps)
            # pytorchvideo's network, 3,794,274 parameters; SlowFast's has a batch norm here too.
            self.shortcut = nn.Sequential(conv, bn) if c_in != c_out else nn.Sequential(conv)
        nn.init.zeros_(self.narrow_bn.get_parameter("weight"))  # starts as its shortcut

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
    temporal, bn = conv_bn(C, C, (5, 1, 1), groups=C)
    stages: dict[str, nn.Sequential] = {"stem": nn.Sequential(spatial, temporal, bn, nn.ReLU())}
    channels = {"stem": C}
    for name, (basis, n_blocks) in STAGES.items():
        c_out, blocks = round_width(basis * width), []
        for i in range(math.ceil(n_blocks * depth)):
            blocks.append(Block(C if i == 0 else c_out, c_out, 2 if i == 0 else 1, i % 2 == 0))
        stages[name], channels[name] = nn.Sequential(*blocks), c_out
        C = c_out
    last, n = int(BOTTLENECK * C), len(stages["res5"])
    stages["res5"].extend([*conv_bn(C, last, POINT), nn.ReLU()])
    channels["res5"] = last
    neck = nn.Sequential(nn.Linear(last, POOLED, bias=False), nn.ReLU())
    backbone = Backbone(stages, channels, neck, POOLED)
    if weights is not None:
        theirs = {k: v for k, v in read_weights(weights).items() if "proj" not in k}
        published = {
            f"stages.res5.{n}.": "blocks.5.pool.pre_conv.",
            f"stages.res5.{n + 1}.": "blocks.5.pool.pre_norm.",
        }
        load_weights(backbone, theirs, weights, published=published | PUBLISHED)
    return backbone
