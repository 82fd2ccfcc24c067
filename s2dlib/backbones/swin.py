"""Video Swin Transformer as named stages (Liu et al., CVPR 2022), torchvision's network.

The paper says that its method takes Transformers too (Sec. 3.3): this is one, for SNet or for DNet.
"""

from __future__ import annotations

from torch import Tensor, nn

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.weights import load_torchvision


class ChannelsFirst(nn.Module):
    """Layers that have the channels on the last axis, for those that have them on the second."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """video: (B, C, T, H, W). Returns (B, C', T, H', W')."""
        return self.layers(video.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class Patches(nn.Module):
    """Patches of 2 frames and 4 x 4 pixels, each a vector."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, video: Tensor) -> Tensor:
        """video: (B, 3, T, H, W). Returns (B, 96, T / 2, H / 4, W / 4), rounded up."""
        return self.embedding(video).permute(0, 4, 1, 2, 3)


def swin3d_t(weights: str | None = None) -> Backbone:
    """Video Swin-T. Attention in windows of 8 x 7 x 7 patches; clips of any size are padded.

    Args:
        weights: as load_torchvision takes them: "KINETICS400_V1", a file, or None.
    """
    net = load_torchvision("swin3d_t", weights)
    # Blocks of res2, then by turns a merging of 2 x 2 patches and the blocks of the next stage.
    res2, merge3, res3, merge4, res4, merge5, res5 = net.features
    stages = {
        "stem": Patches(net.patch_embed),
        "res2": ChannelsFirst(res2),
        "res3": ChannelsFirst(merge3, res3),
        "res4": ChannelsFirst(merge4, res4),
        "res5": ChannelsFirst(merge5, res5, net.norm),
    }
    return Backbone(stages, {"stem": 96, "res2": 96, "res3": 192, "res4": 384, "res5": 768})
