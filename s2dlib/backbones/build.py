"""Backbones by name."""

from __future__ import annotations

from s2dlib.backbones.base import Backbone
from s2dlib.backbones.conv3d import conv3d
from s2dlib.backbones.swin import swin3d_t
from s2dlib.backbones.tdn import tdn_resnet50
from s2dlib.backbones.tsm import mobilenet_v2, resnet50, tiny
from s2dlib.backbones.x3d import x3d

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
    "tiny-3d": lambda weights: conv3d((16, 32, 48, 64), (1, 2, 2, 2)),
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
