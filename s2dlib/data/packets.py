"""What the packets of a video file, in the order stored, tell without being decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import av
import av.logging
from av.container import InputContainer
from av.video import VideoStream

from s2dlib.data.sources import progress

BROADCAST = {"mpegts", "mpeg"}  # streams without a beginning or an end: cut everywhere by nature


class Packets:
    """The packets of one stream of a file, read to its end."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.n = self.n_held = 0  # of this stream, and up to the last one that holds something
        self.last = -1  # when that one is decoded, in the stream's time base
        self.times: list[int | None] = []  # when shown, of those that become frames
        self.keys: dict[int | None, int | None] = {}  # of key frames: when shown, when decoded
        self.end = 0.0  # of all streams, seconds
        self.cut = False  # within the last packet
        codec = stream.codec_context.codec.canonical_name
        hides = codec == "vp8"  # frames that others are predicted from
        begun = container.format.name not in BROADCAST  # which begin within a group of pictures
        one = 1 / float(stream.average_rate or 25)  # seconds a frame, where packets do not tell
        ticks: dict[int, float] = {}  # seconds each, by stream, of which more may come
        with _complaints() as complaints, suppress(av.FFmpegError):  # n tells what is missing
            for packet in container.demux():
                progress.tick()
                if packet.size == 0 and packet.dts is None:  # PyAV's own, at the end
                    continue
                if packet.pts is not None:
                    if packet.stream_index not in ticks:
                        ticks[packet.stream_index] = float(packet.time_base)
                    seconds = (packet.pts + (packet.duration or 0)) * ticks[packet.stream_index]
                    self.end = max(self.end, seconds if packet.duration else seconds + one)
                if packet.stream_index == stream.index and (begun := begun or packet.is_keyframe):
                    shown = not hides or memoryview(packet)[0] & 0x10
                    self._add(packet, shown=bool(shown))
        self.cut |= any("ended prematurely" in text for _, _, text in complaints)

    def _add(self, packet: av.Packet, *, shown: bool) -> None:
        self.n, self.cut = self.n + 1, packet.is_corrupt
        if packet.size == 0:  # the frame before stays, or the file has lost its end
            return
        self.n_held, self.last = self.n, max(self.last, -1 if packet.dts is None else packet.dts)
        if shown and not packet.is_discard:  # an edit list hides frames
            self.times.append(packet.pts)
            if packet.is_keyframe:
                self.keys[packet.pts] = packet.dts


@contextmanager
def _complaints() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg writes to its log as an error meanwhile: level, who, text."""
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_level(None)
