"""The detail sampler by the pixels that it reaches: same result as the dense form, less work.

Raw frames are read as they are (uint8), with no more memory than a few of them. Gradients go to the
centres of the filters; frames get none. On CUDA by Triton kernels, elsewhere by PyTorch.

Axes: B clips, C colours, T x H x W raw frames, T_D x H_D x W_D detail volume.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from s2dlib.kernels import cpu

SMALL = 2**21  # values of a clip, below which products of whole clips are faster (on a CPU)


class BandedVolume(torch.autograd.Function):
    """V-hat = G_X G_Y G_T I (Eq. 7), and its gradient for the centres of the filters."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, frames: Tensor, p_t: Tensor, p_y: Tensor, p_x: Tensor, n: Tensor
    ) -> Tensor:
        """The volume of clips whose filters are centred at p.

        Args:
            frames: raw frames I, uint8 or float. (B, C, T, H, W)
            p_t, p_y, p_x: centres. (B, T_D), (B, T_D, H_D), (B, T_D, W_D)
            n: real frames of each clip. (B,)

        Returns:
            The detail volume, float32. (B, C, T_D, H_D, W_D)
        """
        ctx.save_for_backward(frames, p_t, p_y, p_x, n)
        return _kernels(frames).volume(frames, p_t, p_y, p_x, n)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """gradient: of the volume. (B, C, T_D, H_D, W_D). Returns those of p_t, p_y and p_x."""
        frames, p_t, p_y, p_x, n = ctx.saved_tensors
        slopes = _kernels(frames).slopes(frames, p_t, p_y, p_x, n, gradient)
        return None, *slopes, None


def pays(frames: Tensor) -> bool:
    """Whether the band is faster than the dense form here: on a GPU, and for clips that are large.

    Frames that need a gradient are for the dense form alone.
    """
    if frames.requires_grad:
        return False
    if frames.is_cuda:
        return importlib.util.find_spec("triton") is not None
    return frames[0].numel() >= SMALL


def _kernels(frames: Tensor) -> ModuleType:
    if not frames.is_cuda:
        return cpu
    from s2dlib.kernels import triton  # comes with torch's CUDA builds only

    return triton
