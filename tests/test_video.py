"""Frames come in order and unaltered, and a bad file is an error that says which and why."""

from __future__ import annotations

import os
import pickle
import sys

import av
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2.functional import resize

from s2dlib import video
from s2dlib.synthetic import write_video
from s2dlib.video import ClipError, check_videos, probe, read_frames

OPEN_GOP = {"x264-params": "open-gop=1:keyint=8:min-keyint=4:bframes=3:scenecut=0"}
FORMATS = [
    ("closed.mp4", "libx264", {}),
    ("open_gop.mp4", "libx264", OPEN_GOP),
    ("a.mkv", "libx264", {}),
    ("mpeg4.avi", "mpeg4", {"qscale": "2"}),
    ("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=8"}),
    ("vp9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "10"}),
]


def decode_with_pyav(path):
    """Every frame by a second decoder. (n, 3, H, W)"""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def cut(path, percent):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * percent // 100])


@pytest.mark.parametrize(("name", "codec", "options"), FORMATS, ids=[f[0] for f in FORMATS])
def test_frames_are_those_of_a_second_decoder(
    tmp_path, make_video, read_barcodes, name, codec, options
):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = make_video(tmp_path / name, codec=codec, options=options)
    frames = read_frames(path)
    assert frames.dtype == torch.uint8 and read_barcodes(frames) == list(range(40))
    difference = (frames.int() - decode_with_pyav(path).int()).abs().float()
    assert difference.mean() < 2  # two builds of FFmpeg turn YUV into RGB in two ways


@pytest.mark.parametrize("wanted", [[0], [39], [3, 17, 30], [30, 3, 17, 3], range(1, 40, 2)])
def test_only_the_wanted_frames_come_in_the_order_asked(
    tmp_path, make_video, read_barcodes, wanted
):
    path = make_video(tmp_path / "a.mp4", options=OPEN_GOP)
    frames = read_frames(path, wanted)
    assert read_barcodes(frames) == list(wanted)
    assert_close(frames, read_frames(path)[list(wanted)], rtol=0, atol=0)


