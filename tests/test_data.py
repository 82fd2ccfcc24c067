"""A CSV of videos becomes the same clips every time, whatever reads it."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from s2dlib.config import DataConfig
from s2dlib.data.clips import choose_frames, load_clip, load_views
from s2dlib.data.dataset import VideoDataset, map_array
from s2dlib.data.loader import PREFETCH, SlotLoader, collate, load_batches
from s2dlib.data.readers import read_frames
from s2dlib.data.sources import ClipError
from s2dlib.data.table import class_names, read_csv

ROWS = [("a.mp4", "wave", "train"), ("b.mp4", "clap", "train"), ("c.mp4", "nod", "test")]


def write_csv(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def config(tmp_path, make_video):
    """Three videos of 40, 30 and 9 frames, 64 x 80 pixels."""
    for (name, _, _), n_frames in zip(ROWS, (40, 30, 9), strict=True):
        make_video(tmp_path / name, n_frames=n_frames)
    lines = ["path,label,split", *(",".join(row) for row in ROWS)]
    csv = write_csv(tmp_path / "videos.csv", "\n".join(lines))
    return DataConfig(csv=str(csv), n_frames=12, frame_stride=2, short_side=64, crop=48)


# The file


def test_names_are_numbered_in_sorted_order_over_all_splits(config):
    table = read_csv(config.csv)
    assert table.columns.tolist() == ["path", "label", "split", "class_name"]
    assert table.label.tolist() == [2, 0, 1] and class_names(table) == ["clap", "nod", "wave"]
    for split in ("train", "test"):
        assert VideoDataset(config, split, train=False).classes == ["clap", "nod", "wave"]


def test_integers_are_indices_and_an_index_without_videos_keeps_its_place(tmp_path):
    table = read_csv(write_csv(tmp_path / "a.csv", "path,label,split\nx,3,train\ny,0,test\n"))
    assert table.label.tolist() == [3, 0] and class_names(table) == ["0", "1", "2", "3"]


def test_label_name_names_the_indices_and_extra_columns_are_kept(tmp_path):
    text = "path,label,label_name,split,fold\nx.mp4,1,tick,train,7\ny.mp4,0,star,test,8\n"
    table = read_csv(write_csv(tmp_path / "labels.csv", text))
    assert class_names(table) == ["star", "tick"] and table.fold.tolist() == ["7", "8"]
    assert table.path.tolist() == [str(tmp_path / "x.mp4"), str(tmp_path / "y.mp4")]


def test_bom_crlf_quotes_commas_blank_lines_and_other_alphabets_are_read(tmp_path):
    text = (
        'path,label,split\r\n"clips/a, b.mp4","pulling, ""hard""",train\r\n\r\n'
        "/far/видео.mp4,größer,test\r\n"
    )
    table = read_csv(write_csv(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode()))
    assert table.path.tolist() == [str(tmp_path / "clips" / "a, b.mp4"), "/far/видео.mp4"]
    assert class_names(table) == ["größer", 'pulling, "hard"']


BAD = {
    "": "no column path, label, split",
    "path,label\nx,a\n": "no column split",
    "path,label,split\n": "no rows",
    "path,label,split\nx,a,train\ny,b\n": "row 3: 2 fields, expected 3",
    "path,label,split\nx,a,train\ny,b,test,,\n": "row 3: 5 fields, expected 3",
    "path,label,split\nx,a,train\n,b,test\n": "row 3: path is empty",
    "path,label,split\nx,a,train\n\ny,,test\n": "row 4: label is empty",
    "path,label,split\nx,a,train\ny,b, \n": "row 3: split is empty",
    "path,label,split\nx,a,train\ny,b,train\n./x,a,test\n": "row 4: .*x is in row 2 already",
    "path,label,split\nx,0,train\ny,-1,test\n": "row 3: label must be >= 0, got -1",
    "path,label,split\nx,1,train\ny,2,test\n": "labels run from 1 to 2; they must count from 0",
    "path,label,label_name,split\nx,0,a,train\ny,one,b,test\n": "row 3: .* integer, got 'one'",
    "path,label,label_name,split\nx,0,a,train\ny,0,b,train\n": "label 0 has class_name b, but a",
    "path,label,label_name,split\nx,0,a,train\ny,1,a,test\n": "class_name a has label 1, but 0",
    b"path,label,split\nx,\xff\xfe,train\n": "not a CSV file in UTF-8",
}


