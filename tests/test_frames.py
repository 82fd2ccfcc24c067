"""Every kind of file gives the frames that a player shows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import av
import avi
import numpy as np
import pytest
import torch
from conftest import barcodes
from corpus import N, difference, make_corpus, numbers, second_decoder, write
from kinds import CLOSED_GOP, FINE, GROUPS, KINDS, OPEN_GOP, REFRESH

from s2dlib.config import DataConfig
from s2dlib.data import decoding, readers
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.readers import check_videos, is_video, probe, read_frames
from s2dlib.data.sources import ClipError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_files_give_every_frame_that_a_player_shows(corpus):
    good = [case for case in corpus if isinstance(case.expected, int)]
    assert len(good) > 200
    for case in good:
        frames = read_frames(case.path)
        assert frames.dtype == torch.uint8, case
        assert numbers(frames, case) == list(range(case.first, case.first + case.expected)), case
        expected = second_decoder(case)  # fewer where the end is damaged
        assert difference(frames[: len(expected)], expected) <= 2, case  # builds may round apart
        assert torch.equal(read_frames(case.path, child=False), frames), case
        height, width = frames.shape[-2:]
        found = probe(case.path)
        assert (found.n_frames, found.height, found.width) == (case.expected, height, width), case
        assert found.reader == ("pillow" if case.path.is_dir() else "pyav"), case


def test_a_bad_file_is_an_error_that_names_it_and_the_cause(corpus):
    bad = [case for case in corpus if isinstance(case.expected, str)]
    assert len(bad) > 40
    for case in bad:
        for read in (read_frames, probe, partial(read_frames, child=False)):
            with pytest.raises(ClipError, match=case.expected) as caught:
                read(case.path)
            assert caught.value.path == str(case.path) and str(case.path) in str(caught.value)
        assert not is_video(case.path) or "folder" in case.path.name or "damaged" in case.path.name


def test_every_file_is_a_row_of_the_check(corpus):
    corpus = [case for case in corpus if case.path.name not in {kind.name for kind in KINDS}]
    table = check_videos([case.path for case in corpus], processes=2)
    assert table.path.tolist() == [str(case.path) for case in corpus]
    assert table.columns.tolist() == ["path", "ok", *readers.VideoInfo._fields, "cause"]
    for case, row in zip(corpus, table.itertuples(), strict=True):
        if isinstance(case.expected, int):
            assert row.ok and row.n_frames == case.expected and row.cause == "", case
            assert row.lost == case.lost, case
        else:
            assert not row.ok and row.n_frames == 0 and case.expected in row.cause, case


# From where


def test_frames_after_a_seek_are_those_of_a_run_from_the_start(corpus, monkeypatch):
    monkeypatch.setattr(decoding, "HEAD", 4)  # seek even in short files
    sought = set()
    for case in corpus:
        if not isinstance(case.expected, int) or case.path.is_dir() or case.path.is_symlink():
            continue
        video = decoding.Video(str(case.path))
        forward = list(video.frames(range(video.n_frames)))
        for i in range(8, len(forward), max(11, len(forward) // 4)):
            runs = [i for i, _ in video._sought(i)]
            assert runs == list(range(len(forward) - len(runs), len(forward))) or runs[0] <= i
            sought |= {video.kind} if runs else set()
            wanted = sorted({i, min(i + 3, len(forward) - 1)})
            for frame, number in zip(video.frames(wanted), wanted, strict=True):
                assert np.array_equal(frame, forward[number]), (case, number)
    assert {codec for _, codec in sought} == decoding.SEEKABLE
    assert len(sought) > 25


def test_a_seek_skips_what_comes_before(tmp_path, monkeypatch):
    video = decoding.Video(str(write(tmp_path / "a.mp4", options=CLOSED_GOP, n=240)))
    runs = []
    real = video._decode
    monkeypatch.setattr(video, "_decode", lambda start=None: runs.append(start) or real(start))
    assert len(list(video.frames([200, 203]))) == 2
    assert runs[0] is None and runs[1] is not None and len(runs) == 2  # its head, then the seek


@pytest.mark.parametrize("where", ["times", "n_frames"])
def test_times_that_are_not_the_frames_own_are_not_sought(tmp_path, where):
    path = write(tmp_path / "a.mp4", options=CLOSED_GOP, n=240)
    video = decoding.Video(str(path))
    forward = list(video.frames(range(240)))
    video = decoding.Video(str(path))
    if where == "times":  # a packet that becomes no frame, far behind the head
        video._packets.times.insert(100, video._packets.times[100] + 1)
        video.n_frames += 1
    else:
        video._packets.times[100] = None
    (frame,) = video.frames([200])
    expected = forward[200] if where == "n_frames" else forward[199]
    assert np.array_equal(frame, expected)
    assert bool(list(video._sought(200))) == (where == "times")


@pytest.mark.parametrize("matrix", ["ITU709", "ITU601"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv420p10le"])
def test_colours_are_those_that_the_file_tells(tmp_path, matrix, pixels):
    rainbow = np.stack(np.meshgrid(*[np.linspace(30, 220, 64)] * 2), -1)
    picture = np.dstack([rainbow, 255 - rainbow[..., :1]]).astype(np.uint8)  # (64, 64, 3)
    with av.open(tmp_path / "a.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, pixels
        stream.codec_context.colorspace = 1 if matrix == "ITU709" else 5
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame = frame.reformat(format=pixels, dst_colorspace=matrix)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    frames = read_frames(tmp_path / "a.mp4")[0].permute(1, 2, 0)  # (64, 64, 3)
    assert (frames.float() - torch.from_numpy(picture)).abs().mean() < 3


# Files whose counts are a little wrong


def packed(folder, n=N):
    """MPEG-4 in AVI that claims one frame more than there are."""
    source = write(folder / "source.avi", "mpeg4", FINE | {"bf": "1"}, n=n)
    return avi.pack_b_frames(source, folder / "a.avi")


def test_a_shortfall_is_told_once_with_its_size(tmp_path, caplog):
    path = packed(tmp_path)
    for _ in range(2):
        assert barcodes(read_frames(path)) == list(range(N))
    assert [record.message for record in caplog.records] == [
        f"{path}: 40 of the 41 frames that it claims decode; it is taken to be so long"
    ]
    assert check_videos([path]).lost.tolist() == [1] and len(caplog.records) == 1
    with pytest.raises(ClipError, match="has 40 frames, but frame 40 was asked for"):
        read_frames(path, [3, 40])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("n_frames", [40, 41, 100])
def test_a_clip_that_would_end_behind_the_last_frame_is_chosen_again(tmp_path, train, n_frames):
    packed(tmp_path)
    (tmp_path / "a.csv").write_text("path,label,split\na.avi,0,all\n")
    sizes = {"frame_stride": 1, "short_side": 64, "crop": 64, "scales": (1.0, 0.75)}
    config = DataConfig(csv=str(tmp_path / "a.csv"), n_frames=n_frames, **sizes)
    dataset = VideoDataset(config, "all", train)
    known = VideoDataset(replace(config, cache=str(tmp_path / "cache")), "all", train)
    for epoch in range(6):  # as from a file whose count is known
        dataset.set_epoch(epoch), known.set_epoch(epoch)
        assert dataset[0]["frames"].shape[1] == 40
        assert dataset[0]["frames"].equal(known[0]["frames"])
    whole = replace(config, scales=(1.0,), flip=False)
    clip = VideoDataset(whole, "all", train)[0]["frames"].transpose(0, 1)  # (40, 3, 64, 64)
    assert len({frame.numpy().tobytes() for frame in clip}) == 40  # and none twice


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed groups.ts", "libx264", CLOSED_GOP),
        ("open groups.ts", "libx264", OPEN_GOP),
        ("no key frames.ts", "libx264", REFRESH),
        ("mpeg2.mpg", "mpeg2video", GROUPS),
    ],
)
@pytest.mark.parametrize("part", ["start", "middle", "end"])
def test_a_part_of_a_broadcast_is_a_shorter_video(tmp_path, name, codec, options, part):
    path = write(tmp_path / name, codec, options, n=120)
    data, n = path.read_bytes(), path.stat().st_size
    path.write_bytes(data[int({"start": 0, "middle": 0.25, "end": 0.4}[part] * n) :][: n * 6 // 10])
    found = barcodes(read_frames(path))
    whole = found[1:-1]  # at a cut, a player shows half a picture
    assert len(whole) > 40 and whole == list(range(whole[0], whole[0] + len(whole)))
    assert (found[0] == 0) == (part == "start") and probe(path).n_frames == len(found)
