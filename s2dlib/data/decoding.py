"""Decode a video in a child process that can be killed: this file, run as a script.

decord's get_batch and skip_frames are silently wrong on some files (open GOP, HEVC), so every frame
up to the last wanted one is decoded, in order. It also hangs, and could crash, on some files. A bad
file costs its own error and never the run. Nothing of the package is imported here: torch and
pandas take 5 s.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import decord
import numpy as np

BUFFER = 1 << 21  # bytes of frames handed over at a time; one half is filled, the other one read


class ClipError(RuntimeError):
    """A video that cannot give the frames asked of it."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(str(path), cause)  # both are args, so that it survives pickling
        self.path, self.cause = str(path), cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


class _Source(NamedTuple):
    """A video that is open."""

    n_frames: int
    fps: float
    frames: Callable[[Sequence[int]], Iterator[np.ndarray]]  # by ascending index. (H, W, 3) uint8


def _serve(connection: Connection, memory: int, parent: int) -> None:
    """Answer requests until the caller goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    connection.send(True)
    source: _Source | None = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            verb, argument = connection.recv()
            try:
                if verb == "frames" and source is not None:
                    _send_frames(source, argument, connection, memory)
                elif verb != "next":  # that was said before it was known that decoding fails
                    source = _open(argument)
                    H = W = 0
                    if verb == "probe":  # decode all frames, one in memory at a time
                        for frame in source.frames(range(source.n_frames)):
                            H, W, _ = frame.shape
                    connection.send((source.n_frames, source.fps, H, W))
            except ClipError as error:
                connection.send(error.cause)
            except (MemoryError, ValueError, RuntimeError) as error:
                connection.send(f"cannot be read ({type(error).__name__}: {_first_line(error)})")


def _exit_with(parent: int) -> None:
    """End this process when its parent is gone, even while a file hangs in the decoder."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _send_frames(source: _Source, order: list[int], connection: Connection, memory: int) -> None:
    """Write frames to the two halves of the memory in turn, and say so when one is full."""
    halves: np.ndarray = np.empty(0)  # (2, m, H, W, 3)
    m = 1  # frames in a half
    for number, frame in enumerate(source.frames(order)):
        if number == 0:
            m = max(1, min(len(order), BUFFER // frame.nbytes))
            size = 2 * m * frame.nbytes
            if size > os.fstat(memory).st_size:
                os.truncate(memory, size)
            buffer = mmap.mmap(memory, os.fstat(memory).st_size)
            halves = np.frombuffer(buffer, np.uint8, size).reshape(2, m, *frame.shape)
        k, n = divmod(number, m)  # the n-th frame in half k % 2
        if n == 0 and k >= 2:
            connection.recv()  # the caller is done with this half
        halves[k % 2, n] = frame
        if n + 1 == m or number + 1 == len(order):
            waits = k + 2 < -(-len(order) // m)
            connection.send((k % 2 * m * frame.nbytes, (n + 1, *frame.shape), waits))


CAUSES = {  # what decord says when it opens a bad file, and what that means
    "Error reading": "not a video, or cut off before its index",
    "(-1128613112": "cut off within its index, or in a format without a decoder here",  # FFmpeg's
    "cannot find video stream": "holds no video stream (audio only?)",
    "av_read_frame failed": "cut off or damaged",
    "Failed to measure duration": "does not say how long it is; encode it again",
}


def _open(path: str) -> _Source:
    """A video whose frames can be read, or a ClipError with the cause."""
    if os.path.isdir(path):
        return _open_folder(path)
    if not os.path.exists(path):
        raise ClipError(path, "no such file")
    if not os.path.isfile(path):  # a pipe, which would hang decord
        raise ClipError(path, "not a file")
    if not os.access(path, os.R_OK):
        raise ClipError(path, "no permission to read it")
    if os.path.getsize(path) == 0:
        raise ClipError(path, "the file is empty (0 bytes)")
    decord.logging.set_level(decord.logging.QUIET)  # the causes below say it once, and by name
    try:  # fault_tol: an error instead of a silent copy of the frame before
        reader = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)
    except Exception as error:  # decord raises RuntimeError, AssertionError and its own
        reason = _first_line(error)
        causes = [cause for sign, cause in CAUSES.items() if sign in reason]
        raise ClipError(path, f"{(causes or ['cannot be opened'])[0]} ({reason})") from error
    if len(reader) == 0:
        raise ClipError(path, "holds no frames")
    return _Source(len(reader), reader.get_avg_fps(), partial(_decode_forward, reader, path))


def _decode_forward(
    reader: decord.VideoReader, path: str, order: Sequence[int]
) -> Iterator[np.ndarray]:
    """Frames by ascending index, all up to the last decoded. Each (H, W, 3) uint8."""
    wanted = frozenset(order)
    for i in range(order[-1] + 1):
        try:
            frame = reader.next()
            frame = frame.asnumpy() if i in wanted else None
        except (Exception, StopIteration) as error:
            cause = f"decoding stops at frame {i} of the {len(reader)} that the file claims"
            advice = "cut off, damaged, an edit list or MPEG-TS; encode it again"
            raise ClipError(path, f"{cause}: {advice} ({_first_line(error)})") from error
        if frame is None:
            continue
        height, width, channels = frame.shape
        if channels != 3:  # decord takes a padded row (widths 16, 24, 48, 72) for more channels
            frame = frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
        yield frame


def _open_folder(path: str) -> _Source:
    """A folder of numbered frames, from 0 or 1 upwards without a gap."""
    names: dict[int, str] = {}
    for name in sorted(os.listdir(path)):
        if digits := re.search(r"(\d+)\.(jpg|jpeg|png)$", name, re.IGNORECASE):
            if (number := int(digits[1])) in names:
                raise ClipError(path, f"two frames {number}: {names[number]} and {name}")
            names[number] = name
    if not names:
        raise ClipError(path, "a folder without numbered frames (00001.jpg, ... or .png)")
    first = 0 if 0 in names else 1
    for number in range(first, first + len(names)):
        if number not in names:
            raise ClipError(path, f"frame {number} is missing (the last is {max(names)})")
    files = [os.path.join(path, names[number]) for number in sorted(names)]
    return _Source(len(files), math.nan, partial(_open_images, path, files))


def _open_images(path: str, files: list[str], order: Sequence[int]) -> Iterator[np.ndarray]:
    """Images by index. Each (H, W, 3) uint8."""
    from PIL import Image

    size = None
    for i in order:
        name = os.path.basename(files[i])
        try:
            with Image.open(files[i]) as image:
                frame = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ClipError(path, f"{name} cannot be read ({_first_line(error)})") from error
        size = size or image.size
        if image.size != size:
            width, height = image.size
            raise ClipError(path, f"{name} is {width} x {height} pixels, others are not")
        yield frame


def _first_line(error: BaseException) -> str:
    """What decord says, without its clock and its source lines."""
    text = re.sub(r"\[[\d:]+\] |\S+\.cc:\d+: ", "", str(error)).strip()
    return text.split("\n", 1)[0] or type(error).__name__


def _main() -> None:
    descriptor, memory, parent = map(int, sys.argv[1:])
    _serve(Connection(descriptor), memory, parent)


if __name__ == "__main__":
    _main()