@pytest.mark.parametrize(("text", "cause"), BAD.items(), ids=BAD.values())
def test_a_bad_csv_is_an_error_that_names_file_and_row(tmp_path, text, cause):
    with pytest.raises(ValueError, match=rf"bad\.csv.*{cause}"):
        read_csv(write_csv(tmp_path / "bad.csv", text))


def test_a_label_composed_or_decomposed_is_one_class(tmp_path):
    text = "path,label,split\nx,café,train\ny,cafe\u0301 ,test\nz,nod,test\n"
    table = read_csv(write_csv(tmp_path / "a.csv", text))
    assert table.label.tolist() == [0, 0, 1] and class_names(table) == ["café", "nod"]


def test_a_path_is_found_as_it_is_written_and_bytes_that_are_no_utf8_by_their_escape(tmp_path):
    names = [os.fsdecode(b"a\xdf.mp4"), r"b\xdf.mp4"]
    for name in names:
        (tmp_path / name).touch()
    lines = [r"a\xdf.mp4,one,train", r"b\xdf.mp4,two,train", "./ c.mp4,two,train"]
    table = read_csv(write_csv(tmp_path / "a.csv", "\n".join(["path,label,split", *lines])))
    assert table.path.tolist() == [str(tmp_path / name) for name in (*names, " c.mp4")]


def test_a_missing_csv_and_an_unknown_split_are_errors(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"no split 'val'; the splits are \['test', 'train'\]"):
        VideoDataset(config, "val", train=True)


# Which frames


@pytest.mark.parametrize(
    ("n_total", "stride", "frames"),
    [
        (12, 1, [4, 5, 6, 7]),
        (12, 2, [2, 4, 6, 8]),
        (13, 4, [0, 4, 8, 12]),
        (8, 2, [0, 2, 4, 6]),
        (5, 2, [0, 2, 4]),
        (1, 9, [0]),
    ],
)
def test_in_testing_the_clip_is_centred(n_total, stride, frames):
    config = DataConfig(csv="", n_frames=4, frame_stride=stride)
    assert choose_frames(n_total, config, None) == frames


def test_in_training_every_start_is_as_likely_as_the_others():
    config, generator = DataConfig(csv="", n_frames=3, frame_stride=2), torch.Generator()
    clips = [choose_frames(9, config, generator) for _ in range(2000)]
    starts = Counter(clip[0] for clip in clips)
    assert all(clip == [clip[0], clip[0] + 2, clip[0] + 4] for clip in clips)
    assert sorted(starts) == [0, 1, 2, 3, 4] and min(starts.values()) > 320


def test_a_video_below_min_frames_is_an_error_that_names_it(config):
    config = replace(config, min_frames=6)
    with pytest.raises(ValueError, match="9 frames give 5 at stride 2, but min_frames is 6"):
        choose_frames(9, config)
    for cache in (None, config.csv + ".cache"):
        with pytest.raises(ClipError, match=r"c\.mp4: 9 frames give 5"):
            VideoDataset(replace(config, cache=cache), "test", train=False)[0]


def test_load_clip_gives_the_centred_frames_of_a_file(config, tmp_path, read_barcodes):
    assert load_clip(tmp_path / "a.mp4").shape == (3, 40, 64, 80)
    clip = load_clip(tmp_path / "a.mp4", n_frames=4, frame_stride=5, short_side=48)
    assert clip.dtype == torch.uint8 and clip.shape == (3, 4, 48, 60)
    assert read_barcodes(clip.transpose(0, 1)) == [12, 17, 22, 27]
    with pytest.raises(ValueError, match="must be >= 1, got 0, 1"):
        load_clip(tmp_path / "a.mp4", n_frames=0)


