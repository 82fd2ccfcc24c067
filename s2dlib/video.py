"""Video file -> frames, read forward by decord, and a check of a whole set.

Axes: n frames, 3 colours (RGB), H x W pixels. decord's get_batch and skip_frames are silently wrong
on some files (open GOP, HEVC), so every frame up to the last wanted one is decoded, in order. Each
call opens its own reader: one that was opened before a fork hangs the worker.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

import decord

# This file is also the child of check_videos: torch and pandas, 5 s, are imported where needed.
if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame
    from torch import Tensor


class ClipError(RuntimeError):
    """A video file that cannot give the frames asked of it."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(str(path), cause)  # both are args, so that it survives pickling
        self.path, self.cause = str(path), cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds: frames that decode, frames a second, pixels."""

    n_frames: int
    fps: float
    height: int
    width: int


def read_frames(
    path: str | Path,
    wanted: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    short_side: int | None = None,
) -> Tensor:
    """Frames of a video, decoded forward up to the last wanted one.

    Args:
        path: the video file.
        wanted: frame indices, in any order; or a function from the frame count to them; None: all.
        short_side: pixels of the shorter side after resizing; None: as stored.

    Returns:
        The wanted frames in the order asked, uint8. (n, 3, H, W)

    Raises:
        ClipError: the file cannot be read, is damaged before the last wanted frame, or is shorter.
    """
    import torch
    from torchvision.transforms.v2.functional import resize

    reader = _open(path)
    indices = wanted(len(reader)) if callable(wanted) else wanted
    indices = range(len(reader)) if indices is None else [int(i) for i in indices]
    if len(indices) == 0 or min(indices) < 0:
        raise ValueError(f"{path}: wanted must be frame indices >= 0, at least one, got {indices}")
    if max(indices) >= len(reader):
        raise ClipError(path, f"has {len(reader)} frames, but frame {max(indices)} was asked for")
    frames, keep = {}, set(indices)
    for i, array in zip(range(max(indices) + 1), _forward(reader, path), strict=False):
        if i in keep:
            frame = torch.from_numpy(array).permute(2, 0, 1)  # (3, H, W)
            frames[i] = resize(frame, [short_side], antialias=True) if short_side else frame
    return torch.stack([frames[i] for i in indices])  # (n, 3, H, W)


def probe(path: str | Path) -> VideoInfo:
    """Count the frames of a video by decoding all of them; ClipError where that fails."""
    reader = _open(path)
    for frame in _forward(reader, path):
        height, width = frame.shape[:2]
    return VideoInfo(len(reader), reader.get_avg_fps(), height, width)


def check_videos(
    paths: Iterable[str | Path], timeout: float = 60.0, processes: int | None = None
) -> DataFrame:
    """Probe every file in a child that can be killed: a hang or a crash is a row, no exception.

    Args:
        paths: the video files.
        timeout: seconds granted to one file.
        processes: children at a time; None: one a core.

    Returns:
        One row a file, in the order given: path, ok, n_frames, fps, height, width, cause.
    """
    import pandas as pd

    paths = [str(path) for path in paths]
    todo, rows = deque(enumerate(paths)), {}
    n_children = max(1, min(processes or os.cpu_count() or 1, len(paths)))
    with ThreadPoolExecutor(n_children) as pool:
        try:
            for done in [pool.submit(_check_some, todo, rows, timeout) for _ in range(n_children)]:
                done.result()
        finally:
            todo.clear()  # Ctrl-C ends the threads too
    columns = ["path", "ok", "n_frames", "fps", "height", "width", "cause"]
    failed = {"ok": False, "n_frames": 0, "fps": 0.0, "height": 0, "width": 0}
    found = [{"path": path, **failed, **rows[i]} for i, path in enumerate(paths)]
    return pd.DataFrame(found, columns=columns)


CAUSES = {  # what decord says when it opens a bad file, and what that means
    "Error reading": "not a video, or cut off before its index",
    "cannot find video stream": "holds no video stream (audio only?)",
    "av_read_frame failed": "cut off or damaged",
}


def _open(path: str | Path) -> decord.VideoReader:
    """A reader that stands before frame 0, or a ClipError with the cause."""
    if not os.path.exists(path):
        raise ClipError(path, "no such file")
    if not os.path.isfile(path):  # a folder; a pipe, which would hang decord
        raise ClipError(path, "not a file")
    if os.path.getsize(path) == 0:
        raise ClipError(path, "the file is empty (0 bytes)")
    decord.logging.set_level(decord.logging.QUIET)  # the causes below say it once, and by name
    try:  # fault_tol: an error instead of a silent copy of the frame before
        return decord.VideoReader(str(path), num_threads=1, fault_tol=1e-9)
    except Exception as error:  # decord raises RuntimeError, AssertionError and its own
        reason = _reason(error)
        causes = [cause for sign, cause in CAUSES.items() if sign in reason]
        raise ClipError(path, f"{(causes or ['cannot be opened'])[0]} ({reason})") from error


def _forward(reader: decord.VideoReader, path: str | Path) -> Iterator[np.ndarray]:
    """All frames in order. Each (H, W, 3) uint8."""
    for i in range(len(reader)):
        try:
            frame = reader.next().asnumpy()
        except (Exception, StopIteration) as error:
            cause = f"decoding stops at frame {i} of the {len(reader)} that the file claims"
            advice = "cut off, damaged or an edit list; encode it again"
            raise ClipError(path, f"{cause}: {advice} ({_reason(error)})") from error
        height, width, channels = frame.shape
        if channels != 3:  # decord takes a padded row (widths 16, 24, 48, 72) for more channels
            frame = frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
        yield frame


def _reason(error: BaseException) -> str:
    """What decord says, without its clock and its source lines."""
    text = re.sub(r"\[[\d:]+\] |\S+\.cc:\d+: ", "", str(error)).strip()
    return text.split("\n", 1)[0] or type(error).__name__


CHILD = [sys.executable, "-P", __file__]  # as a script: the package would import torch


def _check_some(todo: deque[tuple[int, str]], rows: dict[int, dict], timeout: float) -> None:
    """Feed files to one child until none is left; replace the child when it hangs or dies."""
    child = None
    while todo:
        try:
            i, path = todo.popleft()
        except IndexError:  # another thread took the last one
            break
        if child is None:
            child = subprocess.Popen(
                CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        start, deadline = time.monotonic(), Timer(timeout, child.kill)
        deadline.start()
        try:
            child.stdin.write(json.dumps(path).encode() + b"\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = b""
        deadline.cancel()
        deadline.join()
        late = time.monotonic() - start >= timeout
        if answer:
            rows[i] = json.loads(answer)
        if late or not answer:
            child.kill()
            child.communicate()  # closes the pipes and waits
            died = f"the reader died (exit status {child.returncode})"
            rows.setdefault(i, {"cause": f"no answer within {timeout:g} s" if late else died})
            child = None
    if child is not None:
        child.communicate()  # the end of its input ends it


def _serve() -> None:
    """The child: a path a line in, what is known of it a line out."""
    for line in sys.stdin:
        try:
            row = {"ok": True, "cause": "", **asdict(probe(json.loads(line)))}
        except ClipError as error:
            row = {"cause": error.cause}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _serve()
