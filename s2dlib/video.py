"""Video file -> frames, read forward by decord in a child that can be killed; a check of a set.

Axes: n frames, 3 colours (RGB), H x W pixels. decord's get_batch and skip_frames are silently wrong
on some files (open GOP, HEVC), so every frame up to the last wanted one is decoded, in order. It
also hangs, and could crash, on some files. So a thread that reads owns a child process, which runs
this file as a script: a bad file costs its own error and never the run.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import decord
import numpy as np

# This file is also the child: torch and pandas, 5 s, are imported where needed.
if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

TIMEOUT = 60.0  # seconds granted to a file
FILES = 500  # that a child reads before a new one takes over: what decord leaks stays bounded
BUFFER = 1 << 21  # bytes of frames handed over at a time; one half is filled, the other one read
FRAMES = (".jpg", ".jpeg", ".png")  # of a folder of frames


class ClipError(RuntimeError):
    """A video that cannot give the frames asked of it."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(str(path), cause)  # both are args, so that it survives pickling
        self.path, self.cause = str(path), cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds: frames that decode, frames a second (nan: not known), pixels."""

    n_frames: int
    fps: float
    height: int
    width: int


def read_frames(
    path: str | Path,
    wanted: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    short_side: int | None = None,
    timeout: float = TIMEOUT,
) -> Tensor:
    """Frames of a video, decoded forward up to the last wanted one, turned as players turn them.

    Args:
        path: a video file, or a folder of numbered frames (00001.jpg, ... or .png).
        wanted: frame indices, in any order; or a function from the frame count to them; None: all.
        short_side: pixels of the shorter side after resizing; None: as stored.
        timeout: seconds granted to the file.

    Returns:
        The wanted frames in the order asked, uint8, channels last in memory. (n, 3, H, W)

    Raises:
        ClipError: the file cannot be read, is damaged before the last wanted frame, is shorter, or
            hangs or crashes its reader.
    """
    import torch
    from torchvision.transforms.v2.functional import resize

    reader = _reader()
    n_total = reader.ask("open", str(path), timeout).n_frames
    indices = wanted(n_total) if callable(wanted) else wanted
    indices = list(range(n_total)) if indices is None else [int(i) for i in indices]
    if len(indices) == 0 or min(indices) < 0:
        raise ValueError(f"{path}: wanted must be frame indices >= 0, at least one, got {indices}")
    if max(indices) >= n_total:
        raise ClipError(path, f"has {n_total} frames, but frame {max(indices)} was asked for")
    order, out, n = sorted(set(indices)), None, 0
    for some in reader.frames(order):  # (m, H, W, 3)
        frames = torch.from_numpy(some).permute(0, 3, 1, 2)
        frames = resize(frames, [short_side], antialias=True) if short_side else frames
        if out is None:
            out = torch.empty((len(order), *frames.shape[-2:], 3), dtype=torch.uint8)
            out = out.permute(0, 3, 1, 2)  # (n, 3, H, W)
        out[n : n + len(frames)] = frames
        n += len(frames)
    if order == indices:
        return out
    return out[[order.index(i) for i in indices]]


def probe(path: str | Path, timeout: float = TIMEOUT) -> VideoInfo:
    """Count the frames of a video by decoding all of them; ClipError where that fails."""
    return _reader().ask("probe", str(path), timeout)


def check_videos(
    paths: Iterable[str | Path], timeout: float = TIMEOUT, processes: int | None = None
) -> DataFrame:
    """Probe every file: what is wrong with it, a hang or a crash too, is a row, no exception.

    Args:
        paths: the videos.
        timeout: seconds granted to one file.
        processes: children at a time; None: one a core.

    Returns:
        One row a file, in the order given: path, ok, n_frames, fps, height, width, cause.
    """
    import pandas as pd

    def row(path: str) -> dict[str, Any]:
        try:
            return {"path": path, "ok": True, **asdict(probe(path, timeout)), "cause": ""}
        except ClipError as error:
            nothing = asdict(VideoInfo(0, 0.0, 0, 0))
            return {"path": path, "ok": False, **nothing, "cause": error.cause}

    pool = ThreadPoolExecutor(processes or os.cpu_count() or 1)
    try:
        rows = list(pool.map(row, [str(path) for path in paths]))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends the threads too, and they their children
    return pd.DataFrame(rows, columns=["path", "ok", *VideoInfo.__annotations__, "cause"])


# The caller's side of the child

CHILD = [sys.executable, "-P", __file__]  # as a script: the package would import torch
_own = threading.local()  # .reader, this thread's


def _reader() -> _Reader:
    """This thread's reader; a new one after a fork, after a failure, and every FILES files."""
    reader = getattr(_own, "reader", None)
    if reader is None or reader.pid != os.getpid() or not reader.idle or reader.n_files >= FILES:
        if reader is not None:
            reader.close()
        _own.reader = reader = _Reader()
    return reader


