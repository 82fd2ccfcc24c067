"""Video Swin Transformer as named stages (Liu et al., CVPR 2022), torchvision's network.

The paper says that its method takes Transformers too (Sec. 3.3): this is one, for SNet or for DNet.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.weights import load_torchvision


def stage(*layers: nn.Module) -> nn.Sequential:
    """Layers with the channels on the last axis, as (B, C, T, H, W) -> (B, C', T, H', W')."""
    from torchvision.ops import Permute

    to_last, to_second = Permute([0, 2, 3, 4, 1]), Permute([0, 4, 1, 2, 3])
    inside = nn.Sequential(*layers)
    return nn.Sequential(OrderedDict(to_last=to_last, layers=inside, to_second=to_second))


def swin3d_t(weights: str | None = None) -> Backbone:
    """Video Swin-T. Attention in windows of 8 x 7 x 7 patches; clips of any size are padded.

    Args:
        weights: as load_torchvision takes them: "KINETICS400_V1", a file, or None.
    """
    from torchvision.ops import Permute

    net = load_torchvision("swin3d_t", weights)
    # Blocks of res2, then by turns a merging of 2 x 2 patches and the blocks of the next stage.
    res2, merge3, res3, merge4, res4, merge5, res5 = net.features
    # Patches of 2 x 4 x 4 pixels: (B, 3, T, H, W) -> (B, 96, T / 2, H / 4, W / 4), rounded up.
    patches = OrderedDict(embedding=net.patch_embed, to_second=Permute([0, 4, 1, 2, 3]))
    stages = {
        "stem": nn.Sequential(patches),
        "res2": stage(res2),
        "res3": stage(merge3, res3),
        "res4": stage(merge4, res4),
        "res5": stage(merge5, res5, net.norm),
    }
    return Backbone(stages, {"stem": 96, "res2": 96, "res3": 192, "res4": 384, "res5": 768})
