"""Files are written whole or not at all, and never over one that a command reads or did not make.

A kill leaves the old file or the new one.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FPS = 25
FILM = {"preset": "ultrafast", "crf": "26"}  # of libx264, for films to be watched
MADE = b"Made by s2d, which may replace it."  # a comment within pictures and films


def check_output(
    path: str | Path, inputs: Iterable[str | Path] = (), made: bytes = re.escape(MADE)
) -> None:
    """Refuse to write over a file that a command reads, or that the command has not made.

    Args:
        path: to be written.
        inputs: what the command reads, under any name: links and other spellings are the same file.
        made: regular expression found in every file of this kind that the command makes.

    Raises:
        ValueError: the file is an input, or is there, not empty, and does not match `made`.
    """
    path = Path(path)
    if not path.exists():
        return
    if any(os.path.exists(other) and path.samefile(other) for other in inputs):
        raise ValueError(f"{as_text(path)} is read here and would be replaced; write elsewhere")
    if path.is_file() and path.stat().st_size and not contains(path, made):
        raise ValueError(
            f"{as_text(path)}: a file that this command did not make; write elsewhere, or move it"
        )


def contains(path: str | Path, pattern: bytes) -> bool:
    """Whether a regular expression matches somewhere in a file."""
    if os.path.getsize(path) == 0:  # nothing to map
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return re.search(pattern, content) is not None


def file_state(path: Path) -> dict[str, str]:
    """Its size in bytes, and when it was modified, since 1970; nothing where there is none."""
    try:
        state = path.stat()
    except OSError:  # a link to nowhere
        return {"bytes": "", "modified": ""}
    modified = f"{state.st_mtime_ns} ns"  # of a bare number, a spreadsheet keeps 15 digits
    return {"bytes": str(state.st_size), "modified": modified}


def as_text(path: str | Path) -> str:
    r"""A path in one line of UTF-8 that tells its bytes: \\ a \, \xdf any byte that is no text."""
    text = os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda control: f"\\x{ord(control[0]):02x}", text)


def folder_name(name: str) -> str:
    """A name, if a folder of that very name can be made within another one.

    Raises:
        ValueError: it is empty, a path, or holds what cannot be printed.
    """
    fits = name.isprintable() and len(os.fsencode(name)) <= 255
    if not name.strip(" .") or not fits or set(name) & set("/\\"):
        raise ValueError(
            f"expected the name of one folder, not empty, without / and of 255 bytes at most, "
            f"got {name!r}"
        )
    return name


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


def append_text(path: str | Path, text: str) -> None:
    """Append to a file that is there, at once and whole; where the disk is full, not at all."""
    content = text.encode()
    with open(path, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise


def fsync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to the disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_video(path: Path, frames: np.ndarray, fps: float = FPS, comment: bytes = b"") -> None:
    """Write frames as H.264 or, where the path ends in .gif, as an animation.

    Args:
        frames: uint8, gray or colour; odd sizes lose a row or column in H.264. (T, H, W, 1 or 3)
        fps: frames a second.
        comment: kept in the file, in ASCII.
    """
    from PIL import Image

    with atomic_path(path) as partial:
        if path.suffix != ".gif":
            write_h264(partial, frames, fps, comment.decode(), FILM)
            return
        gray = frames.shape[-1] == 1
        first, *rest = map(Image.fromarray, frames[..., 0] if gray else frames)
        duration = round(1000 / fps)  # ms
        first.save(
            partial, save_all=True, append_images=rest, duration=duration, loop=0, comment=comment
        )


def write_h264(
    path: Path, frames: Iterable[np.ndarray], fps: float, comment: str, options: dict[str, str]
) -> int:
    """Write frames as they come, as H.264 in yuv420p, by one thread. Returns their number.

    Args:
        frames: uint8, gray or colour; odd sizes lose the last row or column. (H, W, 1 or 3) each
        comment: kept in the file; empty: none.
        options: of libx264.
    """
    import av

    n = 0
    # a file and no name: FFmpeg takes "12:30.mp4" for a protocol, and knows names in UTF-8 alone
    with path.open("wb") as file, av.open(file, "w", format="mp4") as container:
        container.metadata.update({"comment": comment} if comment else {})
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for n, frame in enumerate(frames, 1):
            H, W, C = frame.shape
            if n == 1:
                stream.height, stream.width = H // 2 * 2, W // 2 * 2
            even = frame[: H // 2 * 2, : W // 2 * 2]
            pixels, kind = (even[..., 0], "gray") if C == 1 else (even, "rgb24")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=kind)))
        container.mux(stream.encode())
    return n
