"""Working copies: the frames of the videos at the stride, and whole or absent after any trouble."""

from __future__ import annotations

import csv as csv_format
import hashlib
import math
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from s2dlib.apps.cli import main
from s2dlib.config import DataConfig
from s2dlib.data import decoding, readers
from s2dlib.data.clips import choose_frames
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.decoding import WorkingCopy, open_copy, open_video
from s2dlib.data.files import write_h264
from s2dlib.data.prepare import H264, write_copies_csv, write_copy
from s2dlib.data.readers import probe, read_frames
from s2dlib.data.sources import COPY, ClipError
from s2dlib.presets import PRESETS

CONFIG = DataConfig(
    csv="", n_frames=12, frame_stride=2, short_side=64, crop=56, scales=(56 / 64,), flip=False
)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv_format.DictReader(file))


def psnr(a, b):
    """In dB."""
    return 10 * math.log10(255**2 / (a.float() - b.float()).square().mean().item())


def copied(path, config):
    """The data sets of one video and of its copy, as in testing."""
    csv = path.with_suffix(".csv")
    csv.write_text(f"path,label,split\n{path.name},0,test\n")
    copy = write_copy(path, path.parent / "copies" / f"{path.name}.mp4", config)
    copies = write_copies_csv(csv, copy.path.with_name("copies.csv"), {str(path): copy}, config)
    return replace(config, csv=str(csv)), replace(config, csv=str(copies)), copy


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("n_total", [20, 61, 62, 63, 64])
def test_a_copy_gives_the_clip_that_testing_takes(
    tmp_path, make_video, read_barcodes, stride, n_total
):
    config = replace(CONFIG, frame_stride=stride, crop=64)
    path = make_video(tmp_path / "a.mp4", n_total, size=(64, 64))
    video, on_copy, copy = copied(path, config)
    expected, frames = (VideoDataset(c, "test", False)[0]["frames"] for c in (video, on_copy))
    assert read_barcodes(frames.transpose(0, 1)) == choose_frames(n_total, config)
    assert psnr(expected, frames) > 22  # of noise; other frames of it are at 10
    assert probe(copy.path).n_frames == copy.n_frames == -(-(n_total - copy.first) // stride)


def test_training_on_a_copy_draws_every_start_that_the_copy_has(
    tmp_path, make_video, read_barcodes
):
    path = make_video(tmp_path / "a.mp4", 41, size=(64, 64))
    config = replace(CONFIG, crop=64, scales=(1.0,))
    _, on_copy, copy = copied(path, config)
    dataset = VideoDataset(on_copy, "test", True)
    starts = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        codes = read_barcodes(dataset[0]["frames"].transpose(0, 1))
        assert codes == list(range(codes[0], codes[0] + 24, 2))
        starts.add(codes[0])
    assert starts == set(range(copy.first, 41 - 22, 2))


def test_copies_are_read_without_a_child_and_other_videos_by_one(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 41, size=(64, 64))
    video, on_copy, copy = copied(path, CONFIG)
    monkeypatch.setattr(readers, "CHILD", [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(readers, "_local", threading.local())
    assert VideoDataset(on_copy, "test", False)[0]["frames"].shape == (3, 12, 56, 56)
    with pytest.raises(RuntimeError, match="exit status 3"):
        VideoDataset(video, "test", False)[0]
    copy.path.write_bytes(copy.path.read_bytes()[:1000])
    with pytest.raises(ClipError, match="cut off before its index"):
        VideoDataset(on_copy, "test", False)[0]


def test_the_truth_on_a_copy_is_that_of_the_video(tmp_path, make_video):
    paths = [make_video(tmp_path / f"{n}.mp4", n, size=(128, 128)) for n in (50, 51)]
    csv = tmp_path / "a.csv"
    csv.write_text(
        "path,label,split,t,duration,size,y,x,side,reader,n_frames\n"
        + "".join(f"{p.name},0,test,27.25,9,20,70,40,128,pyav,50\n" for p in paths)
    )
    copies = {str(p): write_copy(p, tmp_path / "c" / f"{p.name}.mp4", CONFIG) for p in paths}
    assert {copy.first for copy in copies.values()} == {0, 1}
    on_copies = write_copies_csv(csv, tmp_path / "c" / "a.csv", copies, CONFIG)
    assert {"reader", "n_frames"}.isdisjoint(rows_of(on_copies)[0])  # those of the videos
    video, copy = (
        VideoDataset(replace(CONFIG, csv=str(path)), "test", False) for path in (csv, on_copies)
    )
    for expected, item in zip(video, copy, strict=True):
        torch.testing.assert_close(item["truth"], expected["truth"])


def test_a_clip_of_a_copy_is_sought_and_exact(tmp_path, make_video, monkeypatch):
    config = replace(CONFIG, n_frames=60)
    copy = write_copy(make_video(tmp_path / "a.mp4", 200), tmp_path / "copy.mp4", config)
    video, source = (read(str(copy.path)) for read in (open_video, open_copy))
    assert isinstance(source, WorkingCopy) and source.n_frames == copy.n_frames == 100
    assert source.reader == video.reader == "pyav" and source.fps == video.fps
    forward = np.stack([video.rgb(frame) for frame in video._decode()])
    monkeypatch.setattr(decoding, "open_video", None)
    for order in (range(20, 80), [0], [11, 12, 99], [99], range(100)):
        assert np.array_equal(np.stack(list(source.frames(order))), forward[list(order)])
    assert 12 <= next(source._sought(23))[0] <= 23  # a group holds 12 at most


@pytest.mark.parametrize("harm", ["order", "bytes", "claim"])
def test_a_copy_that_is_not_as_it_was_written_is_read_as_any_video(tmp_path, make_video, harm):
    path = tmp_path / "copy.mp4"
    with av.open(str(make_video(tmp_path / "a.mp4", 60, size=(64, 64)))) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    write_h264(path, frames, 25, COPY, H264 | ({"bf": "2"} if harm == "order" else {}))
    found = []
    if harm == "bytes":
        with av.open(str(path)) as file:
            entry = file.streams.video[0].index_entries[30]
            place, size = entry.pos, entry.size
        data = bytearray(path.read_bytes())
        data[place : place + size] = bytes(size)
        path.write_bytes(data)
    for read in (open_video, open_copy):
        source = read(str(path))
        order = [3, 29, 31, 50] + [60] * (harm == "claim")
        try:
            frames = list(source.frames(order))
            found.append((np.stack(frames).tolist(), source.n_frames, source.lost))
        except ClipError as error:
            found.append(error.cause)
    assert isinstance(source, WorkingCopy) and found[0] == found[1]


@pytest.fixture
def data_set(tmp_path, make_video, monkeypatch):
    """Two videos, a folder of frames of odd sizes, one damaged, one missing; a preset for them."""
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["mini-kinetics"], data=CONFIG))
    for name in ("sub", "frames"):
        (tmp_path / name).mkdir()
    make_video(tmp_path / "a.mp4", 41)
    make_video(tmp_path / "sub" / "ä b.mp4", 42, size=(96, 64))
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (30, 9, 11), dtype=np.uint8)
    for i, pixels in enumerate(coarse):
        Image.fromarray(pixels).resize((91, 65)).save(tmp_path / "frames" / f"{i + 1:05d}.png")
    (tmp_path / "bad.mp4").write_text("no video")
    names = ["a.mp4", "sub/ä b.mp4", "frames", "bad.mp4", "gone.mp4"]
    csv = tmp_path / "set.csv"
    csv.write_text("path,label,split\n" + "".join(f"{name},0,test\n" for name in names))
    return csv


