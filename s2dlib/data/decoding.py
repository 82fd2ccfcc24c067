"""Which frames a video file holds: frame i is the i-th one that a player shows (D14).

That is the i-th frame that PyAV decodes, forward from the start. Where the times of all packets are
known, reading begins at the key frame before, and each frame must bear the time that is expected.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoFrame, VideoStream
from av.video.reformatter import VideoReformatter

from s2dlib.data.packets import BROADCAST, Packets
from s2dlib.data.sources import (
    COPY,
    ClipError,
    EndsEarlier,
    Folder,
    VideoInfo,
    cause_of,
    first_line,
    progress,
)

MOV, MKV = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"  # FFmpeg's names of the demuxers
FIRST = 3  # frames that are decoded when a file is opened
FEW = 2  # frames that any file may lose
LOSS, LOSS_SECONDS = 0.1, 2  # what a file that is not cut off may lose: a share, and a time
TIMED = {MKV, "flv", "asf"}  # whose header tells the duration and no count of frames
# One packet, one frame; not so VP8 and MPEG-4 (hidden and empty frames), Theora, WMV
SEEKABLE = {"h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "prores", "ffv1"}
HEAD = 32  # frames that must bear the times of their packets before a file is sought


def open_video(path: str) -> Folder | Video:
    """A video whose frames can be read, or a ClipError with the cause."""
    if os.path.isdir(path):
        return Folder(path)
    if not os.path.exists(path):
        raise ClipError(path, "no such file")
    if not os.path.isfile(path):  # a pipe, which would hang the decoder
        raise ClipError(path, "not a file")
    if not os.access(path, os.R_OK):
        raise ClipError(path, "no permission to read it")
    if os.path.getsize(path) == 0:
        raise ClipError(path, "the file is empty (0 bytes)")
    return Video(path)


def open_copy(path: str) -> Folder | Video | WorkingCopy:
    """As open_video, and faster where the file is a working copy."""
    if os.path.isfile(path):
        with suppress(av.FFmpegError, OSError, ValueError):  # whose cause open_video tells
            return WorkingCopy(path)
    return open_video(path)


def info_of(source: Folder | Video | WorkingCopy, height: int = 0, width: int = 0) -> VideoInfo:
    """What is known of a video so far; its size where a frame has told it."""
    return VideoInfo(source.n_frames, source.fps, height, width, source.reader, source.lost)


class InProcess:
    """Reads in the caller's process what readers._Reader reads by a child."""

    def ask(self, verb: str, path: str | Path, timeout: float) -> VideoInfo:  # noqa: ARG002
        """As there, to "open" alone."""
        self.path = str(path)
        with _clip_errors(self.path):
            self.source = open_copy(self.path)
        return info_of(self.source)

    def frames(self, order: list[int]) -> Iterator[np.ndarray]:
        """As there, one at a time. (1, H, W, 3)"""
        n = 0
        with _clip_errors(self.path):
            for frame in self.source.frames(order):
                n += 1
                as_torch_can = frame.flags.writeable and min(frame.strides) > 0
                yield (frame if as_torch_can else frame.copy())[None]
        if n < len(order):
            raise EndsEarlier(info_of(self.source))


@contextmanager
def _clip_errors(path: str) -> Iterator[None]:
    """What a decoder raises, whatever it is, as the file's ClipError."""
    try:
        yield
    except Exception as error:
        raise ClipError(path, cause_of(error)) from error


