"""TDN-ResNet-50 as named stages: temporal differences, near and far (Wang et al., CVPR 2021).

Axes: B videos, C channels, T segments of 5 frames each, H x W pixels. A peer that Tables 1, 3 and 4
lean on. The network is the one of its authors' weights, so that these can be loaded: it differs
from the paper's Eq. 6 in one place (`LongTerm`).
"""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.tsm import SHIFT_DIV, FramewiseStage, Shifted, conv_bn, conv_bn_relu
from s2dlib.backbones.weights import load_torchvision, load_weights, read_weights

if TYPE_CHECKING:
    from torchvision.models.resnet import Bottleneck, ResNet

SEGMENT = 5  # frames of a segment: the middle one, whose features are taken, and two either side
SHARE = 0.25  # of the differences in what goes on, for 16 segments (the release; 0.5 for 8)
REDUCTION = 16  # of the channels, where features of neighbouring segments are compared
PUBLISHED = {  # parts of our keys -> what the authors' files call them; .x is a part of a block
    "stages.": "base_model.",
    "res2.stem.0": "conv1",
    "res2.stem.1": "bn1",
    "res2.motion_stem": "conv1_5",
    "res2.blocks": "layer1_bak",
    "res2.motion_blocks": "resnext_layer1",
    "res3.layers": "layer2_bak",
    "res4.layers": "layer3_bak",
    "res5.layers": "layer4_bak",
    ".enter.0": ".conv1",
    ".enter.1": ".bn1",
    ".branch.0": ".conv2",
    ".branch.1": ".bn2",
    ".branch.3": ".conv3",
    ".branch.4": ".bn3",
    ".shortcut": ".downsample",
    ".temporal.taps": ".shift.conv.weight",
    ".long_term.squeeze.0": ".mse.conv1",
    ".long_term.squeeze.1": ".mse.bn1",
    ".long_term.smooth": ".mse.conv2",
    ".long_term.coarse.0": ".mse.conv3_smallscale2",
    ".long_term.coarse.1": ".mse.bn3_smallscale2",
    ".long_term.fine.0": ".mse.conv3_smallscale4",
    ".long_term.fine.1": ".mse.bn3_smallscale4",
    ".long_term.expand.0": ".mse.conv3",
    ".long_term.expand.1": ".mse.bn3",
}


class ShortTerm(nn.Module):
    """Stem and res2: a frame, and the motion around it from four differences (TDN, Sec. 3.2)."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu)
        self.pool = net.maxpool
        self.blocks = net.layer1
        self.motion_stem = conv_bn_relu(3 * (SEGMENT - 1), 64, 7, 2)
        weight = self.motion_stem.get_parameter("0.weight")  # (64, 12, 7, 7)
        weight.data.copy_(net.conv1.weight.data.mean(1, keepdim=True))
        self.motion_blocks = deepcopy(net.layer1)

    def forward(self, video: Tensor) -> Tensor:
        """video: (B, 3, 5 T, H, W). Returns (B, 256, T, H / 4, W / 4)."""
        B, _, n = video.shape[:3]
        if n % SEGMENT:
            raise ValueError(f"TDN takes segments of {SEGMENT} frames, got {n} frames")
        frames = video.unflatten(2, (-1, SEGMENT)).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
        differences = frames.diff(dim=1).flatten(1, 2)  # (B T, 12, H, W), after (B T, 5, 3, H, W)
        motion = self.pool(self.motion_stem(F.avg_pool2d(differences, 2)))  # (B T, 64, H/8, W/8)
        x = self.pool(self.stem(frames[:, SEGMENT // 2]))  # (B T, 64, H / 4, W / 4)
        x = self.blocks(mixed(x, motion))
        x = mixed(x, self.motion_blocks(motion))
        return x.unflatten(0, (B, -1)).transpose(1, 2)


def mixed(x: Tensor, motion: Tensor) -> Tensor:
    """Features of frames with those of the motion around them. (n, C, H, W), (n, C, h, w)"""
    return (1 - SHARE) * x + SHARE * F.interpolate(motion, x.shape[-2:])


class LongTerm(nn.Module):
    """Channels weighed by how they change to the next segment and from the one before (Sec. 3.3).

    As in the authors' code, what the second 3 x 3 convolution sees of the way back is its own
    output of the way ahead, not the differences themselves, as their Eq. 6 has it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        C = channels // REDUCTION
        self.squeeze = conv_bn(channels, C, 1)
        self.smooth = nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False)
        self.coarse, self.fine = conv_bn(C, C, 3), conv_bn(C, C, 3)
        self.expand = conv_bn(C, channels, 1)

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """x: T segments of B clips, one after another. (B T, C, H, W). Returns the same shape."""
        here = self.squeeze(x)
        there = self.smooth(here).unflatten(0, (-1, n_frames))  # (B, T, C / 16, H, W)
        here = here.unflatten(0, (-1, n_frames))
        nothing = torch.zeros_like(here[:, :1])  # the last has no next, the first none before
        ahead = torch.cat((there[:, 1:] - here[:, :-1], nothing), dim=1).flatten(0, 1)
        back = torch.cat((nothing, there[:, :-1] - here[:, 1:]), dim=1).flatten(0, 1)
        fine_ahead = self.fine(ahead)
        weight = self.weight(ahead, fine_ahead) + self.weight(back, self.fine(fine_ahead))
        return x + x * (0.5 * weight)

    def weight(self, difference: Tensor, fine: Tensor) -> Tensor:
        """From -0.5 to 0.5 for each channel and place. (B T, C / 16, H, W) -> (B T, C, H, W)"""
        coarse = self.coarse(F.avg_pool2d(difference, 2))
        coarse = F.interpolate(coarse, difference.shape[-2:])
        return self.expand((difference + coarse + fine) / 3).sigmoid() - 0.5


