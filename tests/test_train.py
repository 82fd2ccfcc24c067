"""Training: the schedule, what resumes, what is refused."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from s2dlib.config import PRESETS, THETAS, DataConfig, ModelConfig, TrainConfig
from s2dlib.data import VideoDataset, collate
from s2dlib.model import Output, build_model
from s2dlib.sampler import distance_to_truth
from s2dlib.synthetic import write_dataset
from s2dlib.train import (
    batch_sums,
    batches,
    evaluate,
    fit,
    learning_rate,
    make_optimizer,
    seed_everything,
    theta_at_test,
    theta_to_use,
    train_epoch,
)

MODEL = ModelConfig(
    n_classes=4,
    k=2,
    snet="tiny-s",
    dnet="tiny-d",
    synopsis_size=(3, 12, 12),
    detail_size=(3, 12, 12),
    context_dim=8,
    theta_dim=6,
    theta_head="attention",
)
TRAIN = TrainConfig(epochs=2, batch_size=4, lr=1e-2, lr_theta=2e-2, alpha=0.5)


@pytest.fixture
def data(tmp_path, make_video):
    """Eight videos to train with, five of other lengths to evaluate with."""
    lines = ["path,label,split"]
    for i in range(13):
        path = make_video(tmp_path / f"{i}.mp4", n_frames=8 if i < 8 else 2 + i - 8, size=(32, 40))
        lines.append(f"{path},{i % 4},{'train' if i < 8 else 'test'}")
    csv = tmp_path / "videos.csv"
    csv.write_text("\n".join(lines))
    return DataConfig(
        csv=str(csv), n_frames=6, frame_stride=1, short_side=32, crop=24, scales=(0.9, 0.8),
        gray=True, cache=str(tmp_path / "cache"),
    )  # fmt: skip


@pytest.fixture
def sets(data):
    return VideoDataset(data, "train", train=True), VideoDataset(data, "test", train=False)


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    return build_model(replace(MODEL, **changes))


def same(run, other):
    """Weights and history of two runs' folders are equal but for the seconds."""
    a, b = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (pd.read_csv(f / "history.csv").drop(columns="seconds") for f in (run, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


# The schedule, the groups, the batches


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("final_lr", [0.0, 0.01])
def test_the_rate_warms_up_linearly_and_falls_as_a_cosine(warmup_epochs, final_lr):
    config = TrainConfig(epochs=6, warmup_epochs=warmup_epochs, final_lr=final_lr)
    rates = [learning_rate(step, 10, config) for step in range(60)]
    n = {0.0: 1, 0.5: 5, 2.0: 20}[warmup_epochs]
    for step, rate in enumerate(rates):
        if step < n:
            assert rate == pytest.approx((step + 1) / n)
        else:
            half = (1 + math.cos(math.pi * (step - n) / (60 - n))) / 2
            assert rate == pytest.approx(final_lr + (1 - final_lr) * half)
    assert max(rates) == 1 and rates[-1] == pytest.approx(final_lr, abs=0.01)
    assert learning_rate(60, 10, config) == pytest.approx(final_lr)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_theta_head_has_its_own_rate_and_each_parameter_is_in_one_group(optimizer):
    model = model_of()
    config = replace(TRAIN, optimizer=optimizer, hold_zoom=3)
    groups = make_optimizer(model, config).param_groups
    assert [g["peak"] for g in groups] == [1e-2, 2e-2, 2e-2]
    assert [g["wait"] for g in groups] == [0, 0, 3]
    ids = [[id(p) for p in g["params"]] for g in groups]
    assert sorted(sum(ids, [])) == sorted(id(p) for p in model.parameters())
    assert set(ids[1] + ids[2]) == {id(p) for p in model.snet.theta_head.parameters()}
    branches = model.snet.theta_head.branches
    zooms = (*branches.time_zoom.parameters(), *branches.space_zoom.parameters())
    assert set(ids[2]) == {id(p) for p in zooms}
    assert len(make_optimizer(model_of(theta_head="fc"), config).param_groups) == 2


def test_the_zooms_wait_for_their_epoch(sets, tmp_path):
    def zoom_after(epochs):
        model = model_of()
        config = replace(TRAIN, epochs=epochs, hold_zoom=1, warmup_epochs=0)
        fit(model, *sets, config, run_dir=tmp_path / str(epochs))
        return model.snet.theta_head.branches.time_zoom.weight.detach()

    start = model_of().snet.theta_head.branches.time_zoom.weight
    assert torch.equal(zoom_after(1), start) and not torch.equal(zoom_after(2), start)


@pytest.mark.parametrize("variant", ["a1", "a2", "b1"])
def test_a_row_without_theta_head_has_one_group(variant):
    assert len(make_optimizer(build_model(MODEL, variant), TRAIN).param_groups) == 1


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (3, 8), (8, 1)])
def test_batches_cover_the_clips_but_for_an_incomplete_one(n, size):
    steps = batches(n, size, seed=1, epoch=2)
    flat = sum(steps, [])
    assert all(len(step) == min(size, n) for step in steps)
    assert len(set(flat)) == len(flat) == n - n % min(size, n)
    assert set(flat) <= set(range(n))