def prepare(csv, *options):
    return main(["prepare", str(csv), "--preset", "tiny", *options])


def test_the_command_copies_what_can_be_read_and_names_what_cannot(data_set, capsys):
    assert prepare(data_set) == 1
    out, told = capsys.readouterr()
    folder = data_set.parent
    assert f"{folder}/bad.mp4: not a video" in told and f"{folder}/gone.mp4: no such file" in told
    csv = folder / "copies-64-2" / "set.csv"
    assert "3 of 5 videos are copied" in out and f"-p csv {csv}" in out
    assert [row["path"] for row in rows_of(csv)] == ["a.mp4.mp4", "sub/ä b.mp4.mp4", "frames.mp4"]
    assert {(row["frame_stride"], row["short_side"]) for row in rows_of(csv)} == {("2", "64")}
    rows = {row["path"]: row for row in rows_of(csv.with_suffix(".manifest.csv"))}
    row, source = rows["a.mp4.mp4"], folder / "a.mp4"
    assert (row["source"], row["bytes"]) == (str(source), str(source.stat().st_size))
    assert row["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (row["frame_stride"], row["short_side"]) == ("2", "64")
    assert (row["first"], row["n_frames"]) == ("1", "20")  # 1, 3, ... 39 of 41
    dataset = VideoDataset(replace(CONFIG, csv=str(csv)), "test", False)
    videos = VideoDataset(replace(CONFIG, csv=str(data_set)), "test", False)
    for i, least in enumerate((22, 22, 34)):  # two are noise
        assert psnr(dataset[i]["frames"], videos[i]["frames"]) > least
    frames = read_frames(folder / "copies-64-2" / "frames.mp4")
    assert frames.shape == (15, 3, 64, 88)  # of 65 x 91, which are 64 x 89 and lose a column


def test_a_second_call_copies_what_has_changed(data_set, make_video, capsys):
    prepare(data_set)
    folder = data_set.parent / "copies-64-2"
    paths = [folder / name for name in ("a.mp4.mp4", "sub/ä b.mp4.mp4", "frames.mp4")]
    before = [path.stat().st_mtime_ns for path in paths]
    assert prepare(data_set) == 1 and [path.stat().st_mtime_ns for path in paths] == before
    assert "3 of 5 copies are in" in capsys.readouterr().out
    make_video(data_set.parent / "a.mp4", 51)  # another video
    paths[1].write_bytes(paths[1].read_bytes()[:-1])  # a damaged copy
    prepare(data_set)
    changed = [path.stat().st_mtime_ns != old for path, old in zip(paths, before, strict=True)]
    assert changed == [True, True, False]
    assert probe(paths[0]).n_frames == 26 and probe(paths[1]).n_frames == 21
    rows = [(row["path"], row["n_frames"]) for row in rows_of(folder / "set.manifest.csv")]
    assert len(rows) == 3 and ("a.mp4.mp4", "26") in rows


def test_what_is_no_copy_is_never_replaced(data_set, capsys):
    path = data_set.parent / "copies-64-2" / "a.mp4.mp4"
    path.parent.mkdir()
    path.write_bytes(b"someone's")
    assert prepare(data_set) == 1
    assert path.read_bytes() == b"someone's"
    assert "a.mp4.mp4: a file that this command did not make" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="names working copies"):
        prepare(path.with_name("set.csv"))


