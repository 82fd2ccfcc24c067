"""The built-in videos: what tells the classes apart, and that they are written and kept whole."""

import numpy as np
import pandas as pd
import pytest

from s2dlib.synthetic import (
    CLUE_GROUPS,
    GROUP_KINDS,
    N_FRAMES,
    SCENES,
    SIDE,
    SPLITS,
    actions,
    class_names,
    glyph,
    render,
    write_dataset,
)
from s2dlib.video import read_frames


def clip(label, seed, scene="main"):
    return render(label, SCENES[scene], np.random.default_rng(seed))


def test_a_seed_gives_the_same_clip_and_another_seed_another():
    frames, truth = clip(3, 1)
    again, same = clip(3, 1)
    assert (frames == again).all() and truth == same
    assert (frames != clip(3, 2)[0]).any()


def test_there_are_four_groups_of_five_different_actions():
    assert len(set(class_names())) == 20
    for kinds in GROUP_KINDS:
        assert len(set(kinds)) == 3 and len(set(actions(kinds))) == 5


def test_the_glyphs_are_different_shapes_of_the_same_size():
    y, x = np.arange(-20, 21)[:, None], np.arange(-20, 21)[None]
    drawn = [glyph(kind, y, x, 16.0) for kind in range(4)]
    for a in range(4):
        assert 0 <= drawn[a].min() and drawn[a].max() == 1
        reach = np.abs(np.argwhere(drawn[a] > 0.5) - 20).max()
        assert 7 <= reach <= 9  # half of 16 pixels
        assert all(np.abs(drawn[a] - drawn[b]).sum() > 20 for b in range(a))


@pytest.mark.parametrize("seed", range(5))
def test_the_detail_is_where_and_when_the_truth_says(seed):
    # A clip and its twin of another action of the group, same seed: they differ in the detail only.
    label = 5 * 3  # a group without clue: A>B, against C>C
    (frames, truth), (twin, same) = clip(label, seed), clip(label + 4, seed)
    assert truth == same
    differ = np.argwhere(np.abs(frames.astype(int) - twin) > 40)  # (t, y, x)
    assert len(differ)
    assert np.abs(differ[:, 0] - truth["t"]).max() <= truth["duration"] + 1
    near = differ[np.abs(differ[:, 0] - truth["t"]) < 1.5]  # the actor moves on later
    assert np.abs(near[:, 1:] - [truth["y"], truth["x"]]).max() <= truth["size"] / 2 + 5


def test_the_clue_exchanges_two_actions_in_half_of_the_groups(monkeypatch):
    exchanged = {}
    for group in range(4):
        for seed in range(6):
            a, b = (clip(5 * group + action, seed)[0] for action in (2, 3))
            with monkeypatch.context() as patch:
                patch.setattr("s2dlib.synthetic.CLUE_GROUPS", ())
                plain_a, plain_b = (clip(5 * group + action, seed)[0] for action in (2, 3))
            swapped = (a == plain_b).all() and (b == plain_a).all()
            assert swapped or ((a == plain_a).all() and (b == plain_b).all())
            exchanged.setdefault(group, []).append(swapped)
    for group, swaps in exchanged.items():
        assert (0 < sum(swaps) < 6) if group in CLUE_GROUPS else not any(swaps)


def test_details_are_spread_over_time_and_place_and_closeups_are_not():
    wide, narrow = (
        pd.DataFrame([clip(i % 20, i, scene)[1] for i in range(60)]) for scene in SCENES
    )
    for axis, extent in (("t", N_FRAMES), ("y", SIDE), ("x", SIDE)):
        assert wide[axis].min() < 0.25 * extent and wide[axis].max() > 0.75 * extent
        assert wide[axis].std() > 1.5 * narrow[axis].std()
    assert wide["size"].max() > 2 * wide["size"].min()
    assert wide["duration"].max() > 3 * wide["duration"].min()


def test_the_data_set_is_balanced_readable_and_resumes_without_rewriting(tmp_path):
    csv = write_dataset(tmp_path / "synthetic", share=0.001)
    table = pd.read_csv(csv)
    assert list(table.columns[:4]) == ["path", "label", "label_name", "split"]
    assert (table.groupby(["split", "label"]).size() == 1).all()
    assert set(table["split"]) == set(SPLITS)
    frames = read_frames(csv.parent / table["path"][0])
    assert frames.shape == (N_FRAMES, 3, SIDE, SIDE)
    first, second = (csv.parent / table["path"][i] for i in (0, 1))
    kept, text = first.stat().st_mtime_ns, csv.read_text()
    second.unlink()
    csv.unlink()
    assert write_dataset(tmp_path / "synthetic", share=0.001).read_text() == text
    assert first.stat().st_mtime_ns == kept and second.exists()
    assert not list(csv.parent.rglob("*.part*"))


def test_the_splits_share_no_seed():
    assert len({seed for _, _, seed in SPLITS.values()}) == len(SPLITS)