def test_the_wanted_frames_may_depend_on_the_count(tmp_path, make_video, read_barcodes):
    path = make_video(tmp_path / "a.mp4", n_frames=20)
    assert read_barcodes(read_frames(path, lambda n: [n - 1, n // 2])) == [19, 10]


@pytest.mark.parametrize(("size", "resized"), [((64, 80), (32, 40)), ((80, 50), (51, 32))])
def test_the_short_side_is_resized_and_the_ratio_kept(tmp_path, make_video, size, resized):
    path = make_video(tmp_path / "a.mp4", n_frames=3, size=size)
    small, frames = read_frames(path, short_side=32), read_frames(path)
    assert small.dtype == torch.uint8 and small.shape == (3, 3, *resized)
    expected = resize(frames.float(), [32], antialias=True)
    assert (small - expected).abs().max() <= 1.5


def test_probe_counts_decoded_frames(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", n_frames=31)
    assert probe(path) == video.VideoInfo(n_frames=31, fps=25.0, height=64, width=80)


def test_a_path_outside_ascii_is_read(tmp_path, make_video, read_barcodes):
    path = make_video(tmp_path / "größe 视频, №1.mp4", n_frames=4)
    assert read_barcodes(read_frames(path)) == [0, 1, 2, 3]
    assert check_videos([path]).ok.all()


def bad_files(folder, make_video):
    """One file of each kind that cannot be read, and a word of its cause."""
    (folder / "folder.mp4").mkdir()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video " * 500)
    with av.open(str(folder / "audio.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate, sound.pts = 16000, 0
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            file.mux(packet)
    make_video(folder / "edit_list.mp4", drop=25)
    causes = {
        "missing.mp4": "no such file",
        "folder.mp4": "not a file",
        "empty.mp4": "0 bytes",
        "text.mp4": "not a video",
        "audio.mp4": "no video stream",
        "edit_list.mp4": "edit list",
    }
    for percent in (10, 50, 90, 99):
        for name, muxer in (("plain", {}), ("faststart", {"movflags": "faststart"})):
            path = make_video(folder / f"{name}_{percent}.mp4", muxer=muxer)
            cut(path, percent)
            causes[path.name] = "cut off"
    damaged = make_video(folder / "damaged.mp4", muxer={"movflags": "faststart"})
    whole, half = damaged.read_bytes(), damaged.stat().st_size // 2
    damaged.write_bytes(whole[:half] + bytes(3000) + whole[half + 3000 :])
    return {folder / name: cause for name, cause in {**causes, "damaged.mp4": "damaged"}.items()}


def test_a_bad_file_is_an_error_that_names_it_and_the_cause(tmp_path, make_video):
    for path, cause in bad_files(tmp_path, make_video).items():
        for read in (read_frames, probe):
            with pytest.raises(ClipError, match=cause) as caught:
                read(path)
            assert caught.value.path == str(path) and str(path) in str(caught.value)


def test_a_bad_file_is_a_row_of_the_check(tmp_path, make_video):
    bad = bad_files(tmp_path, make_video)
    good = make_video(tmp_path / "good.mp4", n_frames=12)
    table = check_videos([*bad, good], processes=2)
    assert table.path.tolist() == [str(path) for path in [*bad, good]]
    assert table.ok.tolist() == [False] * len(bad) + [True]
    assert table.iloc[-1].to_dict() == {
        **{"path": str(good), "ok": True, "n_frames": 12, "fps": 25.0},
        **{"height": 64, "width": 80, "cause": ""},
    }
    for found, cause in zip(table.cause, bad.values(), strict=False):
        assert cause in found


def test_a_frame_that_does_not_exist_is_an_error_not_a_copy_of_the_last(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", n_frames=10)
    with pytest.raises(ClipError, match=r"has 10 frames, but frame 10 was asked for"):
        read_frames(path, [0, 10])


def test_an_edit_list_gives_its_real_frames_and_never_a_repeated_one(
    tmp_path, make_video, read_barcodes
):
    path = make_video(tmp_path / "a.mp4", drop=25)
    real = len(decode_with_pyav(path))
    assert read_barcodes(read_frames(path, range(real))) == list(range(40 - real, 40))
    with pytest.raises(ClipError, match=f"decoding stops at frame {real} of the 40"):
        read_frames(path, [real])


@pytest.mark.parametrize("percent", [90, 95, 97, 99])
def test_a_cut_file_gives_true_frames_or_an_error(tmp_path, make_video, read_barcodes, percent):
    path = make_video(tmp_path / "a.mp4", muxer={"movflags": "faststart"})
    cut(path, percent)
    for _ in range(5):  # decord meets the damage in a thread of its own, sooner or later
        try:
            assert read_barcodes(read_frames(path, range(20))) == list(range(20))
        except ClipError as error:
            assert "cut off" in error.cause


@pytest.mark.parametrize("wanted", [[], [-1], [0, -3]])
def test_no_wanted_frame_or_a_negative_one_is_an_error(tmp_path, make_video, wanted):
    path = make_video(tmp_path / "a.mp4", n_frames=2)
    with pytest.raises(ValueError, match="wanted must be frame indices >= 0"):
        read_frames(path, wanted)


def test_a_pipe_does_not_hang_the_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ClipError, match="not a file"):
        read_frames(tmp_path / "pipe.mp4")


def test_a_clip_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ClipError("a.mp4", "no such file")))
    assert (error.path, error.cause, str(error)) == ("a.mp4", "no such file", "a.mp4: no such file")


CHILD = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("video", sys.argv[1])
sys.modules["video"] = video = importlib.util.module_from_spec(spec)
spec.loader.exec_module(video)
def probe(path):
    if path.endswith("hang.mp4"):
        open(path).read()  # a pipe that nobody writes to
    if path.endswith("killed.mp4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path)
real, video.probe = video.probe, probe
video._serve()
"""


def test_a_hang_and_a_crash_are_rows_and_the_files_after_them_are_read(
    tmp_path, make_video, monkeypatch
):
    os.mkfifo(tmp_path / "hang.mp4")
    (tmp_path / "killed.mp4").touch()
    good = [make_video(tmp_path / f"{i}.mp4", n_frames=5) for i in range(3)]
    monkeypatch.setattr(video, "CHILD", [sys.executable, "-P", "-c", CHILD, video.__file__])
    paths = [good[0], tmp_path / "hang.mp4", good[1], tmp_path / "killed.mp4", good[2]]
    table = check_videos(paths, timeout=4, processes=1)
    assert table.ok.tolist() == [True, False, True, False, True]
    assert table.cause[1] == "no answer within 4 s"
    assert table.cause[3] == "the reader died (exit status -9)"


def test_a_check_of_nothing_is_an_empty_table():
    assert check_videos([]).columns.tolist()[:3] == ["path", "ok", "n_frames"]


@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_narrow_videos_whose_rows_decord_pads_are_read_right(tmp_path, width):
    path = tmp_path / "narrow.mp4"
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (48, 1))
    write_video(path, np.stack([ramp, ramp[:, ::-1]])[..., None])
    with av.open(path) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = read_frames(path)  # (2, 3, 48, width)
    assert frames.shape == (2, 3, 48, width)
    for frame, right in zip(frames, expected, strict=True):
        assert np.abs(frame.permute(1, 2, 0).numpy().astype(int) - right).max() <= 4
