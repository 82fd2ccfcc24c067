"""Video file -> frames, by a child process that can be killed (child.py); a check of a set.

Axes: n frames, 3 colours (RGB), H x W pixels.
"""

from __future__ import annotations

import logging
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from s2dlib.data.sources import BUFFER, ClipError, EndsEarlier, VideoInfo

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from s2dlib.data.decoding import InProcess


# Which frames: by index, or a function from the frame count to indices; None: all.
Wanted: TypeAlias = Sequence[int] | Callable[[int], Sequence[int]] | None
T = TypeVar("T")
log = logging.getLogger(__name__)
TIMEOUT = 60.0  # seconds without progress granted to a file


def read_frames(
    path: str | Path,
    wanted: Wanted = None,
    short_side: int | None = None,
    timeout: float = TIMEOUT,
    convert: Callable[[Tensor], Tensor] = lambda frames: frames,
    child: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Frames of a video as a player shows them, turned if the file asks for it.

    Args:
        path: a video file, or a folder of numbered frames (00001.jpg, ... or .png).
        wanted: frame indices, in any order; or a function from the frame count to them; None: all.
            It is called again where fewer frames decode than the file claims.
        short_side: pixels of the shorter side after resizing; None: as stored.
        timeout: seconds without progress granted to the file.
        convert: cuts, say, squares out of some frames (m, 3, H, W), before they are copied to
            their place; it is called for a few frames at a time. -> (m, ..., H', W')
        child: read by a process that can be killed; False: in this one, with no timeout; faster.
        out: uint8 memory for at least n frames, into which ascending ones go. (..., N, H', W')

    Returns:
        The wanted frames in the order asked, uint8; a view of (..., n, H', W') in memory.
        (n, 3, H, W) or, by convert, (n, ..., H', W')

    Raises:
        ClipError: the file cannot be read, is damaged before the last wanted frame, is shorter, or
            hangs or crashes its reader.
    """
    reader = _reader() if child else _in_process()
    info = reader.ask("open", path, timeout)
    while True:
        n_total = info.n_frames
        indices = wanted(n_total) if callable(wanted) else wanted
        indices = list(range(n_total)) if indices is None else [int(i) for i in indices]
        if not indices or min(indices) < 0:
            text = f"{path}: wanted must be frame indices >= 0, at least one, got {indices}"
            raise ValueError(text)
        if max(indices) >= n_total:
            raise ClipError(path, f"has {n_total} frames, but frame {max(indices)} was asked for")
        order = sorted(set(indices))
        try:
            chunks = (convert(_resize(chunk, short_side)) for chunk in reader.frames(order))
            frames = _collect(chunks, len(order), out)
        except EndsEarlier as error:
            info = error.args[0]
            continue
        _warn_if_shorter(path, info)
        return frames if order == indices else frames[[order.index(i) for i in indices]]


def open_frames(
    path: str | Path,
    wanted: Callable[[int], Sequence[int]],
    short_side: int,
    timeout: float = TIMEOUT,
) -> tuple[VideoInfo, Iterator[Tensor]]:
    """A video of any length, some frames at a time; arguments and errors as of read_frames.

    Args:
        wanted: called once; frames beyond the video's end do not come.

    Returns:
        What the file says, without its size, and frames, (m, 3, H, W) each.
    """
    reader = _reader()
    info = reader.ask("open", path, timeout)

    def chunks() -> Iterator[Tensor]:
        try:
            for chunk in reader.frames(list(wanted(info.n_frames))):
                yield _resize(chunk, short_side)
        except EndsEarlier as error:
            _warn_if_shorter(path, error.args[0])

    return info, chunks()


def _resize(chunk: np.ndarray, short_side: int | None) -> Tensor:
    """(m, H, W, 3) -> (m, 3, H, W), as stored where short_side is None"""
    import torch

    from s2dlib.data.pixels import resize_short_side

    frames = torch.from_numpy(chunk).permute(0, 3, 1, 2)
    return resize_short_side(frames, short_side) if short_side else frames


def _collect(chunks: Iterator[Tensor], n_frames: int, out: Tensor | None) -> Tensor:
    """Chunks (m, ..., H, W) in one: a view of (..., n_frames, H, W). (n_frames, ..., H, W)"""
    n, first = 0, next(chunks)
    if out is None:
        out = first.new_empty((*first.shape[1:-2], n_frames, *first.shape[-2:]))
    frames = out.movedim(-3, 0)[:n_frames]
    for chunk in chain([first], chunks):  # by NumPy in half the time of torch
        np.copyto(frames[n : n + len(chunk)].numpy(), chunk.numpy())
        n += len(chunk)
    return frames


_warned: set[str] = set()  # paths


def _warn_if_shorter(path: str | Path, info: VideoInfo) -> None:
    """Once where a file gives fewer frames than it claims."""
    if info.lost and str(path) not in _warned:
        _warned.add(str(path))
        text = "%s: %d of the %d frames that it claims decode; it is taken to be so long"
        log.warning(text, path, info.n_frames, info.n_frames + info.lost)


def probe(path: str | Path, timeout: float = TIMEOUT) -> VideoInfo:
    """Count the frames of a video by decoding all of them; ClipError where that fails.

    timeout: seconds without progress granted to the file.
    """
    return _reader().ask("probe", path, timeout)


def is_video(path: str | Path, timeout: float = TIMEOUT) -> bool:
    """Whether a reader here can open this file; its frames are not decoded."""
    try:
        _reader().ask("open", path, timeout)
    except ClipError:
        return False
    return True


def check_videos(
    paths: Iterable[str | Path], timeout: float = TIMEOUT, processes: int | None = None
) -> DataFrame:
    """Probe every file: what is wrong with it, a hang or a crash too, is a row, no exception.

    Args:
        timeout: seconds without progress granted to one file.
        processes: children at a time; None: one a core.

    Returns:
        One row a file, in the order given: path, ok, those of VideoInfo, cause.
    """
    import pandas as pd

    def row(path: str) -> dict[str, Any]:
        info, cause = VideoInfo(0, 0.0, 0, 0), ""
        try:
            info = probe(path, timeout)
        except ClipError as error:
            cause = error.cause
        return {"path": path, "ok": not cause, **info._asdict(), "cause": cause}

    with ThreadPoolExecutor(processes or os.cpu_count()) as pool:  # and with them their children
        rows = list(pool.map(row, map(str, paths)))  # Ctrl-C cancels the rest
    return pd.DataFrame(rows, columns=["path", "ok", *VideoInfo._fields, "cause"])


def read_ahead(
    read: Callable[[Path], T], paths: Iterable[Path], workers: int, ahead: int
) -> Generator[T, None, None]:
    """What `read` makes of each video, in their order, by threads that are ahead of the caller.

    What is read lies in this process's memory, not in /dev/shm, which a container may limit.

    Args:
        read: calls read_frames; what it raises is raised here when its turn comes.
        workers: threads.
        ahead: videos read, or being read, that were not asked for yet.
    """
    children: list[subprocess.Popen] = []  # of these threads
    pool = ThreadPoolExecutor(workers, initializer=setattr, initargs=(_local, "children", children))
    futures: deque[Future[T]] = deque()
    try:
        for path in paths:
            futures.append(pool.submit(read, path))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:  # Ctrl-C, too: a file that hangs its reader is not waited for
        pool.shutdown(wait=False, cancel_futures=True)
        while True:  # again: a thread may just have started its child
            for child in [*children]:
                child.kill()
            if all(future.done() for future in futures):
                break
            time.sleep(0.01)


CHILD = [sys.executable, "-P", "-m", "s2dlib.data.child"]
_local = threading.local()  # this thread's .reader; .children of its pool, by read_ahead


def _in_process() -> InProcess:
    from s2dlib.data.decoding import InProcess

    return InProcess()


def _reader() -> _Reader:
    """This thread's reader; a new one after a fork and after a failure."""
    reader = getattr(_local, "reader", None)
    if reader is not None:
        if reader.idle and reader.pid == os.getpid():
            return reader
        reader.close()
    _local.reader = reader = _Reader()
    return reader


class _Reader:
    """A child that decodes, and the memory through which its frames come."""

    def __init__(self) -> None:
        # Both are without a name, so that they go when the last process that holds them goes.
        self.memory = _shared_memory()
        self.map = mmap.mmap(self.memory, os.fstat(self.memory).st_size)
        self.connection, child_end = Pipe()
        fds, self.pid = (child_end.fileno(), self.memory), os.getpid()
        arguments, null = [*CHILD, *map(str, (*fds, self.pid))], subprocess.DEVNULL
        # The modules it imports are those of this process; where it was started is no matter.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths}
        self.child = subprocess.Popen(
            arguments, pass_fds=fds, stdin=null, stdout=null, stderr=null, env=environment
        )
        child_end.close()
        getattr(_local, "children", []).append(self.child)
        self.close = weakref.finalize(
            self, _close, self.child, self.connection, self.memory, self.pid
        )
        self.path, self.timeout = " ".join(arguments), 120.0
        try:
            self._request()
        except ClipError as error:
            raise RuntimeError(f"the reader of videos does not start: {error}") from error

    def ask(self, verb: str, path: str | Path, timeout: float) -> VideoInfo:
        """What the child finds out by "open" (its count may be too high) or by "probe"."""
        self.path, self.timeout = str(path), timeout
        return self._request((verb, os.path.abspath(path)))  # it stays in its folder

    def frames(self, order: list[int]) -> Iterator[np.ndarray]:
        """The frames of the open file by ascending index, some at a time. (m, H, W, 3), a view"""
        n = 0
        request: tuple[str, object] | None = ("frames", order)
        while n < len(order):
            answer = self._request(request)
            if isinstance(answer, VideoInfo):
                raise EndsEarlier(answer)
            start, shape, waits = answer
            self.idle = n + shape[0] == len(order)
            if start + np.prod(shape) > len(self.map):  # large frames have made it grow
                self.map = mmap.mmap(self.memory, os.fstat(self.memory).st_size)
            yield np.frombuffer(self.map, np.uint8, np.prod(shape), start).reshape(shape)
            n, request = n + shape[0], ("next", None) if waits else None

    def _request(self, message: tuple[str, object] | None = None) -> Any:  # noqa: ANN401
        """The child's answer, perhaps to a message; ClipError when it fails, dies or hangs.

        While the reader is not idle, it is in an unknown state and will not be used again.
        """
        self.idle = False
        try:
            if message is not None:
                self.connection.send(message)
            answer = None
            while answer is None:  # None: it is getting on
                if not self.connection.poll(self.timeout):
                    limit = f"no progress within {self.timeout:g} s"
                    raise ClipError(self.path, f"{limit}; grant more by timeout=")
                answer = self.connection.recv()
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(timeout=5)
            code = self.child.returncode
            reason = f"signal {-code}" if code and code < 0 else f"exit status {code}"
            raise ClipError(self.path, f"the reader died ({reason})") from error
        self.idle = True
        if isinstance(answer, str):
            raise ClipError(self.path, answer)
        return answer


def _shared_memory() -> int:
    """A file descriptor of memory that two processes can share."""
    if hasattr(os, "memfd_create"):  # Linux; unlike /dev/shm not limited to 64 MB in a container
        memory = os.memfd_create("frames")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.truncate(memory, 2 * BUFFER)
    return memory


def _close(child: subprocess.Popen, connection: Connection, memory: int, pid: int) -> None:
    """Close a reader; end its child unless it is another process's, inherited by a fork."""
    connection.close()
    os.close(memory)
    if pid == os.getpid():
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # a disk that does not answer holds it
            child.wait(timeout=5)
