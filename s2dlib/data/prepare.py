"""Working copies: every tau-th frame of a video, at the short side of training, cheap to decode.

What is done by hand before a training on Kinetics. Of a video of n frames a copy holds the frames
o, o + tau, ... up to the last, where o is the start of the centred clip modulo tau. So the clips
that testing takes (choose_frames) are the same of both; training draws one of the starts o + k tau,
of tau times as many in the video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from s2dlib.config import DataConfig
from s2dlib.data.clips import choose_frames
from s2dlib.data.files import FPS, atomic_path, write_atomic, write_h264
from s2dlib.data.index import as_csv, no_blank_first, read_index
from s2dlib.data.readers import open_frames
from s2dlib.data.sources import COPY, ClipError

# Closed groups of a few frames, so that little is decoded before a clip; fastdecode: no CABAC, no
# deblocking. Top-1 of the shared model on copies of the 1,000 synthetic test clips: 86.2 at crf 23,
# 84.6 at crf 30; 85.8 on the videos themselves.
H264 = {"preset": "veryfast", "tune": "fastdecode", "crf": "23", "g": "12", "bf": "0"}
TOLD = ["frame_stride", "short_side"]  # columns of a CSV of copies (clips.for_copies)


class Copy(NamedTuple):
    """A copy: its file, the video's frame o that it begins with, and how many frames it holds."""

    path: Path
    first: int
    n_frames: int


def write_copy(source: str | Path, path: Path, config: DataConfig) -> Copy:
    """Write the working copy of a video, whole or not at all.

    Args:
        source: a video file, or a folder of numbered frames.
        path: of the copy, an mp4; replaced if it is there.
        config: n_frames (T), frame_stride (tau), short_side and timeout.

    Raises:
        ClipError: the video cannot be read.
    """
    first, config = 0, replace(config, min_frames=1)

    def choose(n_total: int) -> range:
        nonlocal first
        first = choose_frames(n_total, config)[0] % config.frame_stride
        return range(first, n_total, config.frame_stride)

    info, chunks = open_frames(source, choose, config.short_side, config.timeout)
    fps = info.fps if 1 <= info.fps <= 1000 else FPS  # not known of a folder of frames
    frames = (frame for chunk in chunks for frame in chunk.permute(0, 2, 3, 1).numpy())
    with atomic_path(path) as partial:
        n = write_h264(partial, frames, fps / config.frame_stride, COPY, H264)
        if n == 0:
            raise ClipError(source, "none of its frames decodes")
    return Copy(path, first, n)


def write_copies_csv(
    csv: str | Path, out: Path, copies: Mapping[str, Copy], config: DataConfig
) -> Path:
    """Write the CSV of the copies: the rows of the videos that have one, and the columns TOLD.

    A known moment, t and duration, is told in the copy's frames. Places stay in pixels of the video
    as written, whose side is told: they are seen in proportion to it.

    Args:
        csv: of the videos.
        copies: by the absolute path of the video.
        config: as the copies were written.
    """
    table, paths = read_index(csv)
    table = table[[path in copies for path in paths]].drop(
        columns=["reader", "n_frames"], errors="ignore"
    )
    if table.empty:
        raise ValueError(f"{csv}: none of its {len(paths)} videos could be copied")
    made = [copies[path] for path in paths if path in copies]
    table["path"] = [no_blank_first(copy.path.relative_to(out.parent)) for copy in made]
    stride = config.frame_stride
    if stride > 1 and {"t", "duration"} <= set(table.columns):
        first = [copy.first for copy in made]
        table["t"] = (table["t"].astype(float) - first) / stride
        table["duration"] = table["duration"].astype(float) / stride
    table[TOLD] = [stride, config.short_side]
    return write_atomic(out, as_csv(table))
