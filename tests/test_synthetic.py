"""The built-in videos: what tells the classes apart, what does not, and that they stay whole."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import collate
from s2dlib.data.readers import read_frames
from s2dlib.data.synthetic import (
    ACTIONS,
    CLASSES,
    CLUE_ACTOR,
    DATASETS,
    SPLITS,
    class_names,
    glyph,
    render,
    write_clip,
    write_dataset,
)
from s2dlib.presets import PRESETS
from s2dlib.sampler import UniformSampler

SMALL = DATASETS["synthetic"]["main"]


def clip(label, seed, scene=SMALL):
    return render(label, scene, np.random.default_rng(seed))


def group_of(label: int) -> list[int]:
    """The labels of the classes that look the same at a glance, its own among them."""
    return [i for i, other in enumerate(CLASSES) if other[:2] == CLASSES[label][:2]]


def label_of(stripes, actor, pair):
    return CLASSES.index((stripes, actor, pair))


def test_render_repeats_by_seed():
    frames, truth = clip(3, 1)
    again, same = clip(3, 1)
    assert (frames == again).all() and truth == same
    assert (frames != clip(3, 2)[0]).any()


def test_classes_are_eight_groups_of_two_or_three():
    assert len(set(class_names())) == len(CLASSES) == 20
    groups = {tuple(group_of(label)) for label in range(20)}
    assert sorted(map(len, groups)) == [2] * 4 + [3] * 4
    assert sorted(label for group in groups for label in group) == list(range(20))


def test_glyphs_are_different_shapes_of_the_same_size():
    y, x = np.arange(-20, 21)[:, None], np.arange(-20, 21)[None]
    drawn = [glyph(kind, y, x, 16.0) for kind in range(3)]
    for a in range(3):
        assert 0 <= drawn[a].min() and drawn[a].max() == 1
        reach = np.abs(np.argwhere(drawn[a] > 0.5) - 20).max()
        assert 7 <= reach <= 9  # half of 16 pixels
        assert all(np.abs(drawn[a] - drawn[b]).sum() > 20 for b in range(a))


@pytest.mark.parametrize("dataset", ["synthetic", "synthetic-distractors"])
@pytest.mark.parametrize("seed", range(5))
def test_the_detail_is_where_and_when_the_truth_says(dataset, seed):
    # A clip and its twin of the group's other action, same seed: they differ in the detail only.
    label, scene = label_of("rising", "tall", (0, 1)), DATASETS[dataset]["main"]
    (frames, truth), (twin, same) = clip(label, seed, scene), clip(label + 1, seed, scene)
    assert truth == same
    differ = np.argwhere(np.abs(frames.astype(int) - twin).max(axis=3) > 40)  # (t, y, x)
    assert len(differ)
    assert np.abs(differ[:, 0] - truth["t"]).max() <= truth["duration"] + 1
    near = differ[np.abs(differ[:, 0] - truth["t"]) < 1.5]  # the actor moves on later
    assert np.abs(near[:, 1:] - [truth["y"], truth["x"]]).max() <= truth["size"] / 2 + 5


@pytest.mark.slow
def test_synthetic_large_is_in_colour():
    frames, truth = clip(0, 1, DATASETS["synthetic-large"]["main"])
    assert frames.shape == (104, 256, 256, 3)
    t, y, x = (int(truth[name]) for name in ("t", "y", "x"))
    around = frames[t, max(0, y - 30) : y + 30, max(0, x - 30) : x + 30]
    assert around.min(axis=2).max() > 180  # a white glyph
    assert np.ptp(frames[t].mean(axis=(0, 1))) > 3  # a tinted ground


def test_clue_strip_exchanges_two_actions():
    for actor, pairs in ACTIONS.items():
        first, second = (label_of("across", actor, pair) for pair in pairs[:2])
        seen = set()
        for seed in range(8):
            frames, truth = clip(first, seed)
            twin, _ = clip(second, seed)
            t, y, x = (int(truth[name]) for name in ("t", "y", "x"))
            same_scene = (np.abs(frames[0].astype(int) - twin[0]) > 40).mean() < 0.05
            assert same_scene  # the strip is no sign of the action
            seen.add(truth["clue"])
        assert seen == ({0.0, 1.0} if actor == CLUE_ACTOR else {0.0})
    # With the strip, bar>bar shows poles: a pole is bright above and below its middle.
    label, seen = label_of("across", CLUE_ACTOR, (0, 0)), []
    for seed in range(20):
        frames, truth = clip(label, seed)
        t, y, x = (int(round(truth[name])) for name in ("t", "y", "x"))
        reach = int(truth["size"] / 2) - 1
        if truth["size"] < 9 or not (10 < y < 62 and 10 < x < 62):
            continue
        patch = frames[int(truth["t"]), y - reach : y + reach + 1, x - reach : x + reach + 1, 0]
        upright = patch[:, reach].mean() > patch[reach].mean()
        assert upright == bool(truth["clue"])
        seen.append(upright)
    assert len(seen) > 5 and set(seen) == {True, False}


@pytest.mark.slow
def test_details_are_spread_and_closeups_are_not():
    scenes = DATASETS["synthetic"]
    wide, narrow = (
        pd.DataFrame([clip(i % 20, i, scene)[1] for i in range(60)])
        for scene in (scenes["main"], scenes["closeups"])
    )
    for axis, extent in (("t", SMALL.n_frames), ("y", SMALL.side), ("x", SMALL.side)):
        assert wide[axis].min() < 0.25 * extent and wide[axis].max() > 0.75 * extent
        assert wide[axis].std() > 1.5 * narrow[axis].std()
    assert wide["size"].max() > 2 * wide["size"].min()
    assert wide["duration"].max() > 3 * wide["duration"].min()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Written clips of one group of three and one of two, with what could leak their label."""
    folder = tmp_path_factory.mktemp("leak")
    sampler = UniformSampler(PRESETS["synthetic"].model.synopsis_size)
    rows, thumbnails = [], []
    for i in range(420):
        label = [0, 1, 2, 3, 4][i % 5]
        path = folder / f"{i}.mp4"
        write_clip((path, label, SMALL, 50_000 + i))
        frames = read_frames(path)  # (T, 3, H, W)
        n = torch.tensor([len(frames)])
        thumbnails.append(sampler(frames[:, :1].transpose(0, 1)[None], n)[0, 0])  # (T_S, h, w)
        rows.append({"label": label, "bytes": path.stat().st_size, "n_frames": len(frames)})
    table = pd.DataFrame(rows)
    table["mean"] = [float(t.mean()) for t in thumbnails]
    return table, torch.stack(thumbnails)