class WorkingCopy:
    """A file of `s2d prepare`, opened once: its index tells when each frame is shown.

    Raises:
        ValueError: it is another file.
    """

    reader = "pyav"

    def __init__(self, path: str) -> None:
        self.path, self.lost = path, 0
        self._container = av.open(os.path.abspath(path), metadata_errors="replace")
        if self._container.metadata.get("comment") != COPY:
            raise ValueError(f"{path}: expected a working copy, got another video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type, self._stream.codec_context.thread_count = "NONE", 1
        index = self._stream.index_entries
        self._times = [entry.timestamp for entry in index]
        self._keys = [i for i, entry in enumerate(index) if entry.is_keyframe]
        self.n_frames, self.fps = len(self._times), float(self._stream.average_rate or math.nan)
        self._reformatter = VideoReformatter()

    def frames(self, order: Sequence[int]) -> Iterator[np.ndarray]:
        """As Video.frames, which is asked for those that the index does not lead to."""
        width, height, done = self._stream.width, self._stream.height, 0
        with suppress(av.FFmpegError):
            for i, frame in self._sought(order[0]):
                if i == order[done]:
                    yield _rgb(self._reformatter, frame, width, height)
                    done += 1
                    if done == len(order):
                        return
        video = open_video(self.path)
        yield from video.frames(order[done:])
        self.n_frames, self.lost = video.n_frames, video.lost

    def _sought(self, first: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers from a key frame on, up to one that bears another time."""
        start = max((key for key in self._keys if key <= first), default=0)
        self._container.seek(self._times[start], stream=self._stream)
        for i, frame in enumerate(self._container.decode(self._stream), start):
            if [frame.pts] != self._times[i : i + 1]:
                return
            yield i, frame


class Video:
    """A video file, whose packets have been listed and whose first frames decode.

    n_frames may be too high by a few until its end has been decoded.
    """

    reader = "pyav"

    def __init__(self, path: str) -> None:
        self.path, self.url = path, os.path.abspath(path)  # nothing of it is taken for a protocol
        try:
            self.url.encode()
        except UnicodeEncodeError:  # FFmpeg is given names in UTF-8 alone
            self._file = open(path, "rb")  # noqa: SIM115 (open as long as this is)
            self.url = f"/dev/fd/{self._file.fileno()}"
        self._failure: Exception | None = None  # that has ended the last decoding
        with self._container() as container:
            stream = self._stream(container)
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else math.nan
            self.kind = (container.format.name, stream.codec_context.codec.canonical_name)
            claimed, seconds = stream.frames, (container.duration or 0) / av.time_base
            if claimed and self.kind[0] == MOV:  # samples that an edit list leaves
                claimed = len(stream.index_entries)
            self._packets = Packets(container, stream)
        self.n_frames = len(self._packets.times)
        self.lost = self._judge_end(claimed, seconds)
        self._forward: Iterator[VideoFrame] | None = self._decode()
        self.first = list(islice(self._forward, FIRST))
        if not self.first or not self.n_frames:
            why = f" ({first_line(self._failure)})" if self._failure else ""
            raise ClipError(path, f"cut off or damaged: none of its frames decodes{why}")
        self._reformatter, self._matrix = VideoReformatter(), _display_matrix(self.first[0])
        self._size = self.first[0].width, self.first[0].height

    def _container(self) -> InputContainer:
        try:
            container = av.open(self.url, metadata_errors="replace")
        except av.FFmpegError as error:
            cause = "not a video, or cut off before its index"
            raise ClipError(self.path, f"{cause} ({first_line(error)})") from error
        name = container.format.name
        if name in ("tty", "image2") or name.endswith("_pipe"):  # any text; a picture
            raise ClipError(self.path, f"not a video, but {name.removesuffix('_pipe')}")
        return container

    def _stream(self, container: InputContainer) -> VideoStream:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise ClipError(self.path, "holds no video stream (audio only?)")
        if stream.codec_context is None:
            cause = "cut off within its index, or in a format without a decoder here"
            raise ClipError(self.path, cause)
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        return stream

    def _judge_end(self, claimed: int, seconds: float) -> int:
        """Frames that the file claims and has not; ClipError where it is cut off.

        A count that is a little too high is the rule in old files, and no damage. The frames
        claimed and the seconds are its header's; 0: not said.
        """
        packets, container = self._packets, self.kind[0]
        if container in TIMED and seconds > 0 and self.fps > 0:
            missing = round((seconds - packets.end) * self.fps)
            claimed = packets.n_held + (missing if missing > FEW else 0)  # times are rounded
        if not claimed and (container == "asf" or (packets.cut and container not in BROADCAST)):
            raise ClipError(self.path, f"cut off within or after frame {self.n_frames - 1}")
        held = packets.n_held
        lost = max(claimed, packets.n) - held
        if container == "avi" and packets.last >= held > 0:  # counts ticks, some without a frame
            ticks = packets.last + 1
            lost, self.fps = max(0, claimed - ticks) * held // ticks, self.fps * held / ticks
        if self._is_much(lost, held + lost, damaged=packets.cut):
            cause = f"cut off: holds {held} of the {held + lost} frames that it claims"
            raise ClipError(self.path, cause)
        return lost

    def _is_much(self, lost: int, claimed: int, *, damaged: bool) -> bool:
        """Whether a file loses too much to be read; a part of a broadcast is a shorter video."""
        if self.kind[0] in BROADCAST and not damaged:
            return False
        rate = self.fps if self.fps > 0 else 25
        return lost > FEW and (damaged or lost > min(LOSS * claimed, LOSS_SECONDS * rate))

    def _decode(self, start: int | None = None) -> Iterator[VideoFrame]:
        """Frames from the start, or from a key frame at or before a time, as they are shown.

        They end with the file, or where decoding fails: _failure is why.
        """
        self._failure, n = None, 0
        with self._container() as container:
            stream = self._stream(container)
            try:
                if start is not None:
                    container.seek(start, stream=stream)
                for packet in container.demux(stream):
                    progress.tick()
                    if packet.size == 0 and packet.dts is not None:  # would end the decoder
                        continue
                    try:
                        decoded = packet.decode()
                    except av.FFmpegError:
                        if n == 0 and self.kind[0] in BROADCAST:  # begins within a group
                            continue
                        raise
                    n += len(decoded)
                    yield from decoded
            except av.FFmpegError as error:
                self._failure = error
                with suppress(av.FFmpegError):  # what it has kept for the order
                    yield from stream.codec_context.decode(None)

    def frames(self, order: Sequence[int]) -> Iterator[np.ndarray]:
        """By ascending index, each (H, W, 3) uint8; fewer where the video ends: n_frames is so."""
        done = n = 0
        for decode in (self._sought, self._from_start):
            for i, frame in decode(order[done]):
                n = i + 1
                if i == order[done]:
                    yield self.rgb(frame)
                    done += 1
                    if done == len(order):
                        return
        self.lost, self.n_frames = self.lost + self.n_frames - n, n
        if self._is_much(self.lost, n + self.lost, damaged=self._failure is not None):
            cause = f"damaged: {n} of the {n + self.lost} frames that it claims decode"
            why = f", then {first_line(self._failure)}" if self._failure else ""
            raise ClipError(self.path, cause + why)

    def _from_start(self, _: int) -> Iterator[tuple[int, VideoFrame]]:
        """All frames with their numbers; what was decoded when the file was opened serves once."""
        if self._forward is None:
            return enumerate(self._decode())
        forward, self._forward = self._forward, None
        return enumerate(chain(self.first, forward))

    def _sought(self, first: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers from the last key frame before the first wanted one.

        Numbers are those of the listed times, which each frame must bear: at one that does not, or
        where nothing is gained, no more come.
        """
        times = sorted(time for time in self._packets.times if time is not None)
        number = {time: i for i, time in enumerate(times)}
        if self.kind[1] not in SEEKABLE or len(number) < self.n_frames:  # unknown, or not unique
            return
        keys = (number[time] for time in self._packets.keys if time is not None)
        start = i = max((key for key in keys if key <= first), default=0)
        if start < 2 * HEAD:
            return
        if [frame.pts for frame in islice(self._decode(), HEAD)] != times[:HEAD]:
            return
        for frame in self._decode(self._packets.keys[times[start]]):
            if i == start and frame.pts is not None and frame.pts < times[start]:
                continue  # of a group before, or an open group's, which lacks what it refers to
            if [frame.pts] != times[i : i + 1] or (i == start and not frame.key_frame):
                return
            yield i, frame
            i += 1

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """Pixels as players show them, at the size of the first frame: a view. (H, W, 3) uint8"""
        pixels = _rgb(self._reformatter, frame, *self._size)
        if self._matrix is None:
            return pixels
        a, b, c, d = self._matrix
        if abs(b) > abs(a):  # turned by a quarter
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _rgb(reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """Pixels at that size, a view. (H, W, 3) uint8"""
    plane = reformatter.reformat(frame, width, height, "rgb24", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)  # padded
    return rows[:, : 3 * width].reshape(height, width, 3)


def _display_matrix(frame: VideoFrame) -> tuple[float, ...] | None:
    """a, b, c, d of x' = a x + c y, y' = b x + d y by which players turn a frame, where told."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it is a kind that PyAV does not know: its angle is told, no mirror
        angle = math.radians(-frame.rotation)
        return math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    if matrix is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
    return a, b, c, d
