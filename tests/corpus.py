"""Videos as users bring them, good, odd and bad, made by code; each with what is to come of it.

`python tests/corpus.py` prints the table: the file, what is expected, what read_frames gives.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from conftest import N_BITS, barcodes
from PIL import Image

from s2dlib.data.sources import ClipError
from s2dlib.data.readers import read_frames

N = 40  # frames of a whole video
OPEN_GOP = {"x264-params": "open-gop=1:keyint=8:min-keyint=4:bframes=3:scenecut=0"}
HEVC = {"x265-params": "log-level=none:keyint=8"}  # with its default, an open GOP
VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "10"}
LIVE = {"live": "1"}  # of matroska and webm: no cues, no duration
FASTSTART = {"movflags": "faststart"}  # the index comes first
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
UNIT = 1 << 16
TURNS = {90: (0, UNIT, -UNIT, 0), 180: (-UNIT, 0, 0, -UNIT), 270: (0, -UNIT, UNIT, 0)}


@dataclass(frozen=True)
class Case:
    """A file of the corpus: the numbers of the frames it gives, or a word of its error."""

    path: Path
    expected: int | str
    turn: int = 0  # degrees clockwise that the file asks for


def pictures(n: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A barcode of the number over waves that move and some noise. (H, W, 3) each"""
    rng = np.random.default_rng(n)
    y, x = np.mgrid[:height, :width] / 7
    for i in range(n):
        waves = [np.sin(x * a + y * b + i / 3) * 90 + 128 for a, b in ((1, 0), (0, 1), (1, 1))]
        image = np.stack(waves, -1) + rng.normal(0, 6, (height, width, 1))
        bars = np.repeat([255 * (i >> bit & 1) for bit in range(N_BITS)], width // N_BITS)
        image[: height // 4] = 60
        image[: height // 4, : len(bars)] = bars[:, None]
        yield image.clip(0, 255).astype(np.uint8)


def write(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    muxer: dict[str, str] | None = None,
    container: str | None = None,
    pixels: str = "yuv420p",
    size: tuple[int, int] = (64, 80),
    n: int = N,
    hidden: int = 0,
    times: list[int] | None = None,
) -> Path:
    """A video of `pictures`; an edit list hides the first `hidden`; times are in hundredths."""
    muxer = {"avoid_negative_ts": "disabled"} if hidden else muxer or {}
    with av.open(str(path), "w", format=container, options=muxer) as file:
        stream = file.add_stream(codec, rate=100 if times else 25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        for i, picture in enumerate([*pictures(n, *size), None]):
            frame = None if picture is None else av.VideoFrame.from_ndarray(picture, "rgb24")
            if frame is not None and times:
                frame.pts, frame.time_base = times[i], Fraction(1, 100)
            for packet in stream.encode(frame):
                if hidden:
                    shift = int(hidden / 25 / packet.time_base)
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                file.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate, sound.pts = 16000, 0
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            file.mux(packet)
    return path


def write_folder(path: Path, numbers: range | list[int], suffix: str = ".jpg") -> Path:
    """A folder of frames, picture i under the i-th number."""
    path.mkdir()
    for number, picture in zip(numbers, pictures(len(numbers), 64, 80), strict=True):
        Image.fromarray(picture).save(path / f"{number:05d}{suffix}", quality=95)
    return path


def cut(path: Path, percent: int) -> Path:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * percent // 100])
    return path


def turn(path: Path, degrees: int) -> Path:
    """Write the display matrix that a phone held upright writes: players turn it clockwise."""
    a, b, c, d = TURNS[degrees]
    whole = path.read_bytes()
    at = whole.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(whole[:at] + matrix + whole[at + len(matrix) :])
    return path


def make_corpus(folder: Path) -> list[Case]:
    """Write all files. Frames are numbered from 0, so n frames are 0..n-1."""
    cases: list[Case] = []

    def add(path: Path, expected: int | str, degrees: int = 0) -> None:
        cases.append(Case(path, expected, degrees))

    add_right(folder, add)
    add_wrong_files(folder, add)
    add_wrong_folders(folder, add)
    return cases


def add_right(f: Path, add: Callable[..., None]) -> None:
    """Files that give every frame, in order."""
    add(write(f / "h264.mp4"), N)
    add(write(f / "h264 open gop.mp4", options=OPEN_GOP), N)
    add(write(f / "hevc.mp4", "libx265", HEVC), N)
    add(write(f / "h264 10 bit.mkv", pixels="yuv420p10le"), N)
    add(write(f / "hevc 10 bit.mp4", "libx265", HEVC, pixels="yuv420p10le"), N)
    add(write(f / "vp8.webm", "libvpx", {"deadline": "realtime", "crf": "10", "b": "2M"}), N)
    add(write(f / "vp9.webm", "libvpx-vp9", VP9), N)
    add(write(f / "mpeg4.avi", "mpeg4", {"qscale": "2"}), N)
    add(write(f / "mpeg2.mpg", "mpeg2video", {"qscale": "2"}), N)
    add(write(f / "mjpeg.avi", "mjpeg", {"qscale": "2"}, pixels="yuvj420p"), N)
    add(write(f / "fragments.mp4", muxer=FRAGMENTS), N)
    add(write(f / "one frame.mp4", n=1), 1)
    add(write(f / "odd 33 x 57.mp4", pixels="yuv444p", size=(33, 57)), N)
    add(write(f / "narrow 48.mp4", size=(64, 48)), N)
    irregular = list(np.cumsum([0, *([1, 9, 4, 2] * 10)])[:N])
    add(write(f / "variable rate.mp4", times=list(map(int, irregular))), N)
    for degrees in TURNS:
        add(turn(write(f / f"turned {degrees}.mp4"), degrees), N, degrees)
    add(write(f / "a matroska named.mp4", container="matroska"), N)
    add(write(f / "a webm named.avi", "libvpx-vp9", VP9, container="webm"), N)
    add(write(f / "größe 视频, №1 é.mp4"), N)
    add(write(f / "  spaces  .mp4"), N)
    add(write_folder(f / "folder jpg", range(1, N + 1)), N)
    add(write_folder(f / "folder png from 0", range(N), ".png"), N)
    add(cut(write(f / "cut at 99.mp4"), 99), N)  # what is lost there are notes about the encoder


def add_wrong_files(f: Path, add: Callable[..., None]) -> None:
    """Files that are wrong, or right but not for decord: an error that says what."""
    add(write(f / "vp9 no duration.webm", "libvpx-vp9", VP9, muxer=LIVE), "how long it is")
    add(write(f / "h264 no duration.mkv", options=OPEN_GOP, muxer=LIVE), "how long it is")
    add(write(f / "h264 open gop.ts", options=OPEN_GOP), "MPEG-TS")
    (f / "zero bytes.mp4").touch()
    add(f / "zero bytes.mp4", "0 bytes")
    (f / "text.mp4").write_text("not a video " * 500)
    add(f / "text.mp4", "not a video")
    add(f / "missing.mp4", "no such file")
    add(write_sound(f / "sound only.mp4"), "no video stream")
    for percent in (10, 50):
        add(cut(write(f / f"cut at {percent}.mp4"), percent), "cut off before its index")
    path = write(f / "cut in its index.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"minf") + 10])  # that there is video, not of what kind
    add(path, "cut off within its index")
    for percent in (10, 50, 90, 99):
        path = write(f / f"index first, cut at {percent}.mp4", muxer=FASTSTART)
        add(cut(path, percent), "cut off")
    add(cut(write(f / "cut at 50.ts"), 50), "cut off")
    whole = write(f / "damaged.mp4", muxer=FASTSTART)
    data, half = whole.read_bytes(), whole.stat().st_size // 2
    whole.write_bytes(data[:half] + bytes(3000) + data[half + 3000 :])
    add(whole, "damaged")
    add(write(f / "edit list.mp4", hidden=25), "edit list")


def add_wrong_folders(f: Path, add: Callable[..., None]) -> None:
    """Folders of images that are no video."""
    add(write_folder(f / "folder with a gap", [1, 2, 3, 5, 6]), "frame 4 is missing")
    add(write_folder(f / "folder from 2", [2, 3]), "frame 1 is missing")
    (write_folder(f / "folder with one cut", range(1, 9)) / "00005.jpg").write_bytes(b"\xff\xd8")
    add(f / "folder with one cut", "00005.jpg cannot be read")
    path = write_folder(f / "folder of two sizes", range(1, 9))
    Image.new("RGB", (40, 32)).save(path / "00006.jpg")
    add(path, "00006.jpg is 40 x 32 pixels")
    (f / "folder without frames").mkdir()
    add(f / "folder without frames", "without numbered frames")


def second_decoder(case: Case) -> torch.Tensor:
    """Every frame by PyAV or PIL, turned as the file asks. (n, 3, H, W)"""
    if case.path.is_dir():
        frames = [np.asarray(Image.open(path)) for path in sorted(case.path.iterdir())]
    else:
        with av.open(str(case.path)) as file:
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    turned = np.rot90(np.stack(frames), -case.turn // 90, (1, 2)).copy()  # (n, H, W, 3)
    return torch.from_numpy(turned).permute(0, 3, 1, 2)


def numbers(frames: torch.Tensor, case: Case) -> list[int]:
    """The number in each frame's barcode. frames (n, 3, H, W), turned as the file asks"""
    return barcodes(frames.rot90(case.turn // 90, (2, 3)))


def main() -> None:
    """Print the table of the corpus."""
    print("| file | expected | came | off by, mean and most |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in make_corpus(Path(folder)):
            expected = f"{case.expected} frames" if isinstance(case.expected, int) else "error"
            off = ""
            try:
                frames = read_frames(case.path, timeout=10)
                right = numbers(frames, case) == list(range(len(frames)))
                came = f"{len(frames)} frames, {'in order' if right else 'NOT in order'}"
                difference = (frames.int() - second_decoder(case).int()).abs().float()
                off = f"{difference.mean():.2f}, {difference.max():.0f}"
            except ClipError as error:
                came = error.cause
            name = os.path.relpath(case.path, folder)
            print(f"| {name} | {expected} | {came} | {off} |".replace(folder, ""))


if __name__ == "__main__":
    main()