def test_the_time_granted_to_a_file_can_be_set_wherever_files_are_read(config, tmp_path):
    path, short = tmp_path / "a.mp4", replace(config, timeout=1e-6)
    reads = [
        lambda: load_clip(path, timeout=1e-6),
        lambda: load_views(path, short),
        lambda: VideoDataset(short, "train", train=False)[0],
        lambda: VideoDataset(replace(short, cache=str(tmp_path / "x")), "train", train=False)[0],
    ]
    for read in reads:
        with pytest.raises(ClipError, match=r"no progress within 1e-06 s; grant more by timeout="):
            read()
    assert load_views(path, config).shape == (1, 3, 12, 48, 48)
    with pytest.raises(ValueError, match="timeout: must be greater than 0, got 0"):
        replace(config, timeout=0)


# What is cut out of them


@pytest.mark.parametrize("gray", [False, True])
def test_in_testing_the_centre_crop_is_taken(config, tmp_path, gray):
    item = VideoDataset(replace(config, gray=gray), "test", train=False)[0]
    frames = read_frames(tmp_path / "c.mp4", range(0, 9, 2))  # (5, 3, 64, 80)
    expected = (rgb_to_grayscale(frames) if gray else frames)[..., 8:56, 16:64].transpose(0, 1)
    assert_close(item["frames"], expected, rtol=0, atol=0)
    assert (item["label"], item["index"]) == (1, 0)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("scale", [0.75, 1.0])
def test_in_training_the_clip_is_a_crop_of_the_video_perhaps_mirrored(
    config, tmp_path, gray, scale
):
    config = replace(config, scales=(scale,), gray=gray, n_frames=3, frame_stride=4)
    dataset, side = VideoDataset(config, "train", train=True), round(scale * 64)
    video = read_frames(tmp_path / "a.mp4")
    video = rgb_to_grayscale(video) if gray else video  # (40, C, 64, 80)
    found = []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        clip = dataset[0]["frames"]  # (C, 3, 48, 48)
        for flip, seen in ((False, clip), (True, clip.flip(-1))):
            for start, y, x in where(seen[0, 0], video[:, 0], side):
                square = video[start : start + 9 : 4, :, y : y + side, x : x + side]
                expected = resize(square, [48, 48], antialias=True).transpose(0, 1)
                assert (seen.int() - expected.int()).abs().max() <= 1
                found.append((epoch, flip, start, y, x))
    epochs, flips, starts, ys, xs = (set(column) for column in zip(*found, strict=True))
    assert epochs == set(range(6)) and len(found) == 6  # one place for every clip
    assert flips == {False, True} and min(len(starts), len(xs)) > 2 and len(ys) > 2 * (scale < 1)


def where(image, video, side):
    """Every (frame, y, x) whose square gives the image. image (48, 48), video (T, H, W)"""
    squares = video.unfold(1, side, 1).unfold(2, side, 1)  # (T, Y, X, side, side)
    if side != 48:
        squares = resize(squares.flatten(0, 2)[:, None], [48, 48], antialias=True)
        squares = squares.view(len(video), 65 - side, 81 - side, 48, 48)
    row = (squares[..., -1, :].int() - image[-1].int()).abs().amax(-1) <= 1  # noise
    return row.nonzero().tolist()


def test_without_flip_nothing_is_mirrored_and_the_other_choices_stay(config):
    config = replace(config, scales=(0.75,))
    both, plain = (
        VideoDataset(replace(config, flip=flip), "train", True) for flip in (True, False)
    )
    mirrored = 0
    for epoch in range(8):
        both.set_epoch(epoch), plain.set_epoch(epoch)
        a, b = both[0]["frames"], plain[0]["frames"]
        assert a.equal(b) or a.equal(b.flip(-1))
        mirrored += not a.equal(b)
    assert 0 < mirrored < 8


