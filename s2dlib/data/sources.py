"""What a reader of videos gives, its errors and its progress; a folder of numbered frames.

Nothing here or in decoding.py imports torch or pandas: the child process starts in no time.
"""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from s2dlib.data.frames import split_flow

if TYPE_CHECKING:
    from PIL import Image

BUFFER = 1 << 21  # bytes of frames handed over at a time; one half is filled, the other one read
TICK = 0.5  # seconds between two signs of progress
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk's trouble, not a video's
COPY = "Working copy by s2d prepare."  # comment of a file: see data/prepare.py


class ClipError(RuntimeError):
    """A video that cannot give the frames asked of it."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(str(path), cause)  # both are args, so that it survives pickling
        self.path, self.cause = str(path), cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


def cause_of(error: Exception) -> str:
    """What is said of a video's error, of whatever kind; it is raised where the disk is full."""
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    if isinstance(error, ClipError):
        return error.cause
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class EndsEarlier(Exception):
    """A video whose last wanted frames do not exist. args: what is known of it now."""


class VideoInfo(NamedTuple):
    """What a video holds: frames that decode, frames a second (nan: not known), pixels."""

    n_frames: int
    fps: float
    height: int
    width: int
    reader: str = ""  # "pyav" or, of a folder of frames, "pillow"
    lost: int = 0  # frames that the file claims beyond those that decode


class Progress:
    """Tells the caller now and then that something happens."""

    connection: Connection | None = None
    last = 0.0

    def tick(self) -> None:
        if self.connection is not None and (now := time.monotonic()) - self.last > TICK:
            self.last = now
            self.connection.send(None)


progress = Progress()


class Folder:
    """Numbered frames in a folder, from 0 or 1 upwards without a gap; optical flow is left out."""

    reader, lost, fps = "pillow", 0, math.nan

    def __init__(self, path: str) -> None:
        names: dict[int, str] = {}
        frames, _ = split_flow(sorted(os.listdir(path)))
        for name in frames:
            number = int(re.findall(r"\d+", os.path.splitext(name)[0])[-1])
            if number in names:
                raise ClipError(path, f"two frames {number}: {names[number]} and {name}")
            names[number] = name
        if not names:
            raise ClipError(path, "a folder without numbered frames (00001.jpg, ... or .png)")
        first = 0 if 0 in names else 1
        for number in range(first, first + len(names)):
            if number not in names:
                raise ClipError(path, f"frame {number} is missing (the last is {max(names)})")
        self.path, self._names = path, [names[number] for number in sorted(names)]
        self.n_frames = len(names)

    def frames(self, order: Sequence[int]) -> Iterator[np.ndarray]:
        """By ascending index, each (H, W, 3) uint8."""
        from PIL import Image

        size = None
        for i in order:
            progress.tick()
            name = self._names[i]
            try:
                with Image.open(os.path.join(self.path, name)) as image:
                    frame = _image_pixels(image)
            except (OSError, ValueError, SyntaxError) as error:
                cause = f"{name} cannot be read ({first_line(error)})"
                raise ClipError(self.path, cause) from error
            height, width, _ = frame.shape
            size = size or (height, width)
            if size != (height, width):
                cause = f"{name} is {width} x {height} pixels, others are not"
                raise ClipError(self.path, cause)
            yield frame


def _image_pixels(image: Image.Image) -> np.ndarray:
    """An image as a player shows it: transparent over black, 16 bits as 8. (H, W, 3) uint8

    ValueError for numbers that have no range: 32-bit integers and floats.
    """
    from PIL import Image, ImageOps

    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF")
    image = ImageOps.exif_transpose(image)  # of a camera held upright
    if sixteen:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ValueError(f"{kind}, whose black and white are unknown; write 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return np.asarray(image.convert("RGB"))


def first_line(error: BaseException) -> str:
    """What a library says, without FFmpeg's numbers."""
    text = re.sub(r"\[Errno \d+\] ", "", str(error)).strip()
    return text.split("\n", 1)[0] or type(error).__name__
