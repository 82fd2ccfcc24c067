"""Frames come in order and unaltered; a bad file is an error that says which and why, no more."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import avi
import decord
import numpy as np
import pytest
import torch
from conftest import barcodes
from corpus import N, cut, difference, make_corpus, numbers, second_decoder, write, write_folder
from kinds import CLOSED_GOP, FINE, GROUPS, KINDS, OPEN_GOP
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from s2dlib.config import DataConfig
from s2dlib.data import decoding, readers, sources
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.files import write_video
from s2dlib.data.loader import load_batches
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
        height, width = frames.shape[-2:]
        found = probe(case.path)
        assert (found.n_frames, found.height, found.width) == (case.expected, height, width), case
        assert found.reader == case.reader or not case.reader, case


def test_a_bad_file_is_an_error_that_names_it_and_the_cause(corpus):
    bad = [case for case in corpus if isinstance(case.expected, str)]
    assert len(bad) > 40
    for case in bad:
        for read in (read_frames, probe):
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
            claims = re.search(r"claims 4(\d)|(\d) empty|(1) packed|\d (packed)", case.path.name)
            lost = (
                0
                if claims is None
                else int(next(filter(None, claims.groups())).replace("packed", "1"))
            )
            assert row.lost == lost or "cut" in case.path.name, case
        else:
            assert not row.ok and row.n_frames == 0 and case.expected in row.cause, case


# Which reader, and from where


def test_frames_after_a_seek_are_those_of_a_run_from_the_start(corpus, monkeypatch):
    monkeypatch.setattr(decoding, "HEAD", 4)  # seek even in short files
    sought = set()
    for case in corpus:
        if not isinstance(case.expected, int) or case.reader == "pillow" or case.path.is_symlink():
            continue
        video = decoding._PyAV(str(case.path))
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
    video = decoding._PyAV(str(write(tmp_path / "a.mp4", options=CLOSED_GOP, n=240)))
    runs = []
    real = video._decode
    monkeypatch.setattr(video, "_decode", lambda start=None: runs.append(start) or real(start))
    assert len(list(video.frames([200, 203]))) == 2
    assert runs[0] is None and runs[1] is not None and len(runs) == 2  # its head, then the seek


@pytest.mark.parametrize("where", ["times", "n_frames"])
def test_times_that_are_not_the_frames_own_are_not_sought(tmp_path, where):
    path = write(tmp_path / "a.mp4", options=CLOSED_GOP, n=240)
    video = decoding._PyAV(str(path))
    forward = list(video.frames(range(240)))
    video = decoding._PyAV(str(path))
    if where == "times":  # a packet that becomes no frame, far behind the head
        video._packets.times.insert(100, video._packets.times[100] + 1)
        video.n_frames += 1
    else:
        video._packets.times[100] = None
    (frame,) = video.frames([200])
    expected = forward[200] if where == "n_frames" else forward[199]
    assert np.array_equal(frame, expected)
    assert bool(list(video._sought(200))) == (where == "times")


def test_a_kind_that_decord_reads_wrongly_is_read_by_pyav(tmp_path, monkeypatch):
    kinds = decoding.DECORD_CONTAINERS | {"mpegts", "mpeg"}  # a list by someone who hopes
    monkeypatch.setattr(decoding, "DECORD_CONTAINERS", kinds)
    path = write(tmp_path / "a.ts", options=CLOSED_GOP)
    video = decoding._PyAV(str(path))
    assert video.suits_decord
    late = decord.VideoReader(str(path), num_threads=1).next().asnumpy()
    assert barcodes(torch.from_numpy(late).permute(2, 0, 1)[None]) == [12]  # as long as a group
    opened = decoding.open_video(str(path))
    assert opened.reader == "pyav"
    frames = torch.from_numpy(np.stack(list(opened.frames(range(N))))).permute(0, 3, 1, 2)
    assert barcodes(frames) == list(range(N))


def test_where_decord_fails_pyav_goes_on(tmp_path):
    video = decoding.open_video(str(write(tmp_path / "a.mp4")))
    expected = list(decoding._PyAV(str(tmp_path / "a.mp4")).frames(range(N)))
    video._frames = islice(video._frames, 10)
    for frame, right in zip(video.frames(range(5, N)), expected[5:], strict=True):
        assert np.array_equal(frame, right)
    assert video.reader == "pyav"


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


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
@pytest.mark.parametrize("part", ["start", "middle", "end"])
def test_a_part_of_a_broadcast_is_a_shorter_video(tmp_path, name, codec, part):
    options = CLOSED_GOP if codec == "libx264" else GROUPS
    path = write(tmp_path / name, codec, options, n=120)
    data, n = path.read_bytes(), path.stat().st_size
    path.write_bytes(data[int({"start": 0, "middle": 0.25, "end": 0.4}[part] * n) :][: n * 6 // 10])
    found = barcodes(read_frames(path))
    whole = found[1:-1]  # at a cut, a player shows half a picture
    assert len(whole) > 40 and whole == list(range(whole[0], whole[0] + len(whole)))
    assert (found[0] == 0) == (part == "start") and probe(path).n_frames == len(found)


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
    assert probe(path) == readers.VideoInfo(31, fps=25.0, height=64, width=80, reader="decord")


@pytest.mark.parametrize(
    "name", ["cam1:left.mp4", "2024-11-26T12:30:05.mp4", "-.mp4", "C:clip.mp4"]
)
def test_a_relative_path_is_no_protocol(tmp_path, make_video, read_barcodes, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / name, n_frames=4)
    assert read_barcodes(read_frames(name)) == [0, 1, 2, 3]
    assert check_videos([name]).ok.all() and is_video(name)


def test_a_frame_that_does_not_exist_is_an_error_not_a_copy_of_the_last(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", n_frames=10)
    with pytest.raises(ClipError, match=r"has 10 frames, but frame 10 was asked for"):
        read_frames(path, [0, 10])


def test_an_edit_list_gives_the_frames_that_a_player_shows(tmp_path, make_video, read_barcodes):
    path = make_video(tmp_path / "a.mp4", drop=25)
    assert read_barcodes(read_frames(path)) == list(range(25, 40))
    with pytest.raises(ClipError, match="has 15 frames, but frame 15 was asked for"):
        read_frames(path, [15])


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


# A reader that hangs or dies

CHILD = """
import os, signal, time
from s2dlib.data import child, decoding
def open_or_not(path):
    if path.endswith("hangs.mp4"):
        time.sleep(1000)
    if path.endswith("crashes.mp4"):
        os.kill(os.getpid(), signal.SIGSEGV)
    slow["seconds"] = 0.3 if path.endswith("slow.mp4") else 0
    return real(path)