def test_batches_depend_on_seed_and_epoch_alone():
    first = batches(20, 4, seed=1, epoch=2)
    torch.manual_seed(99)
    assert first == batches(20, 4, seed=1, epoch=2)
    assert first != batches(20, 4, seed=1, epoch=3) and first != batches(20, 4, seed=2, epoch=2)


def test_the_seed_of_an_epoch_repeats():
    draws = []
    for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        seed_everything(seed, epoch)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1] and draws[0] != draws[2] and draws[0] != draws[3]


# fit


def test_fit_writes_history_weights_and_one_checkpoint(sets, tmp_path):
    model, run = model_of(), tmp_path / "run"
    history = fit(model, *sets, TRAIN, run_dir=run)
    assert [row["epoch"] for row in history] == [1, 2]
    table = pd.read_csv(run / "history.csv")
    assert len(table) == 2 and table.notna().all(axis=None)
    assert {"lr", "train_loss", "train_loss_s", "train_loss_d", "train_top1"} <= set(table)
    assert {"val_top1", "val_snet_top1", "val_mu_t_mean", "val_delta_x_std"} <= set(table)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["epoch-0002"]
    weights = load_file(run / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    loss = TRAIN.alpha * table.train_loss_s + table.train_loss_d
    assert_close(torch.tensor(table.train_loss), torch.tensor(loss), atol=1e-5, rtol=1e-5)
    assert not list(run.glob("*.part"))


def test_a_seed_repeats_the_run_and_another_does_not(sets, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        fit(model_of(), *sets, TRAIN, run_dir=tmp_path / name, seed=seed)
    same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        same(tmp_path / "a", tmp_path / "c")


def test_every_epoch_draws_its_own_crops(sets, tmp_path, monkeypatch):
    epochs, set_epoch = [], VideoDataset.set_epoch
    with monkeypatch.context() as patch:
        patch.setattr(
            VideoDataset, "set_epoch", lambda self, e: (epochs.append(e), set_epoch(self, e))
        )
        fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    assert epochs == [0, 1]


@pytest.mark.parametrize("variant", ["a1", "a2"])
def test_a_network_alone_is_trained_by_the_same_loop(variant, sets, tmp_path):
    model = build_model(MODEL, variant)
    config = replace(TRAIN, theta="random" if variant == "a2" else "model")
    history = fit(model, *sets, config, run_dir=tmp_path / "r")
    assert ("val_snet_top1" in history[-1]) == (variant == "a1")
    assert math.isfinite(history[-1]["train_loss"])


@pytest.fixture
def synthetic(tmp_path):
    csv = write_dataset(tmp_path / "clips", share=0.001)
    data = replace(PRESETS["synthetic"].data, csv=str(csv), cache=None)
    return VideoDataset(data, "train", train=True), VideoDataset(data, "test", train=False)


@pytest.mark.parametrize("how", THETAS)
def test_dnet_looks_where_the_recipe_says(how, synthetic, monkeypatch):
    model = build_model("synthetic")
    batch = collate([synthetic[0][i] for i in range(4)])
    theta = theta_to_use(model, batch, how)
    if how == "model":
        assert theta is None
    elif how == "frozen":
        assert_close(theta.delta_y, torch.full((4, 8), 0.7 * 64 / 20))
    elif how == "truth":
        far = distance_to_truth(theta, batch["truth"], batch["n_frames"], 64, 64, (8, 20, 20))
        assert_close(far["distance_t"], torch.zeros(4), atol=1e-4, rtol=0)
    else:
        assert (theta.delta_t <= 6).all() and theta.mu_t.std() >= 0
    # What the training step hands to the model is just that.
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda f, n, theta=None: (seen.append(theta), forward(f, n, theta))[1]
    )
    config = TrainConfig(epochs=1, batch_size=10, theta=how)
    train_epoch(
        model, synthetic[0], make_optimizer(model, config), config, 0, 0, torch.device("cpu")
    )
    assert len(seen) == 2 and all((theta is None) == (how == "model") for theta in seen)


def test_a_model_trained_with_the_truth_is_evaluated_with_it(synthetic):
    model = build_model("synthetic", "b3")
    config = TrainConfig(theta="truth")
    measured = evaluate(model, synthetic[1], theta=theta_at_test(model, config))
    assert measured["distance_t"] < 1e-3 and measured["iou_yx"] > 0.1
    frozen = evaluate(model, synthetic[1])
    assert frozen["distance_t"] > 3 and frozen["iou_yx"] < measured["iou_yx"]
    assert frozen["delta_t_mean"] == pytest.approx(6)
    at_random = evaluate(
        model, synthetic[1], theta=theta_at_test(model, replace(config, theta="random"))
    )
    assert at_random == frozen  # never at random when it is measured


def test_the_truth_is_asked_only_of_clips_that_have_one(sets, tmp_path):
    config = replace(TRAIN, theta="truth")
    with pytest.raises(ValueError, match="these have no truth"):
        fit(model_of(), *sets, config, run_dir=tmp_path / "run")


def test_evaluation_can_be_rarer_but_never_misses_the_end(sets, tmp_path):
    config = replace(TRAIN, epochs=3, eval_every=2)
    history = fit(model_of(), *sets, config, run_dir=tmp_path / "run")
    assert ["val_top1" in row for row in history] == [False, True, True]


def test_more_workers_see_the_same_clips(sets, tmp_path):
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "a")
    identity = replace(TRAIN, workers=2)
    fit(model_of(), *sets, identity, run_dir=tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")


# Resuming

CHILD = """
import sys
from pathlib import Path

import torch

import s2dlib.train
from s2dlib.config import DataConfig, ModelConfig, TrainConfig
from s2dlib.data import VideoDataset
from s2dlib.model import build_model

torch.set_num_threads({threads})
data, model, train = ({data}), ({model}), ({train})
torch.manual_seed(int(sys.argv[2]))  # a resumed run must not live on the start of its process
sets = VideoDataset(data, "train", train=True), VideoDataset(data, "test", train=False)
s2dlib.train.fit(build_model(model), *sets, train, run_dir=Path(sys.argv[1]), seed=7)
"""


def test_a_run_killed_in_an_epoch_ends_like_one_that_was_not(data, tmp_path):
    train = replace(TRAIN, epochs=4, batch_size=2)
    script = tmp_path / "child.py"
    script.write_text(
        CHILD.format(data=data, model=MODEL, train=train, threads=torch.get_num_threads())
    )
    command = [sys.executable, str(script)]
    whole, run = tmp_path / "whole", tmp_path / "run"

    killed = subprocess.Popen([*command, str(run), "0"])
    sets = VideoDataset(data, "train", train=True), VideoDataset(data, "test", train=False)
    fit(model_of(), *sets, train, run_dir=whole, seed=7)  # meanwhile
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "epoch-0001").exists():
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (run / "model.safetensors").exists() and not list(run.glob("*/epoch-0004"))

    assert subprocess.run([*command, str(run), "1"], check=False).returncode == 0
    same(run, whole)
    assert pd.read_csv(run / "history.csv").epoch.tolist() == [1, 2, 3, 4]


