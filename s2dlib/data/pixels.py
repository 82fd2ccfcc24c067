"""Frames resized and made gray, as torchvision's functions of these names do it, to the bit.

Theirs are not called, since importing torchvision takes as long as importing torch once more.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue (torchvision's)


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing; the same frames where they have that size.

    Args:
        frames: uint8. (n, C, H, W)
        size: rows and columns.

    Returns:
        uint8. (n, C, *size)
    """
    if frames.shape[-2:] == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)


def resize_short_side(frames: Tensor, short_side: int) -> Tensor:
    """Frames whose shorter side has so many pixels, in their own ratio, rounded down.

    (n, C, H, W) -> (n, C, short_side, ...) or (n, C, ..., short_side)
    """
    H, W = frames.shape[-2:]
    long_side = int(short_side * max(H, W) / min(H, W))
    return resize(frames, (long_side, short_side) if W <= H else (short_side, long_side))


def rgb_to_grayscale(frames: Tensor) -> Tensor:
    """Frames of one channel. (..., 3, H, W) -> (..., 1, H, W)"""
    red, green, blue = frames.unbind(dim=-3)
    gray = LUMA[0] * red
    gray.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return gray.to(frames.dtype).unsqueeze(dim=-3)
