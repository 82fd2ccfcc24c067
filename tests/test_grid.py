"""GRID: its own files -> an index; truth known in time alone; fixed random test clips; motion."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from s2dlib.apps.cli import main
from s2dlib.config import DataConfig, ModelConfig, TrainConfig
from s2dlib.data.clips import place_in_silence
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.grid import WORDS, read_alignment, read_grid
from s2dlib.data.loader import collate, load_batches
from s2dlib.data.sources import ClipError
from s2dlib.data.table import read_csv
from s2dlib.kernels.motion import find_motion
from s2dlib.model import build_model
from s2dlib.presets import PRESETS
from s2dlib.report import looking
from s2dlib.report.looking import metrics_of
from s2dlib.report.plots import LOOKING, theta_curves
from s2dlib.sampler import Extent, centred_zoom
from s2dlib.training.optim import make_optimizer
from s2dlib.training.trials import override
from s2dlib.training.windows import (
    distance_to_truth,
    moving_theta,
    theta_from_source,
    true_theta,
)

SENTENCES = {"s1": ("bbaf2n", "lgbazp", "pwiz9s", "srwe5a"), "s2": ("bbaf2n", "lbbazp")}
WORDS_OF = ("bin", "blue", "at", "f", "two", "now")


def alignment(start: int = 9000) -> str:
    """Six words of 5 frames each, the first at a frame of 1,000 units; silence around them."""
    lines = [f"0 {start} sil"]
    for i, word in enumerate(WORDS_OF):
        lines.append(f"{start + 5000 * i} {start + 5000 * (i + 1)} {word}")
    return "\n".join([*lines[:4], f"{start + 15000} {start + 15000} sp", *lines[4:], ""])


@pytest.fixture
def grid(tmp_path, make_video):
    """The folder of six videos of two talkers, 30 to 35 frames of 48 x 48, and alignments."""
    for i, (talker, sentence) in enumerate((k, s) for k, names in SENTENCES.items() for s in names):
        (tmp_path / "videos" / talker).mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "videos" / talker / f"{sentence}.mp4", 30 + i, (48, 48))
        file = tmp_path / "align" / talker / "align" / f"{sentence}.align"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(alignment(1000 * i))
    return tmp_path


def index(grid, *words: str) -> pd.DataFrame:
    """The table of `s2d index grid` of that folder."""
    out = str(grid / "grid.csv")
    command = ["index", "grid", "--videos", str(grid / "videos"), "--out", out, "--replace"]
    assert main([*command, *words]) == 0
    return read_csv(out)


def test_the_words_of_a_sentence_are_read_from_its_name(grid):
    expected = {
        "command": {"bin", "lay", "place", "set"},
        "colour": {"blue", "green", "white", "red"},
        "preposition": {"at", "by", "in", "with"},
        "letter": {"f", "a", "z", "e"},
        "digit": {"two", "zero", "nine", "five"},
        "adverb": {"now", "please", "soon", "again"},
    }
    assert expected.keys() == WORDS.keys()
    for word, names in expected.items():
        table = index(grid, "--word", word)
        assert set(table["class_name"]) <= names and len(table) == 6
        assert {"t", "duration"}.isdisjoint(table.columns)
    digits = dict(zip(table["path"].map(lambda p: p[-13:-4]), table["class_name"], strict=True))
    assert digits["s1/bbaf2n"] == "now" and digits["s1/pwiz9s"] == "soon"


def test_alignments_tell_when_the_word_is_spoken_each_talkers_own(grid):
    table = index(grid, "--word", "digit", "--alignments", str(grid / "align"))
    table = table.set_index(table["path"].map(lambda p: p[-13:-4]))
    # The digit is the fifth word: 20 to 25 frames after the first; frame r spans r to r + 1.
    assert table.loc["s1/bbaf2n", ["t", "duration"]].tolist() == ["22", "5"]
    assert table.loc["s2/bbaf2n", "t"] == "26" and table.loc["s1/srwe5a", "t"] == "25"
    command = index(grid, "--word", "command", "--alignments", str(grid / "align"))
    assert command["t"].astype(float).min() == 2


def test_splits_hold_when_other_videos_come(grid):
    rows = {row.names[0]: row.split for row in read_grid(grid / "videos")}
    (grid / "videos" / "s2" / "bbaf2n.mp4").unlink()
    fewer = {row.names[0]: row.split for row in read_grid(grid / "videos")}
    assert fewer.items() <= rows.items() and len(fewer) == len(rows) - 1
    (everything,) = {row.split for row in read_grid(grid / "videos", fractions=(0, 0, 1))}
    assert everything == "test"
    with pytest.raises(ValueError, match="sum to 1"):
        read_grid(grid / "videos", fractions=(2, -1, 9))


@pytest.mark.parametrize("name", ["bbaf2", "bbaw2n", "xbaf2n", "bbaf2n.copy"])
def test_a_name_that_spells_no_sentence_is_named(grid, name):
    (grid / "videos" / f"{name}.mpg").touch()
    with pytest.raises(ValueError, match=f"{name}.mpg: expected a name that spells"):
        read_grid(grid / "videos")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 9000 sil\n9000 bin\n", "line 2: expected `start end word`, got '9000 bin'"),
        ("0 9000 sil\n9000 12000 bin\n", "expected 6 words, got 1"),
    ],
)
def test_a_bad_alignment_is_named(tmp_path, text, words):
    path = tmp_path / "bbaf2n.align"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_alignment(path)


def test_a_video_without_its_alignment_is_named(grid):
    (grid / "align" / "s2" / "align" / "bbaf2n.align").rename(grid / "align" / "bbaf2n.align")
    with pytest.raises(SystemExit, match=r"s2/bbaf2n.mp4: 0 files bbaf2n\.align below"):
        index(grid, "--alignments", str(grid / "align"))


# Truth in time alone

DATA = DataConfig(
    csv="", n_frames=24, frame_stride=1, short_side=48, crop=40, scales=(40 / 48,), gray=True,
    test_clip="random",
)  # fmt: skip


@pytest.fixture
def clips(grid):
    """VideoDataset of all videos of the set, in testing."""
    words = ("--alignments", str(grid / "align"), "--fractions", "0", "0", "1")
    index(grid, *words)
    return VideoDataset(replace(DATA, csv=str(grid / "grid.csv")), "test", train=False)


def test_random_test_clips_are_the_same_twice_and_differ_between_clips(clips):
    again = VideoDataset(clips.config, "test", train=False)
    again.set_epoch(0)
    starts = []
    for one, two in zip(clips, again, strict=True):
        assert torch.equal(one["frames"], two["frames"]) and torch.equal(one["truth"], two["truth"])
        assert one["frames"].shape == (1, 24, 40, 40)
        starts.append(one["truth"][0].item())
    centred = VideoDataset(replace(clips.config, test_clip="centre"), "test", train=False)
    moved = [a - item["truth"][0].item() for a, item in zip(starts, centred, strict=True)]
    assert len(set(moved)) > 2  # the clip starts elsewhere, and the truth goes with it
    differ = [
        not torch.equal(a["frames"], b["frames"]) for a, b in zip(clips, centred, strict=True)
    ]
    assert sum(differ) > 3


def test_random_test_clips_are_neither_mirrored_nor_resized(clips):
    wide = replace(clips.config, scales=(1.0,), flip=True)
    for one, two in zip(clips, VideoDataset(wide, "test", train=False), strict=True):
        assert torch.equal(one["frames"], two["frames"])
    with pytest.raises(ValueError, match="test_clip='random' needs test_crops=1"):
        replace(clips.config, test_crops=3)


def test_truth_in_time_alone_is_two_numbers_a_clip(clips):
    batch = collate([clips[i] for i in range(6)])
    assert batch["truth"].shape == (6, 2) and (batch["truth"][:, 1] == 5).all()
    extent, size = Extent(batch["n_frames"], 40, 40), (4, 20, 20)
    theta = moving_theta(batch["frames"], batch["n_frames"], SMALL, jitter=False)
    true = true_theta(batch["truth"], extent, size, theta)
    far = distance_to_truth(true, batch["truth"], extent, size)
    assert far.keys() == {"distance_t", "iou_t"}
    assert_close(far["distance_t"], torch.zeros(6), atol=1e-4, rtol=0)
    assert_close(true.mu_y, theta.mu_y)
    with pytest.raises(ValueError, match="got t alone"):
        true_theta(batch["truth"], extent, size)
    with_place = torch.cat((batch["truth"], torch.tensor([[9.0, 20, 20]]).expand(6, 3)), dim=1)
    known = distance_to_truth(true, with_place, extent, size)
    assert {name: known[name].tolist() for name in far} == {k: v.tolist() for k, v in far.items()}


@torch.no_grad()
def test_controls_and_locations_know_the_moment_alone(clips):
    model = build_model(replace(PRESETS["grid"].model, synopsis_size=(8, 24, 24)), n_classes=4)
    metrics = metrics_of(model, clips, TrainConfig(batch_size=4))
    assert {"top1_truth", "top1_shuffled", "distance_t", "iou_t"} <= metrics.keys()
    assert "distance_yx" not in metrics
    (batch,) = load_batches(clips, 6)
    table = looking._locations(model.eval(), batch)
    assert {"t", "duration", "distance_t", "nearest_t"} <= set(table)
    assert {"y", "size", "distance_yx"}.isdisjoint(table)


# Where things move


def moving(places: list[tuple[int, int]], T: int = 12, side: int = 80) -> torch.Tensor:
    """Clips that are still but for a spot of 6 pixels that blinks. (B, 1, T, side, side) uint8"""
    frames = torch.randint(0, 255, (len(places), 1, 1, side, side)).repeat(1, 1, T, 1, 1)
    for clip, (y, x) in zip(frames, places, strict=True):
        clip[0, 1::2, y - 3 : y + 3, x - 3 : x + 3] = 255
    return frames.to(torch.uint8)


def test_the_place_and_the_moment_of_motion_are_found_and_padding_does_not_move():
    places = [(10, 70), (40, 40), (66, 20)]
    frames = moving(places, T=40)
    frames[1, :, 30:] = 0  # padding of a clip of 30 frames
    frames[2, :, :25] = frames[2, :, :1]  # nothing moves before
    t, y, x = find_motion(frames, torch.tensor([40, 30, 40]))
    found = torch.stack((y, x), dim=1) * 80
    assert (found - torch.tensor(places)).abs().max() <= 4
    assert_close(t, torch.tensor([20.0, 15, 32.5]), atol=3, rtol=0)


@pytest.mark.parametrize("shape", [(3, 1, 40, 50, 46), (2, 3, 9, 47, 81)])
def test_motion_is_as_by_pooling_in_float64_and_under_autocast(shape):
    B, _, T, H, W = shape
    frames, n_frames = torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(T, T - B, -1)
    cells = F.adaptive_avg_pool2d(frames[:, 0, :, ::2, ::2].double(), 40)
    change = cells.diff(dim=1).abs()
    for b, n in enumerate(n_frames):
        change[b, n - 1 :] = 0
    change = F.avg_pool2d(change, 5, 1, 2, count_include_pad=False)
    stretch = 25 if T > 25 else 7  # odd, within the T - 1 differences
    change = F.avg_pool1d(
        change.flatten(2).mT, stretch, 1, stretch // 2, count_include_pad=False
    )  # (B, cells^2, T - 1)
    place = change.amax(2).argmax(1)
    y, x = (place // 40 + 0.5) / 40, (place % 40 + 0.5) / 40
    there = torch.stack([c[p] for c, p in zip(change, place, strict=True)])
    above = (there - there.amax(1, keepdim=True) / 2).clamp(min=0)
    t = (above * torch.arange(1, T)).sum(1) / above.sum(1)
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            found = find_motion(frames, n_frames)
        assert_close(torch.stack(found).double(), torch.stack((t, y, x)), atol=1e-3, rtol=0)


SMALL = replace(
    PRESETS["grid"].model, synopsis_size=(16, 32, 32), detail_size=(4, 20, 20), start_shift=0.0
)


def test_moving_windows_lie_on_it_and_inside_the_clip():
    places, n = [(10, 70), (40, 40), (66, 20)] * 20, torch.full((60,), 12)
    config = replace(SMALL, start_zoom=(0.25, 0.4), start_shift=1.2)
    still = moving_theta(moving(places), n, config, jitter=False)
    for theta in (still, moving_theta(moving(places), n, config, jitter=True)):
        for mu, delta, at in (
            (theta.mu_y, theta.delta_y, [y for y, _ in places]),
            (theta.mu_x, theta.delta_x, [x for _, x in places]),
        ):
            half = 10 * delta
            assert ((mu * 80 - half > -1e-3) & (mu * 80 + half < 80 + 1e-3)).all()
            assert ((mu * 80 - torch.tensor(at)[:, None]).abs() < half).all()
    assert (still.mu_t - 0.6).abs().max() < 0.05 and theta.mu_y.unique().numel() > 10
    assert_close(still.delta_y, torch.full((60, 4), 0.4 * 4))


def test_a_source_of_motion_draws_in_training_and_not_in_testing():
    model = build_model(SMALL, "a2")
    batch = {"frames": moving([(40, 40)] * 8), "n_frames": torch.full((8,), 12)}
    assert theta_from_source(model.train(), batch, "motion").mu_y.unique().numel() > 4
    assert theta_from_source(model.eval(), batch, "motion").mu_y.unique().numel() == 1


def test_windows_around_what_moves_reach_it_at_any_time_and_up_to_four_times_as_long():
    model = build_model(replace(SMALL, start_zoom=(0.2, 0.4)), "a2")
    batch = {"frames": moving([(40, 40)] * 200, T=40), "n_frames": torch.full((200,), 40)}
    theta = theta_from_source(model.train(), batch, "around")
    zoom = theta.delta_t * 4 / 40
    whole = zoom > 0.999
    assert 0 < whole.float().mean() < 0.25 and zoom.min() > 0.199
    assert 0.7 < zoom[~whole].max() <= 0.8 + 1e-5
    off = (theta.mu_t - 0.5).abs()
    assert 0.15 < off.max() < 0.26 and theta.mu_t.unique().numel() > 100
    still = theta_from_source(model.eval(), batch, "around")
    assert_close(still.delta_t, torch.full((200,), 2.0))


def test_another_word_of_the_sentence_needs_its_index_alone(grid):
    model = {}
    for word in ("digit", "letter"):
        index(grid, "--word", word, "--fractions", "1", "0", "0")
        setting = override(PRESETS["grid"], "joint", {"csv": str(grid / "grid.csv"), "cache": None})
        classes = VideoDataset(setting.data, "train", train=True).classes
        model[word] = build_model(setting.model, n_classes=len(classes))
        assert model[word].config.k == len(classes) == 4  # k = N, whatever N


def test_attention_starts_on_what_moves_where_it_is_asked_to():
    places, n = [(16, 64), (40, 40), (64, 24)], torch.full((3,), 40)
    frames = moving(places, T=40)
    frames[:, :, :24] = frames[:, :, :1]
    for shift in (0.0, -8.0):
        config = replace(SMALL, start_zoom=(0.2, 0.25), start_shift=shift)
        with torch.no_grad():
            theta = build_model(config).eval().glance(frames, n).theta
        at = torch.stack((theta.mu_y.mean(1), theta.mu_x.mean(1)), dim=1) * 80
        assert (at - torch.tensor(places)).abs().max() < 8
        assert (theta.mu_t * 40 - (32 + shift)).abs().max() < 2.5
    with torch.no_grad():
        theta = build_model(replace(SMALL, start="uniform")).eval().glance(frames, n).theta
    assert (theta.mu_t - 0.5).abs().max() < 0.06 and (theta.mu_y - 0.5).abs().max() < 0.06


def test_a_window_is_centred_where_it_is_asked_to_be_unless_it_would_leave_the_clip():
    centre, zoom = torch.tensor([0.5, 0.7, 0.9, 0.0]), torch.tensor([1.0, 0.4, 0.4, 0.2])
    mu, delta = centred_zoom(centre, zoom, 5.0)
    assert_close(mu, torch.tensor([0.5, 0.7, 0.8, 0.1]))
    assert_close(delta, torch.tensor([5.0, 2.0, 2.0, 1.0]))


def test_what_the_fc_head_does_not_have_is_refused():
    with pytest.raises(ValueError, match="theta_head='attention'"):
        ModelConfig(n_classes=10, start="motion")


def test_snet_learns_at_a_fraction_of_the_rate_but_not_when_alone():
    config = TrainConfig(lr=0.5, lr_theta=0.25, lr_snet=0.1)
    model = build_model("grid")
    rates = {
        id(p): group["peak"]
        for group in make_optimizer(model, config).param_groups
        for p in group["params"]
    }
    for name, p in model.named_parameters():
        glance = name.startswith(("snet.backbone.", "snet.classifier."))  # not f_m
        own = 0.25 if "theta_head" in name else 0.05 if glance else 0.5
        assert rates[id(p)] == pytest.approx(own), name
    alone = make_optimizer(build_model("grid", "a1"), config)  # SNet's own training
    assert {group["peak"] for group in alone.param_groups} == {0.5}


# Within a longer video of its own silence


def test_silence_goes_to_and_fro_before_and_after_the_sentence():
    longer, start = place_in_silence(8, 16, (3, 6))  # silent are 0, 1, 2 and 6, 7
    assert longer == [0, 1, 2, 1, *range(8), 6, 7, 6, 7] and start == 4
    draws = [place_in_silence(8, 16, (3, 6), torch.Generator().manual_seed(i)) for i in range(40)]
    for longer, start in draws:
        assert len(longer) == 16 and longer[start : start + 8] == list(range(8))
        assert set(longer[:start]) <= {0, 1, 2} and set(longer[start + 8 :]) <= {6, 7}
        still = zip(longer, longer[1:], strict=False)
        assert all(abs(a - b) <= 1 for a, b in still)  # no jump: a single silent frame stays
    assert {start for _, start in draws} == set(range(9))
    assert place_in_silence(4, 6, (1, 3))[0] == [0, 0, 1, 2, 3, 3]


def test_a_video_without_silence_holds_its_ends_and_one_that_is_too_long_is_refused():
    assert place_in_silence(3, 6, (0, 3))[0] == [0, 0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match="of 8 frames does not lie within=7 frames"):
        place_in_silence(8, 7, (3, 6))


def test_the_truth_goes_with_a_sentence_placed_in_silence(clips):
    whole = replace(clips.config, crop=48, scales=(1.0,), n_frames=80, test_clip="centre")
    within = replace(whole, within=80, test_clip="random")
    starts = []
    for seed in range(3):
        longer = VideoDataset(within, "test", train=False, seed=seed)
        for one, item in zip(VideoDataset(whole, "test", train=False), longer, strict=True):
            n, moved = one["frames"].shape[1], (item["truth"] - one["truth"]).tolist()
            assert moved == [int(moved[0]), 0] and item["frames"].shape[1] == 80
            inner = item["frames"][:, int(moved[0]) : int(moved[0]) + n]
            assert torch.equal(inner, one["frames"])
            starts.append(moved[0])
    assert len(set(starts)) > 8 and 0 <= min(starts) and max(starts) <= 50


def test_without_onset_and_end_the_first_and_last_tenth_are_the_silence(clips):
    within = replace(clips.config, crop=48, scales=(1.0,), n_frames=80, within=80)
    pd.read_csv(within.csv).drop(columns=["onset", "end"]).to_csv(within.csv, index=False)
    whole = replace(within, within=0, test_clip="centre")
    longer = VideoDataset(within, "test", train=False)
    for one, item in zip(VideoDataset(whole, "test", train=False), longer, strict=True):
        start = int((item["truth"] - one["truth"])[0])
        n, first = one["frames"].shape[1], one["frames"][:, :3]  # of 30 to 35 frames
        assert torch.equal(item["frames"][:, start : start + n], one["frames"])
        for frame in item["frames"][:, :start].unbind(1):
            assert any(torch.equal(frame, other) for other in first.unbind(1))


def test_a_sentence_in_silence_is_cut_to_n_frames_at_a_stride(clips):
    data = replace(clips.config, within=80, n_frames=20, frame_stride=3, min_frames=20)
    items = [*VideoDataset(data, "test", train=False)]
    assert all(item["frames"].shape[1] == 20 for item in items)
    assert all(item["truth"][1] == pytest.approx(5 / 3) for item in items)
    with pytest.raises(ClipError, match="within=33"):
        VideoDataset(replace(data, within=33), "test", train=False)[4]


def test_curves_of_a_place_that_is_not_known_are_left_out():
    rows = [{"epoch": n, "theta": "learned (a0)"} | dict.fromkeys(LOOKING, 1.0 / n) for n in (1, 2)]
    _, axes = plt.subplots(1, len(LOOKING))
    theta_curves(axes, pd.DataFrame(rows).drop(columns="val_iou_yx"))
    drawn = [bool(ax.lines) for ax in axes]
    assert drawn == [column != "val_iou_yx" for column in LOOKING]
    plt.close()