def test_a_run_stopped_by_ctrl_c_ends_like_one_that_was_not(sets, tmp_path, monkeypatch):
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "whole")
    step, steps = torch.optim.AdamW.step, []

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 4:  # of two epochs of two
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    fit(model_of(seed=5), *sets, TRAIN, run_dir=tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(sets, tmp_path):
    history = fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    model = model_of(seed=9)
    assert fit(model, *sets, TRAIN, run_dir=tmp_path / "run") == history
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_stop_right_after_the_last_checkpoint_still_leaves_the_whole_history(sets, tmp_path):
    run = tmp_path / "run"
    fit(model_of(), *sets, TRAIN, run_dir=run)
    rows = (run / "history.csv").read_text()
    (run / "history.csv").write_text("\n".join(rows.splitlines()[:2]))  # as before epoch 2
    (run / "model.safetensors").unlink()
    fit(model_of(), *sets, TRAIN, run_dir=run)
    assert (run / "history.csv").read_text().split() == rows.split()


def test_a_half_written_checkpoint_is_not_taken_up(sets, tmp_path):
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "whole")
    partial = tmp_path / "run" / "checkpoints" / "partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"lr": 3e-3}}, "0.003"),
        ({"model": {"k": 3}}, "'k': 3"),
        ({"seed": 8}, r"'seed': \(0, 8\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_named(changes, words, sets, tmp_path):
    run = tmp_path / "run"
    fit(model_of(), *sets, TRAIN, run_dir=run)
    before = (run / "checkpoints" / "epoch-0002" / "model.safetensors").read_bytes()
    model, train = model_of(**changes.get("model", {})), replace(TRAIN, **changes.get("train", {}))
    with pytest.raises(ValueError, match=words) as error:
        fit(model, *sets, train, run_dir=run, seed=changes.get("seed", 0))
    assert "epoch-0002" in str(error.value)
    assert (run / "checkpoints" / "epoch-0002" / "model.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    sets, tmp_path, monkeypatch
):
    import s2dlib.train as train_module

    run, loss = tmp_path / "run", train_module.s2d_loss
    calls = []

    def poisoned(*arguments):
        calls.append(1)
        return loss(*arguments) * (math.nan if len(calls) > 2 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "s2d_loss", poisoned)
        with pytest.raises(FloatingPointError, match=r"epoch 2, step 1: loss nan.*lr than 0.01"):
            fit(model_of(), *sets, TRAIN, run_dir=run)
    assert [p.name for p in (run / "checkpoints").glob("epoch-*")] == ["epoch-0001"]
    weights = load_file(run / "checkpoints" / "epoch-0001" / "model.safetensors")
    assert all(v.isfinite().all() for v in weights.values())
    fit(model_of(), *sets, TRAIN, run_dir=run)
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "whole")
    same(run, tmp_path / "whole")