@pytest.mark.slow
@pytest.mark.parametrize("group", [[0, 1], [2, 3, 4]], ids=["pair", "triple"])
def test_leak_of_size_length_and_mean_colour(many, group):
    table = many[0][many[0]["label"].isin(group)].reset_index(drop=True)
    assert table["n_frames"].nunique() == 1
    half = len(table) // 2
    for column in ("bytes", "mean"):
        # The best that one number can do: nearest neighbours of the other half of the clips.
        train, test = table[:half], table[half:]
        far = np.abs(test[column].to_numpy()[:, None] - train[column].to_numpy())
        votes = train["label"].to_numpy()[far.argsort(axis=1)[:, :15]]
        said = np.array([np.bincount(v).argmax() for v in votes])
        assert_chance((said == test["label"]).mean(), len(group), len(test))


@pytest.mark.slow
@pytest.mark.parametrize("group", [[0, 1], [2, 3, 4]], ids=["pair", "triple"])
def test_leak_of_single_frames(many, group):
    table, thumbnails = many
    chosen = np.flatnonzero(table["label"].isin(group))
    labels = torch.tensor(table["label"].to_numpy()[chosen] - group[0])
    half = len(chosen) // 2
    for z in (1, 6):  # a linear classifier of one frame of what SNet sees
        x = thumbnails[chosen, z].flatten(1).double()
        x = (x - x.mean(0)) / (x.std(0) + 1)
        target = torch.nn.functional.one_hot(labels).double() - 1 / len(group)
        gram = x[:half] @ x[:half].T + 300 * torch.eye(half, dtype=torch.double)  # ridge
        said = x[half:] @ (x[:half].T @ torch.linalg.solve(gram, target[:half]))
        right = (said.argmax(1) == labels[half:]).double().mean().item()
        assert_chance(right, len(group), len(chosen) - half)


def assert_chance(share, n_classes, n):
    """At most three standard errors above chance."""
    chance = 1 / n_classes
    assert share < chance + 3 * (chance * (1 - chance) / n) ** 0.5


@pytest.mark.slow
def test_write_dataset_is_balanced_and_resumes(tmp_path):
    csv = write_dataset(tmp_path / "synthetic", share=0.001)
    table = pd.read_csv(csv)
    assert list(table.columns[:4]) == ["path", "label", "label_name", "split"]
    assert (table.groupby(["split", "label"]).size() == 1).all()
    assert set(table["split"]) == set(SPLITS)
    frames = read_frames(csv.parent / table["path"][0])
    assert frames.shape == (SMALL.n_frames, 3, SMALL.side, SMALL.side)
    first, second = (csv.parent / table["path"][i] for i in (0, 1))
    kept, text = first.stat().st_mtime_ns, csv.read_text()
    second.unlink()
    csv.unlink()
    assert write_dataset(tmp_path / "synthetic", share=0.001).read_text() == text
    assert first.stat().st_mtime_ns == kept and second.exists()
    assert not list(csv.parent.rglob(".part*"))


@pytest.mark.parametrize("change", [{}, {"short_side": 160, "crop": 150, "n_frames": 20}])
@pytest.mark.parametrize("train", [False, True])
def test_truth_points_at_the_detail_whatever_the_crop(csv, change, train):
    data = replace(PRESETS["synthetic"].data, csv=csv, cache=None, min_frames=1, flip=True)
    if change:
        data = replace(data, frame_stride=2, scales=(0.8, 0.9), **change)
    clips = VideoDataset(data, "closeups", train=train, seed=3)
    batch = collate([clips[i] for i in range(len(clips))])
    shown = 0
    for frames, truth in zip(batch["frames"][:, 0], batch["truth"], strict=True):
        t, duration, size, y, x = truth.tolist()
        if not 0 <= t < len(frames):
            continue
        low_y, low_x = (max(0, int(v - size)) for v in (y, x))
        around = frames[int(t), low_y : int(y + size), low_x : int(x + size)]
        at = torch.nonzero(around > 190).double().mean(0) + torch.tensor([low_y, low_x]) + 0.5
        # The glyph moves with the actor between the frames, and turns from one kind to another.
        assert torch.hypot(*(at - truth[[3, 4]].double())) < 3 * data.crop / 64
        shown += 1
    assert shown > 10


def test_the_splits_share_no_seed():
    assert len({seed for _, _, seed in SPLITS.values()}) == len(SPLITS)