def tick():
    time.sleep(slow["seconds"])
    real_tick()
slow = {"seconds": 0}
real, decoding.open_video = decoding.open_video, open_or_not
real_tick, decoding.progress.tick = decoding.progress.tick, tick
child._main()
"""


@pytest.fixture
def bad_reader(monkeypatch):
    """From here on, files named hangs.mp4, crashes.mp4 and slow.mp4 do so to the real child."""
    monkeypatch.setattr(readers, "CHILD", [sys.executable, "-P", "-c", CHILD])
    monkeypatch.setattr(readers, "_local", threading.local())


def test_a_long_time_is_granted_while_there_is_progress(tmp_path, make_video, bad_reader):
    path = make_video(tmp_path / "slow.mp4", n_frames=3)
    start = time.monotonic()
    assert len(read_frames(path, timeout=1.5)) == 3
    assert time.monotonic() - start > 2
    with pytest.raises(ClipError, match="no progress within 0.2 s; grant more by timeout="):
        probe(path, timeout=0.2)


def test_a_hang_and_a_crash_are_rows_and_the_files_after_them_are_read(
    tmp_path, make_video, bad_reader
):
    good = [make_video(tmp_path / f"{i}.mp4", n_frames=5) for i in range(3)]
    paths = [good[0], tmp_path / "hangs.mp4", good[1], tmp_path / "crashes.mp4", good[2]]
    start = time.monotonic()
    table = check_videos(paths, timeout=2, processes=1)
    assert table.ok.tolist() == [True, False, True, False, True]
    assert table.cause[1] == "no progress within 2 s; grant more by timeout="
    assert table.cause[3] == "the reader died (signal 11)"
    assert 2 < time.monotonic() - start < 30


def child():
    return readers._local.reader.child


def gone(pid, seconds=10.0):
    """Whether a process ends within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGSTOP, "no progress within 1 s"), (signal.SIGKILL, "signal 9")]
)
def test_a_child_stopped_or_killed_in_the_middle_of_a_file_costs_that_file(
    tmp_path, make_video, read_barcodes, number, cause
):
    path = make_video(tmp_path / "a.mp4")

    def wanted(n_total):
        os.kill(child().pid, number)
        return range(n_total)

    assert read_barcodes(read_frames(path, timeout=30)) == list(range(40))
    first = child().pid
    with pytest.raises(ClipError, match=cause):
        read_frames(path, wanted, timeout=1)
    assert read_barcodes(read_frames(path)) == list(range(40))
    assert child().pid != first and gone(first)


