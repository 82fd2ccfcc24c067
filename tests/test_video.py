"""Frames come in order and unaltered; a bad file is an error that says which and why, no more."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from corpus import cut
from kinds import OPEN_GOP
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from s2dlib.config import DataConfig
from s2dlib.data import decoding, readers
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.files import write_video
from s2dlib.data.loader import load_batches
from s2dlib.data.readers import check_videos, is_video, probe, read_frames
from s2dlib.data.sources import ClipError


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
    assert probe(path) == readers.VideoInfo(31, fps=25.0, height=64, width=80, reader="pyav")


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


def test_videos_are_read_ahead_in_order_and_no_further_than_is_asked(tmp_path, make_video):
    paths = [make_video(tmp_path / f"{n}.mp4", n_frames=n) for n in (9, 2, 7, 3, 5, 4, 8, 6)]
    begun = []

    def read(path):
        begun.append(path)
        return len(read_frames(path))

    for n, length in enumerate(readers.read_ahead(read, paths, workers=2, ahead=3), start=1):
        assert str(length) == paths[n - 1].stem
        assert len(begun) <= n + 3
    assert n == len(paths)


def test_leaving_early_does_not_wait_for_a_file_that_hangs(tmp_path, make_video, bad_reader):
    paths = [make_video(tmp_path / "a.mp4", n_frames=5), *[tmp_path / "hangs.mp4"] * 9]
    children = set()

    def read(path):
        try:
            return len(read_frames(path))
        finally:
            if hasattr(readers._local, "reader"):  # none, where its child was killed at its start
                children.add(child())

    for wait in (0, 3):  # for the second child to start, or not
        videos = readers.read_ahead(read, paths, workers=2, ahead=4)
        assert next(videos) == 5
        time.sleep(wait)
        start = time.monotonic()
        videos.close()
        assert time.monotonic() - start < 30  # of the 60 seconds without progress
    assert len(children) >= 2 and all(gone(child.pid) for child in children)


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


def test_a_child_frees_the_frames_of_the_files_before(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", n_frames=2, size=(256, 320))
    pages = []
    for _ in range(200):
        read_frames(path)
        pages.append(int(Path(f"/proc/{child().pid}/statm").read_text().split()[1]))
    grown = (pages[-1] - pages[19]) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 180 * 256 * 320 * 1.5 / 2  # half of what a frame a file would hold


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
def test_narrow_videos_whose_rows_are_padded_are_read_right(tmp_path, width):
    path = tmp_path / "narrow.mp4"
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (48, 1))
    write_video(path, np.stack([ramp, ramp[:, ::-1]])[..., None])
    with av.open(path) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = read_frames(path)  # (2, 3, 48, width)
    assert frames.shape == (2, 3, 48, width)
    for frame, right in zip(frames, expected, strict=True):
        assert np.abs(frame.permute(1, 2, 0).numpy().astype(int) - right).max() <= 4


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
