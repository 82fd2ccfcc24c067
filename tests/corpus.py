"""Videos as users bring them, good, odd and bad, made by code; each with what is to come of it.

`python tests/corpus.py` prints the table: the file, what is expected, what read_frames gives.
Their kinds are in kinds.py.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import avi
import decord
import numpy as np
import torch
from conftest import N_BITS, barcodes
from kinds import CLOSED_GOP, FINE, KINDS, OPEN_GOP, VP9
from PIL import Image

from s2dlib.data.readers import probe, read_frames
from s2dlib.data.sources import ClipError

N = 40  # frames of a whole video
LIVE = {"live": "1"}  # of matroska and webm: no cues, no duration
FASTSTART = {"movflags": "faststart"}  # the index comes first
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
CUT = [  # files that know their length, or whose end is seen to be missing
    ("index first.mp4", "libx264", None, FASTSTART),
    ("fragments.mp4", "libx264", CLOSED_GOP, FRAGMENTS),
    ("a.mkv", "libx264", None, None),
    ("live.mkv", "libx264", None, LIVE),
    ("live.webm", "libvpx-vp9", VP9, LIVE),
    ("a.webm", "libvpx-vp9", VP9, None),
    ("a.avi", "mpeg4", FINE, None),
    ("h264.avi", "libx264", None, None),
    ("a.flv", "flv", FINE, None),
    ("a.wmv", "wmv2", FINE, None),
    ("a.mov", "mpeg4", FINE, FASTSTART),
]
NAMES = [  # of files, that a file system allows
    "größe 视频, №1 é.mp4".encode(),
    b"  spaces  .mp4",
    b"2024-11-26T12:30:05.mp4",
    b"cam1:left.mp4",
    b"C:clip.mp4",
    b"-y.mp4",
    b"100% %d %03d.mp4",
    b"what?#.mp4",
    b"line\nbreak.mp4",
    "\N{FACE WITH TEARS OF JOY}.mp4".encode(),
    b"latin \xe4\xff\xfe.mp4",
    b"long" * 62 + b"nam.mp4",  # 255 bytes
    b"concat:a|b.mp4",
    b"file:a.mp4",
    b"quote'\"\\.mp4",
]
UNIT = 1 << 16
TURNS = {90: (0, UNIT, -UNIT, 0), 180: (-UNIT, 0, 0, -UNIT), 270: (0, -UNIT, UNIT, 0)}
TURNS |= {"mirrored": (-UNIT, 0, 0, UNIT), "upside down": (UNIT, 0, 0, -UNIT)}
TURNS |= {"diagonal": (0, UNIT, UNIT, 0)}


@dataclass(frozen=True)
class Case:
    """A file of the corpus: how many frames it gives, or a word of its error."""

    path: Path
    expected: int | str
    decord: bool = False  # whether decord reads it rightly
    turn: int | str = 0  # a key of TURNS: how the file asks to be turned, degrees clockwise
    first: int = 0  # the number of its first frame
    lost: int = 0  # frames that it claims and does not give


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


def turn(path: Path, how: int | str) -> Path:
    """Write the display matrix by which players turn it, as for a phone held upright."""
    a, b, c, d = TURNS[how]
    whole = path.read_bytes()
    at = whole.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(whole[:at] + matrix + whole[at + len(matrix) :])
    return path


def make_corpus(folder: Path) -> list[Case]:
    """Write all files. Frames are numbered from 0, so n frames are 0..n-1."""
    cases: list[Case] = []

    def add(path: Path, expected: int | str, **more: int | str) -> None:
        cases.append(Case(path, expected, **more))

    add_kinds(folder, add)
    add_odd(folder, add)
    add_old(folder, add)
    add_wrong_files(folder, add)
    add_wrong_folders(folder, add)
    return cases


def add_kinds(f: Path, add: Callable[..., None]) -> None:
    """Every container and codec that can be written here."""
    for kind in KINDS:
        path = write(f / kind.name, kind.codec, kind.options, pixels=kind.pixels, size=kind.size)
        add(path, N, decord=kind.decord)


def add_odd(f: Path, add: Callable[..., None]) -> None:
    """Files that give every frame that a player shows, in order, though something is special."""
    add(write(f / "fragments.mp4", muxer=FRAGMENTS), N, decord=True)
    add(write(f / "one frame.mp4", n=1), 1, decord=True)
    add(write(f / "long group.mp4", n=260), 260, decord=True)
    irregular = [int(i) for i in np.cumsum([0, *([1, 9, 4, 2] * 10)])[:N]]
    for suffix in ("mp4", "mkv", "ts"):
        late = [i * 4 + 1000 for i in range(N)]
        add(write(f / f"variable rate.{suffix}", times=irregular), N, decord=suffix != "ts")
        path = write(f / f"late start.{suffix}", options=OPEN_GOP, times=late)
        add(path, N, decord=suffix != "ts")
    path = write(f / "variable rate.avi", "mpeg4", FINE, times=irregular)
    add(path, N, decord=True)  # its header counts ticks, of which most have no frame
    add(write(f / "edit list.mp4", hidden=25), N - 25, first=25)
    add(write(f / "edit list in a group.mp4", options=CLOSED_GOP, hidden=15), N - 15, first=15)
    add(write(f / "edit list, open.mov", options=OPEN_GOP, hidden=10), N - 10, first=10)
    for how in TURNS:
        add(turn(write(f / f"turned {how}.mp4"), how), N, turn=how)
    add(write(f / "a matroska named.mp4", container="matroska"), N, decord=True)
    add(write(f / "a webm named.avi", "libvpx-vp9", VP9, container="webm"), N, decord=True)
    add(write(f / "an mpeg-ts named.mp4", container="mpegts"), N)
    for name in NAMES:
        path = f / os.fsdecode(name)
        path.symlink_to(f / "fragments.mp4")
        add(path, N, decord=True)
    add(write_folder(f / "folder jpg", range(1, N + 1)), N)
    for suffix in (".png", ".webp", ".bmp", ".tif", ".ppm"):
        add(write_folder(f / f"folder {suffix[1:]} from 0", range(N), suffix), N)
    add(cut(write(f / "cut at 99.mp4"), 99), N, decord=True)  # of notes about the encoder
    add(write(f / "vp9 no duration.webm", "libvpx-vp9", VP9, muxer=LIVE), N)
    add(write(f / "h264 no duration.mkv", options=OPEN_GOP, muxer=LIVE), N)


def add_old(f: Path, add: Callable[..., None]) -> None:
    """AVI files whose counts are a little wrong: what decodes is what there is."""
    for n in (N - 3, N + 1, N + 2, N + 4):
        for name, codec, options in (("mpeg4", "mpeg4", FINE), ("h264", "libx264", None)):
            path = write(f / f"claims {n}, {name}.avi", codec, options)
            add(avi.claim(path, n), N, decord=n < N, lost=max(0, n - N))
    for n in (1, 2, 4):
        path = write(f / f"{n} empty.avi", "mpeg4", FINE)
        add(avi.append_empty_chunks(path, n), N, lost=n)
    for n in "12":
        source = write(f / f"{n} B-frames.avi", "mpeg4", FINE | {"bf": n})
        add(avi.pack_b_frames(source, f / f"{n} packed B-frames.avi"), N, lost=1)
    add(avi.claim(write(f / "claims twice.avi", "mpeg4", FINE), 2 * N), "holds 40 of the 80")
    add(avi.append_empty_chunks(write(f / "half empty.avi", "mpeg4", FINE), N), "40 of the 80")
    add(cut(write(f / "index first, cut at 99.mp4", muxer=FASTSTART), 99), N - 1, lost=1)


def add_wrong_files(f: Path, add: Callable[..., None]) -> None:
    """Files that are wrong: an error that says what."""
    (f / "zero bytes.mp4").touch()
    add(f / "zero bytes.mp4", "0 bytes")
    for name in ("text.mp4", "text.txt"):
        (f / name).write_text("not a video " * 500)
        add(f / name, "not a video")
    Image.new("RGB", (40, 32)).save(f / "picture.jpg")
    add(f / "picture.jpg", "not a video, but")
    add(f / "missing.mp4", "no such file")
    add(write_sound(f / "sound only.mp4"), "no video stream")
    for percent in (10, 50):
        add(cut(write(f / f"cut at {percent}.mp4"), percent), "cut off before its index")
    path = write(f / "cut in its index.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"minf") + 10])  # that there is video, not of what kind
    add(path, "cut off within its index")
    for percent in (10, 50, 90):
        for name, codec, options, muxer in CUT:
            path = write(f / f"cut at {percent}, {name}", codec, options, muxer=muxer)
            add(cut(path, percent), "cut off")
    whole = write(f / "damaged.mp4", muxer=FASTSTART)
    data, half = whole.read_bytes(), whole.stat().st_size // 2
    whole.write_bytes(data[:half] + bytes(3000) + data[half + 3000 :])
    add(whole, "damaged")


def add_wrong_folders(f: Path, add: Callable[..., None]) -> None:
    """Folders of images that are no video."""
    add(write_folder(f / "folder with a gap", [1, 2, 3, 5, 6]), "frame 4 is missing")
    add(write_folder(f / "folder from 2", [2, 3]), "frame 1 is missing")
    (write_folder(f / "folder with one cut", range(1, 9)) / "00005.jpg").write_bytes(b"\xff\xd8")
    add(f / "folder with one cut", "00005.jpg cannot be read")
    path = write_folder(f / "folder of two sizes", range(1, 9))
    Image.new("RGB", (40, 32)).save(path / "00006.jpg")
    add(path, "00006.jpg is 40 x 32 pixels")
    path = write_folder(f / "folder of floats", range(1, 9))
    Image.fromarray(np.ones((64, 80), np.float32)).save(path / "00009.tif")
    add(path, "00009.tif cannot be read")
    (f / "folder without frames").mkdir()
    add(f / "folder without frames", "without numbered frames")


def second_decoder(case: Case) -> torch.Tensor:
    """Every frame by decord, PyAV or PIL, turned as the file asks. (n, 3, H, W)"""
    if case.path.is_dir():
        frames = [np.asarray(Image.open(path)) for path in sorted(case.path.iterdir())]
    elif case.decord:  # only forward: its seeks are wrong in some kinds
        video = decord.VideoReader(str(case.path.resolve()), num_threads=1)
        frames = [video.next().asnumpy() for _ in range(len(video))]
    else:
        frames = []
        with av.open(case.path.resolve()) as file:
            with suppress(av.InvalidDataError):  # of the last frame where it is cut off
                frames += (frame.to_ndarray(format="rgb24") for frame in file.decode(video=0))
    return turned(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), case.turn)


def turned(frames: torch.Tensor, how: int | str) -> torch.Tensor:
    """Frames as a player shows them, by a key of TURNS; each but 90 and 270 is its own inverse."""
    axes = {180: (2, 3), "mirrored": (3,), "upside down": (2,)}
    if how in axes:
        return frames.flip(axes[how])
    if how == "diagonal":
        return frames.transpose(2, 3)
    return frames.rot90(-int(how) // 90, (2, 3))


def difference(frames: torch.Tensor, expected: torch.Tensor) -> int:
    """The largest, in gray levels."""
    return int((frames.int() - expected.int()).abs().max())


def numbers(frames: torch.Tensor, case: Case) -> list[int]:
    """The number in each frame's barcode. frames (n, 3, H, W), turned as the file asks"""
    return barcodes(turned(frames, {90: 270, 270: 90}.get(case.turn, case.turn)))


def main() -> None:
    """Print the table of the corpus."""
    print("| file | expected | second decoder | came | off by, most |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in make_corpus(Path(folder)):
            expected = f"{case.expected} frames" if isinstance(case.expected, int) else "error"
            second, off = "", ""
            try:
                frames = read_frames(case.path, timeout=10)
                right = numbers(frames, case) == [case.first + i for i in range(len(frames))]
                came = f"{len(frames)} frames, {'in order' if right else 'NOT in order'}"
                expected_frames = second_decoder(case)  # fewer where the end is damaged
                off = str(difference(frames[: len(expected_frames)], expected_frames))
                second = "decord" if case.decord else probe(case.path).reader
            except ClipError as error:
                came = error.cause
            name = os.fsencode(case.path.name)
            shown = name.decode(errors="backslashreplace").encode("unicode_escape").decode()
            shown = shown.replace("|", "\\|")
            print(f"| {shown[:60]} | {expected} | {second} | {came} | {off} |".replace(folder, ""))


if __name__ == "__main__":
    main()