@pytest.mark.parametrize("size", [(64, 80), (80, 64), (64, 64)])
def test_three_crops_lie_along_the_longer_side(config, tmp_path, make_video, size):
    make_video(tmp_path / "c.mp4", n_frames=9, size=size)
    config = replace(config, test_crops=3)
    dataset = VideoDataset(config, "test", train=False)
    video = read_frames(tmp_path / "c.mp4", range(0, 9, 2))  # (5, 3, *size)
    height, width = size
    ends = (0, (max(size) - 48) // 2, max(size) - 48)
    squares = [(at, 8) if height > width else (8, at) for at in ends]
    expected = [video[..., y : y + 48, x : x + 48].transpose(0, 1) for y, x in squares]
    assert_close(dataset[0]["frames"], torch.stack(expected), rtol=0, atol=0)
    one = VideoDataset(replace(config, test_crops=1), "test", train=False)[0]["frames"]
    assert dataset[0]["frames"][1].equal(one)
    assert VideoDataset(config, "train", train=True)[0]["frames"].ndim == 4  # one, at random
    assert (dataset.n_crops, VideoDataset(config, "train", train=True).n_crops) == (3, 1)


def test_in_a_batch_the_crops_of_a_video_stand_together(config):
    dataset = VideoDataset(replace(config, test_crops=3), "train", train=False)
    batch = collate([dataset[1], dataset[0]])  # 15 and 20 frames, at most 12
    assert batch["frames"].shape == (6, 3, 12, 48, 48) and batch["n_frames"].tolist() == [12] * 6
    assert batch["label"].tolist() == [0] * 3 + [2] * 3
    assert batch["index"].tolist() == [3, 4, 5, 0, 1, 2]
    for i, clip in zip(batch["index"].tolist(), batch["frames"], strict=True):
        assert clip.equal(dataset[i // 3]["frames"][i % 3])


def test_the_truth_of_each_crop_is_in_its_own_pixels(config, tmp_path):
    csv = tmp_path / "truth.csv"
    columns = "path,label,split,t,duration,size,y,x,side"
    csv.write_text(f"{columns}\nc.mp4,wave,test,4,2,6,20,30,64\n")
    config = replace(config, csv=str(csv), test_crops=3)
    batch = collate([VideoDataset(config, "test", train=False)[0]])
    one = VideoDataset(replace(config, test_crops=1), "test", train=False)[0]["truth"]  # (5,)
    assert_close(batch["truth"][1], one)
    assert (batch["truth"][:, 4] - one[4]).tolist() == [16, 0, -16]  # x; crops at 0, 16, 32
    assert batch["truth"][:, :4].eq(one[:4]).all()


# The same clips again


def clips(dataset, epoch, workers=0):
    dataset.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate)
    return next(iter(loader))["frames"]


@pytest.mark.parametrize("cached", [False, True])
def test_clips_depend_on_seed_epoch_and_index_alone(config, tmp_path, cached):
    config = replace(config, cache=str(tmp_path / "cache") if cached else None)
    dataset = VideoDataset(config, "train", train=True, seed=1)
    first, second = clips(dataset, 0), clips(dataset, 1)
    assert not first.equal(second)
    torch.manual_seed(99), torch.rand(5), np.random.seed(3)
    again = VideoDataset(config, "train", train=True, seed=1)
    assert again[1]["frames"].equal(first[1]) and again[0]["frames"].equal(first[0])
    for workers in (0, 2):
        assert clips(again, 1, workers).equal(second) and clips(again, 0, workers).equal(first)
    other = VideoDataset(config, "train", train=True, seed=2)
    assert not clips(other, 0).equal(first)


def test_workers_that_live_on_see_the_new_epoch(config):
    dataset = VideoDataset(config, "train", train=True)
    expected = [clips(dataset, epoch) for epoch in range(3)]
    loader = DataLoader(
        dataset, batch_size=2, num_workers=1, collate_fn=collate, persistent_workers=True
    )
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert next(iter(loader))["frames"].equal(expected[epoch])


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_a_cached_clip_is_the_decoded_one_and_is_decoded_once(
    config, tmp_path, monkeypatch, gray, train
):
    config = replace(config, gray=gray)
    cached = VideoDataset(replace(config, cache=str(tmp_path / "cache")), "train", train)
    expected = VideoDataset(config, "train", train)[0]["frames"]
    assert cached[0]["frames"].equal(expected)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".npy"]
    monkeypatch.setattr("s2dlib.data.dataset.read_frames", None)
    clip = cached[0]["frames"]
    assert clip.equal(expected) and clip.zero_().any() == 0  # writable, and not the cache itself
    assert cached[0]["frames"].equal(expected)


def test_a_video_that_changes_is_decoded_again_and_one_that_goes_is_an_error(
    config, tmp_path, make_video
):
    config = replace(config, cache=str(tmp_path / "cache"), n_frames=50, frame_stride=1)
    dataset = VideoDataset(config, "test", train=False)
    assert dataset[0]["frames"].shape[1] == 9
    make_video(tmp_path / "c.mp4", n_frames=13)
    assert dataset[0]["frames"].shape[1] == 13
    (tmp_path / "c.mp4").unlink()
    with pytest.raises(ClipError, match=r"c\.mp4: no such file"):
        dataset[0]


# What cannot be read


@pytest.fixture
def dataset(tmp_path, make_video):
    """dataset(bad, train): 20 videos of 10 to 29 frames, of which those in bad cannot be read."""

    def make(bad, train):
        rows = ["path,label,split"]
        for i in range(20):
            path = make_video(tmp_path / f"{i}.mp4", n_frames=10 + i)
            rows.append(f"{i}.mp4,{i % 3},all")
            if i in bad:
                path.write_bytes(b"")
        csv = write_csv(tmp_path / "videos.csv", "\n".join(rows))
        config = DataConfig(csv=str(csv), n_frames=40, frame_stride=1, short_side=64, crop=48)
        return VideoDataset(config, "all", train, seed=1)

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_in_testing_a_clip_that_cannot_be_read_is_left_out(dataset, tmp_path, caplog, workers):
    dataset = dataset({4, 7}, train=False)
    cause = {str(tmp_path / f"{i}.mp4"): "the file is empty (0 bytes)" for i in (4, 7)}
    for _ in range(2):
        index = [i for batch in load_batches(dataset, 1, workers) for i in batch["index"].tolist()]
        assert index == [i for i in range(20) if i not in (4, 7)] and dataset.failed == cause
    assert [record.message for record in caplog.records] == [
        f"{path}: the file is empty (0 bytes); left out" for path in cause
    ]  # once, not in each pass


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_another_clip_takes_the_place_of_one_that_cannot_be_read(
    dataset, tmp_path, caplog, workers
):
    dataset, steps = dataset({4, 7}, train=True), [[0, 4], [7, 1], [2, 3]]
    seen = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        batches = list(load_batches(dataset, workers=workers, steps=steps))
        index = torch.stack([batch["index"] for batch in batches])  # (3, 2)
        assert index[:, 0].tolist()[::2] == [0, 2] and index[1:, 1].tolist() == [1, 3]
        for batch in batches:  # the video there is the one that index names
            assert (batch["n_frames"] == 10 + batch["index"]).all()
            assert (batch["label"] == batch["index"] % 3).all()
        assert set(dataset.failed) == {str(tmp_path / f"{i}.mp4") for i in (4, 7)}
        seen.append(index.tolist())
    assert seen[0] == seen[2] != seen[1]
    assert len(caplog.records) == 2 and "another clip takes its place" in caplog.text


def test_too_many_unreadable_clips_are_an_error_that_names_some(dataset):
    with pytest.raises(RuntimeError, match=r"3 of 20 clips .* more than 10%: .*0\.mp4: .*0 bytes"):
        list(load_batches(dataset({0, 1, 2}, train=False)))


def test_in_training_a_split_of_which_nothing_can_be_read_is_an_error(dataset):
    dataset = dataset(set(range(20)), train=True)
    with pytest.raises(RuntimeError, match=r"5 clips drawn in turn .*\.mp4: the file is empty"):
        list(load_batches(dataset, steps=[[0, 1]]))


def test_one_clip_asked_for_by_hand_is_an_error_of_its_own(dataset):
    for train in (False, True):
        with pytest.raises(ClipError, match=r"4\.mp4: the file is empty"):
            dataset({4}, train)[4]


def test_a_worker_does_not_grow_with_the_clips_it_has_read(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", n_frames=60, size=(144, 160))
    csv = write_csv(tmp_path / "videos.csv", "path,label,split\na.mp4,0,all")
    data = DataConfig(csv=str(csv), n_frames=60, frame_stride=1, short_side=256, crop=224)

    class Sizes(VideoDataset):
        def __getitems__(self, indices):
            items = super().__getitems__(indices)
            pages = int(open("/proc/self/statm").read().split()[1])
            items[0]["label"] = pages * 4096 // 10**6
            return items

    dataset = Sizes(data, "all", train=False)
    steps = [[0]] * 40
    sizes = [batch["label"].item() for batch in load_batches(dataset, workers=1, steps=steps)]
    assert max(sizes[20:]) < sizes[10] + 40  # MB; a clip is 9, its uncropped frames 13


@pytest.mark.slow
def test_workers_wait_for_the_next_epoch(dataset):
    def clips(dataset, epoch, workers):
        dataset.set_epoch(epoch)
        steps = [[i] for i in range(12, 18)]
        return [batch["frames"] for batch in load_batches(dataset, workers=workers, steps=steps)]

    kept, fresh = dataset(set(), train=True), dataset(set(), train=True)
    first = clips(kept, 0, workers=2)
    waiting = kept.loader._iterator._workers
    second = clips(kept, 1, workers=2)
    assert kept.loader._iterator._workers is waiting
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(second, clips(fresh, 1, workers=0), strict=True):
        assert torch.equal(a, b)  # they know of the epoch
    assert pickle.loads(pickle.dumps(kept)).loader is None


@pytest.mark.parametrize("train", [False, True])
def test_clips_are_read_into_the_memory_of_their_batch(dataset, train):
    dataset = dataset({4, 7}, train)  # of 10 frames and more: all, some or none as many as asked
    dataset.config = replace(dataset.config, n_frames=14, flip=train)
    steps = [[0, 1], [2, 3, 4], [5, 6], [7, 8, 3], [9, 2]]
    for step, batch in zip(steps, load_batches(dataset, steps=steps), strict=True):
        items = dataset.__getitems__(step)
        read = [item for item in items if "frames" in item]
        assert len(read) == len(step) or not train
        own = [dataset[item["index"]] for item in read]  # each in a memory of its own
        assert torch.equal(batch["frames"], collate(own)["frames"])
        for row, item in zip(items.memory, items, strict=True):
            assert "frames" not in item or item["frames"].data_ptr() == row.data_ptr()
        full = len(read) == len(step) and batch["n_frames"].max().item() == 14
        assert (collate(items)["frames"].data_ptr() == items.memory.data_ptr()) is full


def test_a_data_set_of_ones_own_may_mix_and_keep_clips(dataset):
    class Mixed(VideoDataset):
        def __getitem__(self, index):
            kept = super().__getitem__(index)
            self.kept = [*getattr(self, "kept", []), kept["frames"]]
            other = super().__getitem__(len(self) - 1)["frames"]
            return kept | {"frames": (kept["frames"] + other[:, :10].float())[..., :32] / 510}

    base = dataset(set(), train=False)
    base.config = replace(base.config, n_frames=10)
    mixed = Mixed(base.config, "all", train=False)
    clips = [base[i]["frames"] for i in range(20)]
    frames = torch.cat([batch["frames"] for batch in load_batches(mixed, 4)])
    assert torch.equal(
        frames, torch.stack([(x + clips[19].float())[..., :32] / 510 for x in clips])
    )
    assert torch.equal(torch.stack(mixed.kept), torch.stack(clips))


@pytest.mark.slow
def test_workers_write_pinned_batches_into_few_slots(dataset):
    dataset, held = dataset(set(), train=False), {}
    steps = [[i, i + 1] for i in range(19)]  # each longer than the one before
    loader = SlotLoader(dataset, workers=2, pin=True)
    for _ in range(2):
        loader.batch_sampler[:] = steps
        for batch, step in zip(loader, steps, strict=True):
            expected = collate([dataset[i] for i in step])
            assert torch.equal(batch["frames"], expected["frames"])
            assert batch["index"].tolist() == step
            slot = batch["frames"].untyped_storage()
            held[slot.data_ptr()] = slot  # as pin_slot does
    n = 2 * (PREFETCH + 1)
    assert len(held) <= 4 * n < 2 * len(steps)  # each may grow three times
    loader.batch_sampler[:] = [steps[-1]] * 12
    last = {batch["frames"].untyped_storage().data_ptr() for batch in loader}
    assert len(last) == n
    own = DataLoader(  # one's own, which knows no turns
        dataset, batch_sampler=steps, num_workers=1, prefetch_factor=9, collate_fn=collate
    )
    for batch, step in zip([*own], steps, strict=True):
        assert torch.equal(batch["frames"], collate([dataset[i] for i in step])["frames"])


@pytest.mark.slow
def test_a_pass_that_is_not_at_its_end_keeps_its_workers(dataset):
    dataset = dataset(set(), train=False)
    steps = [[i] for i in range(6)]
    list(load_batches(dataset, workers=1, steps=steps))
    one = load_batches(dataset, workers=1, steps=steps)
    seen = [next(one)]
    other = [batch["index"].item() for batch in load_batches(dataset, workers=1, steps=steps)]
    seen += one
    assert [batch["index"].item() for batch in seen] == other == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_every_pass_draws_one_random_number(dataset, workers):
    dataset = dataset(set(), train=False)
    for _ in range(2):
        torch.manual_seed(0)
        list(load_batches(dataset, workers=workers, steps=[[0]]))
        drawn = torch.rand(1)
        torch.manual_seed(0)
        torch.empty((), dtype=torch.int64).random_()
        assert drawn == torch.rand(1)


# Batches


def test_clips_of_different_length_are_padded_with_zeros():
    items = [
        {"frames": torch.full((3, T, 4, 5), T, dtype=torch.uint8), "label": T, "index": 10 * T}
        for T in (2, 5, 1)
    ]
    batch = collate(items)
    assert batch["frames"].shape == (3, 3, 5, 4, 5) and batch["frames"].dtype == torch.uint8
    assert batch["n_frames"].tolist() == [2, 5, 1] and batch["index"].tolist() == [20, 50, 10]
    assert batch["label"].tolist() == [2, 5, 1] and batch["label"].dtype == torch.int64
    assert batch["frames"].sum((1, 3, 4)).tolist() == [
        [120, 120, 0, 0, 0],
        [300, 300, 300, 300, 300],
        [60, 0, 0, 0, 0],
    ]


def test_a_batch_without_a_clip_holds_only_why():
    failed = [{"failed": {"a.mp4": "no such file"}}, {"failed": {"b.mp4": "not a file"}}]
    assert collate(failed) == {"failed": {"a.mp4": "no such file", "b.mp4": "not a file"}}


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_array_is_what_numpy_wrote(tmp_path, order):
    array = np.arange(60, dtype=np.uint8).reshape(5, 1, 3, 4).copy(order)
    np.save(tmp_path / "a.npy", array)
    mapped = map_array(tmp_path / "a.npy")
    assert np.array_equal(mapped.numpy(), array)
    mapped.zero_()  # of this process alone
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