class TemporalConv(nn.Module):
    """Three segments of each channel weighed; starts as TSM's shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        fold = channels // SHIFT_DIV
        taps = torch.zeros(channels, 3)  # of the segment before, this one, the next one
        taps[:fold, 2] = taps[fold : 2 * fold, 0] = taps[2 * fold :, 1] = 1
        self.taps = nn.Parameter(taps)

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """x: (B T, C, H, W). Returns the same shape."""
        x = x.unflatten(0, (-1, n_frames)).transpose(1, 2)  # (B, C, T, H, W)
        kernel = self.taps[:, None, :, None, None]  # (C, 1, 3, 1, 1)
        x = F.conv3d(x, kernel, padding=(1, 0, 0), groups=len(kernel))
        return x.transpose(1, 2).flatten(0, 1)


class Differenced(Shifted):
    """A bottleneck whose 3 x 3 convolution sees neighbouring segments through their differences."""

    def __init__(self, block: Bottleneck) -> None:
        branch = nn.Sequential(block.conv2, block.bn2, block.relu, block.conv3, block.bn3)
        super().__init__(branch, block.downsample or nn.Identity(), block.relu)
        self.shortcut: nn.Module
        self.enter = nn.Sequential(block.conv1, block.bn1, block.relu)
        self.long_term = LongTerm(block.conv1.out_channels)
        self.temporal = TemporalConv(block.conv1.out_channels)

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """x: (B T, C, H, W). Returns (B T, C', H', W')."""
        y = self.temporal(self.long_term(self.enter(x), n_frames), n_frames)
        return self.activation(self.branch(y) + self.shortcut(x))


def tdn_resnet50(weights: str | None = None) -> Backbone:
    """TDN-ResNet-50 for segments of 5 frames.

    Args:
        weights: of ResNet-50 as load_torchvision takes them, or a file of the TDN authors'. Without
            the latter, the layers for the differences start from those for frames, as theirs do.
    """
    published = read_weights(weights) if weights and Path(weights).is_file() else {}
    of_tdn = any("conv1_5" in key for key in published)
    net = load_torchvision("resnet50", None if of_tdn else weights)
    stages: dict[str, nn.Module] = {"res2": ShortTerm(net)}
    layers = {"res3": net.layer2, "res4": net.layer3, "res5": net.layer4}
    for name, layer in layers.items():
        stages[name] = FramewiseStage(*(Differenced(block) for block in layer))
    backbone = Backbone(stages, {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048})
    if of_tdn:
        load_weights(backbone, without_biases(published), str(weights), published=PUBLISHED)
    return backbone.to(memory_format=torch.channels_last)


def without_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the authors' with each bias before a batch norm taken into its mean.

    The classifier is left out, and so is the first convolution of a network for differences of two
    frames, which their files hold (twice) and their network never uses.
    """
    state = {k: v for k, v in state.items() if not re.search(r"new_fc|\.fc\.|conv1_temp", k)}
    for key in [k for k in state if re.search(r"(conv\d|downsample\.0)\.bias$", k)]:
        norm = re.sub(r"conv(\d)\.bias$", r"bn\1", key).replace("downsample.0.bias", "downsample.1")
        state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - state.pop(key)
    return state