def test_a_caller_that_gives_up_in_the_middle_gets_whole_clips_afterwards(
    tmp_path, make_video, read_barcodes
):
    size = (256, 340)  # of which the buffer holds 8 at a time
    paths = [make_video(tmp_path / f"{n}.mp4", n_frames=n, size=size) for n in (40, 30)]
    with pytest.raises(RuntimeError):  # from resizing the first frames, while more are under way
        read_frames(paths[0], short_side=-1)
    with pytest.raises(ZeroDivisionError):
        read_frames(paths[0], lambda n: [1 // 0])
    assert read_barcodes(read_frames(paths[1])) == list(range(30))


def test_a_reader_that_cannot_start_is_an_error_that_is_no_clip_s(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHILD", [sys.executable, "-c", "import none_such"])
    monkeypatch.setattr(readers, "_local", threading.local())
    with pytest.raises(RuntimeError, match=r"does not start: .*died \(exit status 1\)"):
        read_frames(tmp_path / "a.mp4")


def test_frames_larger_than_the_shared_memory_come_whole(
    tmp_path, make_video, read_barcodes, monkeypatch
):
    monkeypatch.setattr(readers, "BUFFER", 5000)  # of this process; the child makes it grow
    monkeypatch.setattr(readers, "_local", threading.local())
    small = make_video(tmp_path / "small.mp4", n_frames=5, size=(32, 40))
    large = make_video(tmp_path / "large.mp4", n_frames=9, size=(128, 160))
    assert read_barcodes(read_frames(small)) == list(range(5))
    assert read_barcodes(read_frames(large)) == list(range(9))


def test_a_child_is_replaced_after_some_files_and_the_old_one_ends(
    tmp_path, make_video, monkeypatch
):
    monkeypatch.setattr(readers, "MAX_FILES", 3)
    monkeypatch.setattr(readers, "_local", threading.local())
    path, pids = make_video(tmp_path / "a.mp4", n_frames=2), []
    for _ in range(7):
        read_frames(path)
        pids.append(child().pid)
    assert pids == [pids[0]] * 3 + [pids[3]] * 3 + [pids[6]] and len(set(pids)) == 3
    assert gone(pids[0]) and gone(pids[3]) and not gone(pids[6], 0.2)


PARENT = """
import os, signal, sys, threading, time
from s2dlib.data import readers
readers.CHILD = [sys.executable, "-P", "-c", sys.argv[1]]
readers._reader()
print(readers._local.reader.child.pid, flush=True)
threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
readers.probe(sys.argv[2])
"""


def test_a_child_that_hangs_ends_when_its_parent_is_killed():
    command = [sys.executable, "-c", PARENT, CHILD, "hangs.mp4"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL and gone(int(done.stdout))


def test_a_child_ends_with_the_thread_that_owns_it(tmp_path, make_video):
    path, pids = make_video(tmp_path / "a.mp4", n_frames=2), []
    thread = threading.Thread(target=lambda: (read_frames(path), pids.append(child().pid)))
    thread.start(), thread.join()
    assert gone(pids[0])


class Pids(Dataset):
    """The child that read the frames, and their count."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 8

    def __getitem__(self, index):
        n_frames = len(read_frames(self.path))
        return child().pid, n_frames


def test_each_worker_has_its_own_child_and_a_fork_leaves_the_parent_s_alone(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", n_frames=4)
    read_frames(path)
    mine, items = child().pid, Pids(path)
    for _ in range(2):
        pids, counts = zip(*DataLoader(items, num_workers=2, batch_size=None), strict=True)
        assert set(counts) == {4} and len(set(pids)) == 2 and mine not in pids
        assert all(gone(pid) for pid in set(pids))
        read_frames(path)
        assert child().pid == mine


def clips(folder, make_video, names, split="train"):
    """A data set of videos; those that hang or crash need not exist."""
    for i, name in enumerate(names):
        if not name.endswith(("hangs.mp4", "crashes.mp4")):
            make_video(folder / name, n_frames=10 + i)
    rows = [f"{name},{i % 2},{split}" for i, name in enumerate(names)]
    (folder / "clips.csv").write_text("\n".join(["path,label,split", *rows]))
    return DataConfig(csv=str(folder / "clips.csv"), n_frames=8, short_side=64, crop=48)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_ends_with_all_but_the_clips_that_hang_or_crash(
    tmp_path, make_video, bad_reader, workers
):
    names = [f"{i}.mp4" for i in range(20)]
    names[3], names[11] = "hangs.mp4", "crashes.mp4"
    config = replace(clips(tmp_path, make_video, names), timeout=2)
    dataset = VideoDataset(config, "train", train=False)
    seen = [i for batch in load_batches(dataset, 4, workers) for i in batch["index"].tolist()]
    assert seen == [i for i in range(20) if i not in (3, 11)]
    assert dataset.failed == {
        str(tmp_path / "hangs.mp4"): "no progress within 2 s; grant more by timeout=",
        str(tmp_path / "crashes.mp4"): "the reader died (signal 11)",
    }


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_child_killed_from_outside_costs_at_most_the_clip_it_reads(tmp_path, make_video, context):
    dataset = VideoDataset(
        clips(tmp_path, make_video, [f"{i}.mp4" for i in range(12)]), "train", train=False
    )
    loader = DataLoader(
        dataset,
        num_workers=2,
        multiprocessing_context=context,
        persistent_workers=True,
        collate_fn=list,
    )
    for epoch in range(2):
        items = []
        for i, (item,) in enumerate(loader):
            items.append(item)
            if i == 4:  # the children of both workers
                for worker in loader._iterator._workers:
                    children = f"/proc/{worker.pid}/task/{worker.pid}/children"
                    for pid in map(int, open(children).read().split()):
                        os.kill(pid, signal.SIGKILL)
        assert len(items) == 12
        failed = [cause for item in items for cause in item["failed"].values()]
        assert len(failed) <= 2 and set(failed) <= {"the reader died (signal 9)"}, epoch
        good = [item for item in items if "frames" in item]
        assert len(good) >= 10 and all(item["frames"].any() for item in good)


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


# Folders of frames


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["img_00001.jpg", "img_00002.jpg", "notes.txt"], None),
        (["8.png", "9.png", "10.png", *(f"{i}.png" for i in range(8))], None),
        (["00001.jpg", "00003.jpg"], r"frame 2 is missing \(the last is 3\)"),
        (["1.jpg", "00001.jpg"], "two frames 1: 00001.jpg and 1.jpg"),
        (["notes.txt"], "without numbered frames"),
    ],
)
def test_frames_of_a_folder_come_by_number(tmp_path, names, cause):
    frames = {}
    for shade, name in enumerate(names):
        path = tmp_path / name
        path.touch()
        if path.suffix != ".txt":
            Image.new("RGB", (30, 20), (shade * 20, 0, 0)).save(path)
            frames[int("".join(filter(str.isdigit, name)))] = shade * 20
    if cause is not None:
        with pytest.raises(ClipError, match=cause):
            read_frames(tmp_path)
        return
    shades = [frames[number] for number in sorted(frames)]
    assert_close(read_frames(tmp_path)[:, 0, 10, 10].int().tolist(), shades, atol=2, rtol=0)
    assert probe(tmp_path).n_frames == len(shades) and np.isnan(probe(tmp_path).fps)


def ramp(mode):
    """An image of a mode that shows a horizontal ramp of 256 grays, and those grays. (8, 256)"""
    gray = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    image = Image.fromarray(gray)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "RGBA":  # half covered white
        image = Image.merge("RGBA", [Image.new("L", image.size, 255)] * 3 + [image])
    elif mode == "LA":
        image = Image.merge("LA", [image, Image.new("L", image.size, 128)])
        gray = gray * (128 / 255)
    elif mode == "P, one transparent":
        image = image.convert("P")
        image.info["transparency"] = 200
        gray = np.where(gray == 200, 0, gray)
    elif mode == "P":
        image = image.convert("P")
    elif mode == "1":
        image, gray = image.point(lambda x: 255 * (x > 99), "1"), 255.0 * (gray > 99)
    elif mode == "LAB":
        image = Image.merge("LAB", [image, *[Image.new("L", image.size, 128)] * 2])
        gray = None  # L* is not the gray
    elif mode != "L":
        image = image.convert("RGB").convert(mode)
    return image, gray


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("L", suffix) for suffix in sources.IMAGES if suffix != "ppm"),
        *(("RGB", suffix) for suffix in sources.IMAGES if suffix != "pgm"),
        *(("I;16", suffix) for suffix in ("png", "tif", "pgm")),
        *((mode, "png") for mode in ("P", "P, one transparent", "1", "LA", "RGBA")),
        *((mode, "tif") for mode in ("CMYK", "YCbCr", "LAB", "LA", "RGBA", "1")),
        *(("CMYK", "jpg"), ("RGBA", "webp")),
    ],
)
def test_images_of_any_mode_look_as_a_player_shows_them(tmp_path, mode, suffix):
    image, gray = ramp(mode)
    image.save(tmp_path / f"1.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    (frame,) = read_frames(tmp_path).permute(0, 2, 3, 1).float().numpy()  # (8, 256, 3)
    if gray is None:
        assert frame[:, 0].max() < 3 and frame[:, 255].min() > 252
        assert (np.diff(frame[0, :, 1]) >= 0).all() and np.ptp(frame, -1).max() <= 3
    else:
        assert np.abs(frame - gray[..., None]).max() <= 3


@pytest.mark.parametrize(("kind", "what"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
def test_images_without_a_black_and_a_white_are_refused_by_name(tmp_path, kind, what):
    Image.fromarray(np.ones((8, 9), kind)).save(tmp_path / "1.tif")
    with pytest.raises(ClipError, match=rf"1\.tif cannot be read \({what}, .*write 8 or 16 bits"):
        read_frames(tmp_path)


def test_a_photo_of_a_camera_held_upright_is_turned(tmp_path):
    image = Image.fromarray(np.arange(0, 240, 4, np.uint8).reshape(6, 10) // 4 * 4)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter clockwise
    image.save(tmp_path / "1.png", exif=exif)
    expected = torch.from_numpy(np.rot90(np.asarray(image), -1).copy())
    assert read_frames(tmp_path)[0, 0].equal(expected)


def test_only_the_wanted_images_of_a_folder_are_opened(tmp_path, read_barcodes):
    path = write_folder(tmp_path / "clip", range(1, 31))
    (path / "00007.jpg").write_bytes(b"")
    assert read_barcodes(read_frames(path, [29, 3, 11])) == [29, 3, 11]
    with pytest.raises(ClipError, match=r"00007\.jpg cannot be read"):
        read_frames(path, [6])


def test_a_file_that_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "secret.mp4"
        path.write_bytes(b"secret")
        Path(folder).chmod(0o755)
        path.chmod(0)
        if os.geteuid() != 0:
            with pytest.raises(ClipError, match="no permission to read it"):
                decoding.open_video(str(path))
            return
        if (child := os.fork()) == 0:  # root may read all, so as nobody
            os.setuid(65534)
            try:
                decoding.open_video(str(path))
            except ClipError as error:
                os._exit(0 if error.cause == "no permission to read it" else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
