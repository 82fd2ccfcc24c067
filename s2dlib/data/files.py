"""Files are written whole or not at all: a kill leaves the old one or the new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FPS = 25


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path to write to, of the same name; what is there at the end of the block becomes `path`.

    The folder of `path` is made. An error within the block leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
        partial = Path(folder, path.name)
        yield partial
        os.replace(partial, path)


def write_atomic(path: str | Path, content: str | bytes, *, durable: bool = False) -> Path:
    """Write a file, a text in UTF-8, and make its folder.

    Args:
        durable: flushed to the disk, so that it outlives a power cut.
    """
    path = Path(path)
    with atomic_path(path) as partial, partial.open("wb") as file:  # closed, then replaced
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:
        fsync_folder(path.parent)
    return path


def fsync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to the disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_video(path: Path, frames: np.ndarray, fps: float = FPS) -> None:
    """Write frames as H.264 or, where the path ends in .gif, as an animation.

    Args:
        frames: uint8, gray or colour; odd sizes lose a row or column in H.264. (T, H, W, 1 or 3)
        fps: frames a second.
    """
    from PIL import Image

    with atomic_path(path) as partial:
        if path.suffix != ".gif":
            _, H, W, _ = frames.shape
            _write_h264(partial, frames[:, : H // 2 * 2, : W // 2 * 2], fps)
            return
        gray = frames.shape[-1] == 1
        first, *rest = (Image.fromarray(frame[..., 0] if gray else frame) for frame in frames)
        duration = round(1000 / fps)  # ms
        first.save(partial, save_all=True, append_images=rest, duration=duration, loop=0)


def _write_h264(path: Path, frames: np.ndarray, fps: float) -> None:
    import av

    gray = frames.shape[3] == 1
    options = {"preset": "ultrafast", "crf": "26"}
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=options
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in frames:
            image = frame[..., 0] if gray else frame
            image = av.VideoFrame.from_ndarray(image, format="gray" if gray else "rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