class _Reader:
    """A child that decodes, and the memory through which its frames come."""

    def __init__(self) -> None:
        # Both are without a name, so that they go when the last process that holds them goes.
        self.memory = _memory()
        self.map = mmap.mmap(self.memory, os.fstat(self.memory).st_size)
        self.connection, there = Pipe()
        fds, self.pid = (there.fileno(), self.memory), os.getpid()
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        arguments = [*CHILD, *map(str, (*fds, self.pid))]
        self.child = subprocess.Popen(arguments, pass_fds=fds, **quiet)
        there.close()
        self.close = weakref.finalize(
            self, _end, self.child, self.connection, self.memory, self.pid
        )
        self.path, self.timeout, self.n_files, self.idle = " ".join(arguments), 120.0, 0, True
        self.deadline = time.monotonic() + self.timeout
        try:
            self._answer()
        except ClipError as error:
            raise RuntimeError(f"the reader of videos does not start: {error}") from error

    def ask(self, verb: str, path: str, timeout: float) -> VideoInfo:
        """What the child finds out by "open" (its count may be too high) or by "probe"."""
        self.path, self.timeout, self.deadline = path, timeout, time.monotonic() + timeout
        self.n_files += 1
        return VideoInfo(*self._answer((verb, path)))

    def frames(self, order: list[int]) -> Iterator[np.ndarray]:
        """The frames of the open file by ascending index, some at a time. (m, H, W, 3), a view"""
        n, message = 0, ("frames", order)
        while n < len(order):
            start, shape, waits = self._answer(message)
            self.idle = n + shape[0] == len(order)
            if start + np.prod(shape) > len(self.map):  # large frames have made it grow
                self.map = mmap.mmap(self.memory, os.fstat(self.memory).st_size)
            some = np.frombuffer(self.map, np.uint8, np.prod(shape), start).reshape(shape)
            yield some
            n, message = n + shape[0], ("next", None) if waits else None

    def _answer(self, message: tuple | None = None) -> Any:  # noqa: ANN401
        """What the child says next, perhaps to a message; ClipError when it fails, dies or hangs.

        While the reader is not idle, it is in an unknown state and will not be used again.
        """
        self.idle = False
        try:
            if message is not None:
                self.connection.send(message)
            if not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
                raise ClipError(self.path, f"no answer within {self.timeout:g} s")
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(timeout=5)
            code = self.child.returncode
            how = f"signal {-code}" if code and code < 0 else f"exit status {code}"
            raise ClipError(self.path, f"the reader died ({how})") from error
        self.idle = True
        if isinstance(answer, str):
            raise ClipError(self.path, answer)
        return answer


def _memory() -> int:
    """A file descriptor of memory that two processes can share."""
    if hasattr(os, "memfd_create"):  # Linux; unlike /dev/shm not limited to 64 MB in a container
        memory = os.memfd_create("frames")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.truncate(memory, 2 * BUFFER)
    return memory


def _end(child: subprocess.Popen, connection: Connection, memory: int, pid: int) -> None:
    """Close a reader; end its child unless it is another process's, inherited by a fork."""
    connection.close()
    os.close(memory)
    if pid == os.getpid():
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # a disk that does not answer holds it
            child.wait(timeout=5)


# The child's side


@dataclass(frozen=True)
class _Source:
    """A video that is open: its frames by ascending index, each (H, W, 3) uint8."""

    n_frames: int
    fps: float
    frames: Callable[[Sequence[int]], Iterator[np.ndarray]]