def test_copies_of_another_stride_or_size_are_refused(data_set):
    prepare(data_set)
    csv = str(data_set.parent / "copies-64-2" / "set.csv")
    for changed in ({"frame_stride": 3}, {"frame_stride": 1}, {"short_side": 96}):
        with pytest.raises(ValueError, match="copies of every 2 frames at short side 64"):
            VideoDataset(replace(CONFIG, csv=csv, **changed), "test", False)
    half = VideoDataset(replace(CONFIG, csv=csv, frame_stride=4), "test", False)
    assert half.config.frame_stride == 2


@pytest.mark.parametrize("fields", [{"short_side": 65}, {"within": 90}])
def test_a_preset_that_copies_cannot_serve_is_refused(data_set, fields, monkeypatch):
    data = replace(CONFIG, **fields)
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["mini-kinetics"], data=data))
    with pytest.raises(SystemExit, match="even sides|within=90 counts frames"):
        prepare(data_set)


@pytest.mark.slow
def test_a_kill_leaves_whole_copies_and_the_command_goes_on(tmp_path, make_video):
    names = [f"{i}.mp4" for i in range(30)]
    for name in names:
        make_video(tmp_path / name, 100)
    csv = tmp_path / "set.csv"
    csv.write_text("path,label,split\n" + "".join(f"{name},0,test\n" for name in names))
    out = tmp_path / "out"
    code = "import sys; from s2dlib.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "prepare", str(csv), "--preset", "synthetic"]
    command += ["--out", str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    manifest = out / "set.manifest.csv"
    deadline = time.monotonic() + 120
    while not (manifest.exists() and len(rows_of(manifest)) >= 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted(out.glob("*.mp4"))
    assert 3 <= len(there) < 30 and not (out / "set.csv").exists()
    assert all(probe(path).n_frames == 100 for path in there)
    before = {path: path.stat().st_mtime_ns for path in there}
    listed = [out / row["path"] for row in rows_of(manifest)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(out / "set.csv")) == len(rows_of(manifest)) == 30
    assert all(path.stat().st_mtime_ns == before[path] for path in listed)