def test_batches_of_one_clip_are_refused(sets, tmp_path):
    with pytest.raises(ValueError, match=r"got 8 training clips and batch_size=1"):
        fit(model_of(), *sets, replace(TRAIN, batch_size=1), run_dir=tmp_path / "run")


# evaluate


@pytest.mark.parametrize("variant", ["a0", "a1", "a2"])
def test_the_evaluation_does_not_depend_on_the_batch_size(variant, sets):
    model = build_model(MODEL, variant)
    results = [evaluate(model, sets[1], batch_size=size) for size in (1, 2, 5, 32)]
    for result in results:
        assert result["n_clips"] == 5
        assert result == pytest.approx(results[0], abs=1e-4)
    assert model.training  # as it was


def test_the_evaluation_is_what_it_says_clip_by_clip(sets):
    model = model_of().eval()
    result, hits, losses, mu = evaluate(model, sets[1], batch_size=2), [], [], []
    for item in sets[1]:
        with torch.no_grad():
            out = model(item["frames"][None])
        hits.append(out.scores[0].argmax().item() == item["label"])
        losses.append(-math.log(out.logits.softmax(1)[0, item["label"]]))
        mu.append(out.theta.mu_t.item())
    assert result["top1"] == pytest.approx(100 * sum(hits) / 5)
    assert result["loss_s"] == pytest.approx(sum(losses) / 5, abs=1e-4)
    assert result["mu_t_mean"] == pytest.approx(sum(mu) / 5, abs=1e-5)
    assert result["mu_t_std"] == pytest.approx(torch.tensor(mu).std(correction=0).item(), abs=1e-4)
    assert not model.training


