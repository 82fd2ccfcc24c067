"""A small network of 3-D convolutions, which reads what changes from frame to frame."""

from __future__ import annotations

import torch
from torch import nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.tsm import Luminance


def conv3d(widths: tuple[int, ...], strides: tuple[int, ...]) -> Backbone:
    """A 3 x 3 x 3 convolution, BN and ReLU a stage, for gray videos of some 24 pixels.

    On 700 clips of a speaking mouth it learns to read in epochs in which the shift network of the
    same widths (tsm.tiny) hardly begins to.

    widths: channels of stem, res3, res4, res5. strides: in space, of each; in time there is none.
    """
    stages: dict[str, nn.Module] = {}
    n_in = 1
    for name, width, stride in zip(("stem", "res3", "res4", "res5"), widths, strides, strict=True):
        stages[name] = nn.Sequential(
            *([Luminance()] if name == "stem" else []),
            nn.Conv3d(n_in, width, 3, (1, stride, stride), 1, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        n_in = width
    network = Backbone(stages, dict(zip(stages, widths, strict=True)))
    return network.to(memory_format=torch.channels_last_3d)  # 1.6 times faster on a CPU