def _serve(connection: Connection, memory: int, parent: int) -> None:
    """Answer requests until the caller goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection.send(True)
    source = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            verb, argument = connection.recv()
            try:
                if verb == "frames":
                    _hand_over(source, argument, connection, memory)
                elif verb != "next":  # that was said before it was known that decoding fails
                    source = _open(argument)
                    shape = _count(source) if verb == "probe" else (0, 0)
                    connection.send((source.n_frames, source.fps, *shape))
            except ClipError as error:
                connection.send(error.cause)
            except (MemoryError, ValueError, RuntimeError) as error:
                connection.send(f"cannot be read ({type(error).__name__}: {_reason(error)})")


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even while a file hangs in the decoder."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _hand_over(source: _Source, order: list[int], connection: Connection, memory: int) -> None:
    """Write frames to the two halves of the memory in turn, and say so when one is full."""
    view, n, k = None, 0, 0  # n frames in half k % 2
    for i, frame in zip(order, source.frames(order), strict=True):
        if view is None:
            m = max(1, min(len(order), BUFFER // frame.nbytes))  # frames in a half
            if 2 * m * frame.nbytes > os.fstat(memory).st_size:
                os.truncate(memory, 2 * m * frame.nbytes)
            view = mmap.mmap(memory, os.fstat(memory).st_size)
            view = np.frombuffer(view, np.uint8, 2 * m * frame.nbytes).reshape(2, m, *frame.shape)
        if n == 0 and k >= 2:
            connection.recv()  # the caller is done with this half
        view[k % 2, n] = frame
        n += 1
        if n == m or i == order[-1]:
            waits = k + 2 < -(-len(order) // m)
            connection.send((k % 2 * m * frame.nbytes, (n, *frame.shape), waits))
            n, k = 0, k + 1


def _count(source: _Source) -> tuple[int, int]:
    """Decode all frames, one in memory at a time. Returns (H, W)."""
    height = width = 0
    for frame in source.frames(range(source.n_frames)):
        height, width = frame.shape[:2]
    return height, width


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
        reason = _reason(error)
        causes = [cause for sign, cause in CAUSES.items() if sign in reason]
        raise ClipError(path, f"{(causes or ['cannot be opened'])[0]} ({reason})") from error
    if len(reader) == 0:
        raise ClipError(path, "holds no frames")
    return _Source(len(reader), reader.get_avg_fps(), lambda order: _forward(reader, path, order))


def _forward(reader: decord.VideoReader, path: str, order: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames by ascending index, all up to the last decoded. Each (H, W, 3) uint8."""
    keep = frozenset(order)
    for i in range(order[-1] + 1):
        try:
            frame = reader.next()
            frame = frame.asnumpy() if i in keep else None
        except (Exception, StopIteration) as error:
            cause = f"decoding stops at frame {i} of the {len(reader)} that the file claims"
            advice = "cut off, damaged, an edit list or MPEG-TS; encode it again"
            raise ClipError(path, f"{cause}: {advice} ({_reason(error)})") from error
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
        stem, suffix = os.path.splitext(name)
        digits = re.search(r"\d+$", stem)
        if suffix.lower() in FRAMES and digits:
            if (number := int(digits[0])) in names:
                raise ClipError(path, f"two frames {number}: {names[number]} and {name}")
            names[number] = name
    if not names:
        raise ClipError(path, "a folder without numbered frames (00001.jpg, ... or .png)")
    first = 0 if 0 in names else 1
    for number in range(first, first + len(names)):
        if number not in names:
            raise ClipError(path, f"frame {number} is missing (the last is {max(names)})")
    files = [os.path.join(path, names[number]) for number in sorted(names)]
    return _Source(len(files), float("nan"), lambda order: _images(path, files, order))


def _images(path: str, files: list[str], order: Sequence[int]) -> Iterator[np.ndarray]:
    """Images by index. Each (H, W, 3) uint8."""
    from PIL import Image

    size = None
    for i in order:
        name = os.path.basename(files[i])
        try:
            with Image.open(files[i]) as image:
                frame = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ClipError(path, f"{name} cannot be read ({_reason(error)})") from error
        size = size or image.size
        if image.size != size:
            width, height = image.size
            raise ClipError(path, f"{name} is {width} x {height} pixels, others are not")
        yield frame


def _reason(error: BaseException) -> str:
    """What decord says, without its clock and its source lines."""
    text = re.sub(r"\[[\d:]+\] |\S+\.cc:\d+: ", "", str(error)).strip()
    return text.split("\n", 1)[0] or type(error).__name__


def _main() -> None:
    connection, memory, parent = map(int, sys.argv[1:])
    _serve(Connection(connection), memory, parent)


if __name__ == "__main__":
    _main()
