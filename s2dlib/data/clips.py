"""Which frames of a video make a clip, and which squares of them (Sec. 4.1).

Axes: C colours (1 where the frames are gray), T x H x W raw frames.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from s2dlib.config import DataConfig
from s2dlib.data.pixels import rgb_to_grayscale
from s2dlib.data.readers import TIMEOUT, read_frames

if TYPE_CHECKING:
    from pandas import DataFrame


def choose_frames(
    n_total: int, config: DataConfig, generator: Generator | None = None
) -> list[int]:
    """One clip of at most n_frames frames, frame_stride apart, of a video of n_total frames.

    Args:
        config: n_frames (T), frame_stride (tau) and min_frames.
        generator: draws the start (training); None: the clip is centred (testing).

    Returns:
        Frame indices, ascending.
    """
    stride = config.frame_stride
    n = min(config.n_frames, -(-n_total // stride))
    if n < config.min_frames:
        raise ValueError(
            f"{n_total} frames give {n} at stride {stride}, but min_frames is {config.min_frames}"
        )
    n_starts = n_total - (n - 1) * stride  # frames at which the clip can start
    start = (n_starts - 1) // 2 if generator is None else _randint(n_starts, generator)
    return list(range(start, start + n * stride, stride))


def for_copies(config: DataConfig, table: DataFrame) -> DataConfig:
    """The configuration as it holds for the videos of a table.

    Working copies (prepare.py), which columns frame_stride and short_side tell, hold every so-many
    frames only: that is part of the configuration's frame_stride.

    Raises:
        ValueError: the copies lack frames, or pixels, that the configuration asks for.
    """
    if not {"frame_stride", "short_side"} <= set(table.columns):
        return config
    strides = set(table["frame_stride"].astype(int))
    stride, side = max(strides), table["short_side"].astype(int).min()
    if len(strides) > 1 or config.frame_stride % stride or config.short_side > side:
        asked = f"frame_stride={config.frame_stride}, short_side={config.short_side}"
        raise ValueError(
            f"{config.csv}: copies of every {stride} frames at short side {side} do not serve "
            f"{asked}; use the original videos, or `s2d prepare` with this preset"
        )
    return replace(config, frame_stride=config.frame_stride // stride)


def place_in_silence(
    n_total: int, length: int, silence: tuple[int, int], generator: Generator | None = None
) -> tuple[list[int], int]:
    """A longer video whose rest is the silence of the one within it.

    Args:
        n_total: frames of the video.
        length: of the longer one; at least n_total.
        silence: onset and end: the video is silent before the one and from the other on. Where
            there is none, the first or the last frame stays.
        generator: draws where it begins; None: in the middle.

    Returns:
        The frame of the video at each of the longer one's, and the one at which it begins.

    Raises:
        ValueError: the longer one is not longer.
    """
    if length < n_total:
        raise ValueError(f"a video of {n_total} frames does not lie within={length} frames")
    onset, end = max(1, silence[0]), min(silence[1], n_total - 1)
    n_places = length - n_total + 1
    start = n_places // 2 if generator is None else _randint(n_places, generator)
    before = np.pad(np.arange(onset), (start, 0), "reflect")[:start]  # to and fro
    after = np.pad(np.arange(end, n_total), (0, n_places - 1 - start), "reflect")[n_total - end :]
    return [*before.tolist(), *range(n_total), *after.tolist()], start


def _randint(n: int, generator: Generator) -> int:
    """One of 0..n-1."""
    return int(torch.randint(n, (), generator=generator))


class Crop(NamedTuple):
    """A square of the frames, in pixels of the frames at short_side."""

    side: int
    top: int
    left: int
    flip: bool = False  # mirrored, after cropping

    def cut(self, frames: Tensor) -> Tensor:
        """The square, not mirrored: a view. (..., H, W) -> (..., side, side)"""
        rows = slice(self.top, self.top + self.side)
        return frames[..., rows, self.left : self.left + self.side]


def choose_crops(
    height: int,
    width: int,
    config: DataConfig,
    n_crops: int,
    generator: Generator | None = None,
    train: bool = True,
) -> list[Crop]:
    """The squares of the frames that a clip is cut from (Sec. 4.1).

    Args:
        height, width: of the frames at short_side, pixels.
        n_crops: in testing 1, the centre, or 3 along the longer side.
        generator: draws one of random place and, in training, scale and flip; None: none is drawn.
    """
    if generator is not None:
        side = config.crop
        if train:
            scale = config.scales[_randint(len(config.scales), generator)]
            side = max(1, round(scale * config.short_side))
        top = _randint(height - side + 1, generator)
        left = _randint(width - side + 1, generator)
        flip = train and config.flip and _randint(2, generator) == 1
        return [Crop(side, top, left, flip)]
    bottom, right = height - config.crop, width - config.crop  # the last top and left
    centre = Crop(config.crop, bottom // 2, right // 2)
    if n_crops == 1:
        return [centre]
    if height > width:
        return [centre._replace(top=top) for top in (0, centre.top, bottom)]
    return [centre._replace(left=left) for left in (0, centre.left, right)]


def load_clip(
    path: str | Path,
    n_frames: int | None = None,
    frame_stride: int = 1,
    short_side: int | None = None,
    timeout: float = TIMEOUT,
) -> Tensor:
    """The centred clip of a video, ready for a model.

    Args:
        n_frames: frames at most; None: the whole video.
        frame_stride: tau, every how many frames one is taken.
        short_side: pixels of the shorter side after resizing; None: as stored.
        timeout: seconds without progress granted to the file.

    Returns:
        Raw frames I, uint8. (3, T, H, W)
    """
    if frame_stride < 1 or (n_frames is not None and n_frames < 1):
        raise ValueError(f"n_frames and frame_stride must be >= 1, got {n_frames}, {frame_stride}")

    def choose(n_total: int) -> list[int]:
        n = n_frames or n_total
        return choose_frames(n_total, DataConfig(csv="", n_frames=n, frame_stride=frame_stride))

    return read_frames(path, choose, short_side, timeout).transpose(0, 1)


def load_views(path: str | Path, config: DataConfig) -> Tensor:
    """The clip of a video as testing takes it: centred, and its crops (Sec. 4.1).

    Args:
        config: of the model that is to see it (model.data), but for min_frames.

    Returns:
        Raw frames I of each of the test_crops views, uint8. (V, C, T, H, W)

    Raises:
        ClipError: the video cannot be read.
    """
    config = replace(config, min_frames=1)

    def cut(frames: Tensor) -> Tensor:
        """(m, 3, H, W) -> (m, V, C, crop, crop)"""
        frames = rgb_to_grayscale(frames) if config.gray else frames
        H, W = frames.shape[-2:]
        crops = choose_crops(H, W, config, config.test_crops)
        return torch.stack([crop.cut(frames) for crop in crops], 1)

    choose = partial(choose_frames, config=config)
    frames = read_frames(path, choose, config.short_side, config.timeout, cut)
    return frames.movedim(0, 2).contiguous()