def test_the_scores_of_a_videos_crops_are_averaged_before_they_are_counted():
    """Two videos of three crops; by hand, the means are (.37, .4, .23) and (.33, .47, .2)."""
    first = [[0.0, 1.0, 0.0], [0.55, 0.1, 0.35], [0.55, 0.1, 0.35]]  # one sure crop outvotes two
    second = [[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.1, 0.6, 0.3]]  # and here two outvote one
    out = Output(torch.tensor(first + second), None, None, None, None, None, None, None)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert batch_sums(out, labels, n_crops=3)["top1"] == 100 * 3  # the second video, thrice
    assert batch_sums(out, labels * 0 + 1, n_crops=3)["top1"] == 100 * 6
    assert batch_sums(out, labels)["top1"] == 100 * 4  # each crop by itself


@pytest.mark.parametrize("variant", ["a0", "a1", "a2"])
def test_an_evaluation_with_three_crops_is_what_it_says_video_by_video(variant, data, tmp_path):
    model = build_model(MODEL, variant).eval()
    dataset = VideoDataset(replace(data, test_crops=3), "test", train=False)
    part = model.snet if variant == "a1" else model.dnet
    crops = [clip[None] for item in dataset for clip in item["frames"]]  # (1, 1, T, H, W) each
    with torch.no_grad():
        z = torch.cat([logits_of(model(clip)) for clip in crops])  # (15, N)
        part.classifier.bias -= z.mean(0)  # so that the crops of a video disagree
        part.classifier.weight *= 3 / z.std()
        part.classifier.bias *= 3 / z.std()
        outs = [model(clip) for clip in crops]
    scores = torch.cat([out.scores for out in outs]).view(5, 3, -1)
    said = scores.mean(1).argmax(1)  # by all crops of each video. (5,)
    assert (scores.argmax(2) != said[:, None]).any()
    csv = tmp_path / "said.csv"
    rows = [f"{path},{label},test" for path, label in zip(dataset.table.path, said, strict=True)]
    csv.write_text("\n".join(["path,label,split", *rows]))
    dataset = VideoDataset(replace(dataset.config, csv=str(csv)), "test", train=False)
    losses = []
    for out, label in zip(outs, said.repeat_interleave(3), strict=True):
        kept = 1 if variant != "a0" else out.topk_mask[0, label]
        losses.append(-kept * logits_of(out).log_softmax(1)[0, label])
    for size in (1, 3, 7, 32):
        result = evaluate(model, dataset, batch_size=size)
        assert result["n_clips"] == 5 and result["top1"] == 100
        loss = result["loss_s" if variant == "a1" else "loss_d"]
        assert loss == pytest.approx(sum(losses).item() / 15, abs=1e-3)


def logits_of(out):
    """Of the network that decides. (B, N)"""
    return out.logits if out.detail_logits is None else out.detail_logits


def test_clips_that_cannot_be_read_are_counted_and_change_no_other_clip(tmp_path, make_video):
    lines = ["path,label,split"]
    for i in range(24):
        make_video(tmp_path / f"{i}.mp4", n_frames=8, size=(32, 40))
        lines.append(f"{i}.mp4,{i % 4},{'train' if i < 12 else 'test'}")
    (tmp_path / "videos.csv").write_text("\n".join(lines))
    (tmp_path / "less.csv").write_text("\n".join(line for line in lines if line[:3] != "15."))
    data = DataConfig(
        csv=str(tmp_path / "videos.csv"), n_frames=6, frame_stride=1, short_side=32, crop=24,
        scales=(0.9, 0.8), gray=True,
    )  # fmt: skip
    model, less = model_of(), replace(data, csv=str(tmp_path / "less.csv"))
    expected = evaluate(model, VideoDataset(less, "test", train=False))
    for i in (3, 15):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    sets = VideoDataset(data, "train", train=True), VideoDataset(data, "test", train=False)
    result = evaluate(model, sets[1], batch_size=1)
    assert (result.pop("n_failed"), expected.pop("n_failed")) == (1, 0)
    assert result == pytest.approx(expected, abs=1e-4) and result["n_clips"] == 11
    config = replace(TRAIN, epochs=1, batch_size=4)
    row = fit(model, *sets, config, run_dir=tmp_path / "run")[0]
    assert (row["train_n_failed"], row["val_n_failed"], row["val_n_clips"]) == (1, 1, 11)
