"""Training: the schedule, what resumes, what is refused."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from s2dlib.config import DataConfig, ModelConfig, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import collate
from s2dlib.model import Output, build_model
from s2dlib.presets import PRESETS
from s2dlib.report.watchers import LiveCurves, TensorBoard
from s2dlib.sampler import Extent
from s2dlib.training.epoch import TrainState, train_epoch
from s2dlib.training.evaluation import Means, batch_sums, evaluate
from s2dlib.training.loop import fit, memory_advice
from s2dlib.training.optim import epoch_batches, learning_rate, make_optimizer, seed_everything
from s2dlib.training.windows import distance_to_truth, theta_from_source

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
def test_learning_rate_warms_up_and_falls_as_a_cosine(warmup_epochs, final_lr):
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
def test_optimizer_groups_of_the_theta_head(optimizer):
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


def test_hold_zoom_waits_for_its_epoch(sets, tmp_path):
    def zoom_after(epochs):
        model = model_of()
        config = replace(TRAIN, epochs=epochs, hold_zoom=1, warmup_epochs=0)
        fit(model, *sets, config, run_dir=tmp_path / str(epochs))
        return model.snet.theta_head.branches.time_zoom.weight.detach()

    start = model_of().snet.theta_head.branches.time_zoom.weight
    assert torch.equal(zoom_after(1), start) and not torch.equal(zoom_after(2), start)


@pytest.mark.parametrize("variant", ["a1", "a2", "b1"])
def test_optimizer_has_one_group_without_theta_head(variant):
    assert len(make_optimizer(build_model(MODEL, variant), TRAIN).param_groups) == 1


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (3, 8), (8, 1)])
def test_epoch_batches_cover_the_clips(n, size):
    steps = epoch_batches(n, size, seed=1, epoch=2)
    flat = sum(steps, [])
    assert all(len(step) == min(size, n) for step in steps)
    assert len(set(flat)) == len(flat) == n - n % min(size, n)
    assert set(flat) <= set(range(n))


def test_epoch_batches_depend_on_seed_and_epoch_alone():
    first = epoch_batches(20, 4, seed=1, epoch=2)
    torch.manual_seed(99)
    assert first == epoch_batches(20, 4, seed=1, epoch=2)
    assert first != epoch_batches(20, 4, seed=1, epoch=3) and first != epoch_batches(
        20, 4, seed=2, epoch=2
    )


def test_seed_everything_repeats_an_epoch():
    draws = []
    for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        seed_everything(seed, epoch)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1] and draws[0] != draws[2] and draws[0] != draws[3]


# fit


def test_fit_writes_history_weights_and_checkpoints(sets, tmp_path):
    model, run = model_of(), tmp_path / "run"
    history = fit(model, *sets, TRAIN, run_dir=run)
    assert [row["epoch"] for row in history] == [1, 2]
    table = pd.read_csv(run / "history.csv")
    assert len(table) == 2 and table.notna().all(axis=None)
    assert {"lr", "train_loss", "train_loss_s", "train_loss_d", "train_top1"} <= set(table)
    assert {"val_top1", "val_snet_top1", "val_mu_t_mean", "val_delta_x_std"} <= set(table)
    assert {"train_mu_t_mean", "train_delta_y_std", "train_delta_t_low"} <= set(table)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["best", "epoch-0001", "epoch-0002"]
    weights = load_file(run / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    loss = TRAIN.alpha * table.train_loss_s + table.train_loss_d
    assert_close(torch.tensor(table.train_loss), torch.tensor(loss), atol=1e-5, rtol=1e-5)
    assert not list(run.glob("*.part"))


def test_fit_repeats_by_seed(sets, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        fit(model_of(), *sets, TRAIN, run_dir=tmp_path / name, seed=seed)
    same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        same(tmp_path / "a", tmp_path / "c")


def test_fit_draws_crops_for_every_epoch(sets, tmp_path, monkeypatch):
    epochs, set_epoch = [], VideoDataset.set_epoch
    with monkeypatch.context() as patch:
        patch.setattr(
            VideoDataset, "set_epoch", lambda self, e: (epochs.append(e), set_epoch(self, e))
        )
        fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    assert epochs == [0, 1]


@pytest.mark.parametrize("variant", ["a1", "a2"])
def test_fit_trains_a_network_alone(variant, sets, tmp_path):
    model = build_model(MODEL, variant)
    config = replace(TRAIN, theta_source="random" if variant == "a2" else "model")
    history = fit(model, *sets, config, run_dir=tmp_path / "r")
    assert ("val_snet_top1" in history[-1]) == (variant == "a1")
    assert math.isfinite(history[-1]["train_loss"])


@pytest.fixture
def synthetic(csv):
    data = replace(PRESETS["synthetic"].data, csv=csv, cache=None)
    return VideoDataset(data, "train", train=True), VideoDataset(data, "test", train=False)


@pytest.mark.parametrize("source", ["model", "frozen", "random", "truth"])
def test_theta_source_of_the_recipe(source, synthetic, monkeypatch):
    model = build_model("synthetic")
    batch = collate([synthetic[0][i] for i in range(20)])
    theta = theta_from_source(model, batch, source)
    if source == "truth":
        far = distance_to_truth(
            theta, batch["truth"], Extent(batch["n_frames"], 64, 64), (8, 20, 20)
        )
        assert_close(far["distance_t"], torch.zeros(20), atol=1e-4, rtol=0)
    if source == "random":  # another draw, other windows
        assert not torch.equal(theta.mu_t, theta_from_source(model, batch, source).mu_t)
    # What the training step hands to the model is just that.
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda f, n, theta=None: (seen.append(theta), forward(f, n, theta))[1]
    )
    config = TrainConfig(epochs=1, batch_size=10, theta_source=source)
    train_epoch(TrainState(model, make_optimizer(model, config), config), synthetic[0], 0)
    assert len(seen) == 2
    for windows in (theta, *seen):
        check_windows(source, windows)


def check_windows(source, theta):
    """Windows of synthetic clips, 48 frames of 64 x 64 on 8 of 20 x 20, by a source of theta."""
    if source == "model":
        assert theta is None
        return
    B = len(theta.mu_t)
    if source == "frozen":
        assert_close(theta.mu_t, torch.full((B,), 0.5))
        assert_close(theta.delta_y, torch.full((B, 8), 0.7 * 64 / 20))
        return
    assert theta.mu_t.unique().numel() > 2 and theta.mu_x[:, 0].unique().numel() > 2
    if source == "random":  # inside the clip; some narrower than it
        for mu, extent in (
            (theta.mu_t * 48, 8 * theta.delta_t),
            (theta.mu_x * 64, 20 * theta.delta_x),
        ):
            length = 48 if mu.ndim == 1 else 64
            assert (mu - extent / 2 > -1e-3).all() and (mu + extent / 2 < length + 1e-3).all()
            assert extent.min() < 0.95 * length


def test_theta_source_truth_in_evaluation(synthetic):
    model = build_model("synthetic", "b3")
    measured = evaluate(model, synthetic[1], theta_source="truth")
    assert measured["distance_t"] < 1e-3 and measured["iou_yx"] > 0.1
    frozen = evaluate(model, synthetic[1])
    assert frozen["distance_t"] > 3 and frozen["iou_yx"] < measured["iou_yx"]
    assert frozen["delta_t_mean"] == pytest.approx(6)
    assert (
        evaluate(model, synthetic[1], theta_source="random") == frozen
    )  # never at random when it is measured


def test_theta_source_truth_needs_a_truth(sets, tmp_path):
    config = replace(TRAIN, theta_source="truth")
    with pytest.raises(ValueError, match="these have no truth"):
        fit(model_of(), *sets, config, run_dir=tmp_path / "run")


@pytest.mark.slow
def test_means_over_two_thousand_bfloat16_steps():
    logits = torch.zeros(4, 20, dtype=torch.bfloat16)  # loss log 20 = 2.996 in each step
    logits[:, 0] = 0.01
    labels, means = torch.tensor([1, 2, 3, 0]), Means()
    mask = torch.ones_like(logits)
    for _ in range(2000):
        out = Output(logits.float(), logits, mask, None, None, None, None, logits)
        means.add(4, batch_sums(out, labels))
    assert {value.dtype for value in means.sums.values()} == {torch.float64}
    mean = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    found = means.all_reduce()
    assert (found["loss_s"], found["loss_d"]) == pytest.approx((mean, mean), rel=1e-6)
    assert (found["top1"], found["snet_top1"]) == (25, 25)


@pytest.mark.parametrize("variant", ["a0", "a1"])
def test_loss_not_finite_names_the_step(sets, tmp_path, variant):
    torch.manual_seed(0)
    model = build_model(MODEL, variant)
    with torch.no_grad():
        model.snet.classifier.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="epoch 1, step 1: loss nan"):
        fit(model, *sets, TRAIN, run_dir=tmp_path / "run")


def test_eval_every_never_misses_the_end(sets, tmp_path):
    config = replace(TRAIN, epochs=3, eval_every=2)
    history = fit(model_of(), *sets, config, run_dir=tmp_path / "run")
    assert ["val_top1" in row for row in history] == [False, True, True]


@pytest.mark.slow
def test_workers_see_the_same_clips(sets, tmp_path):
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "a")
    identity = replace(TRAIN, workers=2)
    fit(model_of(), *sets, identity, run_dir=tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")


# Resuming


def test_resume_after_ctrl_c(sets, tmp_path, monkeypatch):
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


def test_resume_of_a_finished_run_trains_nothing(sets, tmp_path):
    history = fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    model = model_of(seed=9)
    assert fit(model, *sets, TRAIN, run_dir=tmp_path / "run") == history
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_resume_after_the_last_checkpoint_writes_the_history(sets, tmp_path):
    run = tmp_path / "run"
    fit(model_of(), *sets, TRAIN, run_dir=run)
    rows = (run / "history.csv").read_text()
    (run / "history.csv").write_text("\n".join(rows.splitlines()[:2]))  # as before epoch 2
    (run / "model.safetensors").unlink()
    fit(model_of(), *sets, TRAIN, run_dir=run)
    assert (run / "history.csv").read_text().split() == rows.split()


def test_resume_ignores_a_half_written_checkpoint(sets, tmp_path):
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "whole")
    partial = tmp_path / "run" / "checkpoints" / "partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"lr": 3e-3}}, r"{'train.lr': \(0.01, 0.003\)}"),
        ({"model": {"k": 3}}, r"{'model.k': \(2, 3\)}"),
        ({"data": {"gray": False}}, r"{'data.gray': \(True, False\)}"),
        ({"data": {"n_clips": 7}}, r"'n_train': \(8, 7\)"),
        ({"seed": 8}, r"{'seed': \(0, 8\)}"),
    ],
)
def test_resume_refuses_a_checkpoint_of_another_run(changes, words, data, sets, tmp_path):
    run = tmp_path / "run"
    fit(model_of(), *sets, TRAIN, run_dir=run)
    files = [run / "config.json", run / "checkpoints" / "epoch-0002" / "model.safetensors"]
    before = [file.read_bytes() for file in files]
    model, train = model_of(**changes.get("model", {})), replace(TRAIN, **changes.get("train", {}))
    train_set = VideoDataset(replace(data, **changes.get("data", {})), "train", train=True)
    with pytest.raises(ValueError, match=words) as error:
        fit(model, train_set, sets[1], train, run_dir=run, seed=changes.get("seed", 0))
    assert "epoch-0002" in str(error.value)
    assert [file.read_bytes() for file in files] == before


def test_loss_not_finite_keeps_the_checkpoint(sets, tmp_path, monkeypatch):
    import s2dlib.training.epoch as train_module

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


@pytest.mark.parametrize("theta", ["model", "frozen"])
def test_history_tells_theta_at_its_bounds(theta, sets, tmp_path):
    row = fit(model_of(), *sets, replace(TRAIN, theta_source=theta), run_dir=tmp_path / "run")[-1]
    # Six frames on three, 24 pixels on twelve; frozen is all of them, or stride 1 in the middle.
    if theta == "frozen":
        assert row["train_delta_t_full"] == 100 and row["train_delta_t_low"] == 0
        assert row["train_delta_y_full"] == 0 and row["train_delta_y_low"] == 100
        assert row["train_delta_t_mean"] == 2 and row["train_mu_x_std"] == 0
    else:
        assert row["train_delta_y_low"] == row["train_delta_y_full"] == 0
        assert 1 < row["train_delta_y_mean"] < 2 and row["train_mu_y_std"] > 0


def test_loss_not_finite_names_theta_and_clips(sets, tmp_path):
    model = model_of()
    with torch.no_grad():  # a weight that has run away
        model.snet.theta_head.branches.time_zoom.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"step 1.*'delta_t': \(nan, nan\).*/\d.mp4'"):
        fit(model, *sets, TRAIN, run_dir=tmp_path / "run")


def test_memory_advice_names_the_batch_to_try():
    config = replace(TRAIN, batch_size=32, accumulate=2)
    words = "with 8 clips at once.*batch_size=16, or accumulate=4"
    with pytest.raises(RuntimeError, match=words), memory_advice(config, 2):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match=words), memory_advice(config, 2):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="^else$"), memory_advice(config, 2):
        raise RuntimeError("else")


def test_accumulate_adds_up_to_the_step(sets):
    config, gradients = replace(TRAIN, batch_size=8, optimizer="sgd"), []
    for accumulate in (1, 2, 3):
        model = model_of(dropout=0.0).eval()
        model.train = partial(model.train, False)  # batch norm as in evaluation: it sees parts
        optimizer = make_optimizer(model, config)
        changed = replace(config, accumulate=accumulate, clip_grad_norm=math.inf)
        train_epoch(TrainState(model, optimizer, changed), sets[0], 0)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert_close(gradients[1], gradients[0])
    assert_close(gradients[2], gradients[0])


def test_optimizer_rates_follow_batch_and_kind():
    config = replace(TRAIN, lr_batch=2, lr_fc=5.0, lr_bias=2.0)  # batch_size 4
    model = model_of(theta_head="fc")
    rates = {
        id(p): group["peak"] for group in make_optimizer(model, config).param_groups
        for p in group["params"]
    }  # fmt: skip
    at = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert len(at) == len(rates)
    assert at["snet.classifier.weight"] == pytest.approx(1e-2 * 2 * 5)
    assert at["dnet.classifier.bias"] == pytest.approx(1e-2 * 2 * 5 * 2)
    assert {rate for name, rate in at.items() if "theta_head" in name} == {2e-2 * 2}
    norms = [name for name, p in model.named_parameters() if ".bn" in name]
    assert norms and all(at[name] == pytest.approx(1e-2 * 2) for name in norms)


@pytest.mark.parametrize("preset", ["mini-kinetics", "kinetics400-x3d-s-m", "ssv1", "ssv2"])
def test_recipes_have_the_rates_of_their_sources(preset):
    recipes = PRESETS[preset].recipes
    assert set(recipes) == {"paper", "authors-1", "authors-2"}
    first, second = recipes["authors-1"], replace(recipes["authors-2"], batch_size=256)
    assert first.lr * first.rate_scale == pytest.approx(1e-5 * 32)
    assert second.lr * second.rate_scale == pytest.approx(1e-6 * 256)
    assert second.lr_theta == pytest.approx(0.1 * second.lr) and second.theta_source == "model"
    assert (first.epochs, second.epochs, first.theta_source) == (40, 80, "frozen")
    assert recipes["paper"].rate_scale == 1


def test_batches_of_one_clip_are_refused(sets, tmp_path):
    with pytest.raises(ValueError, match=r"got 8 training clips and batch_size=1"):
        fit(model_of(), *sets, replace(TRAIN, batch_size=1), run_dir=tmp_path / "run")


def test_tensorboard_gets_the_history(sets, tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ImportError, match=r"pip install s2dlib\[tensorboard\]"):
            TensorBoard(tmp_path)
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where = {"run_dir": tmp_path / "run", "watchers": [TensorBoard(tmp_path / "run")]}
    history = fit(model_of(), *sets, TRAIN, **where)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    seen = [event.value for event in events.Scalars("val/top1")]
    assert seen == pytest.approx([row["val_top1"] for row in history])


@pytest.mark.parametrize("variant", ["a0", "a1"])
def test_live_curves_grow_by_a_point_an_epoch(variant, sets, tmp_path):
    live, points = LiveCurves(), []

    def count(history):
        points.append([len(line.get_xdata()) for line in live.axes[0].lines])

    fit(build_model(MODEL, variant), *sets, TRAIN, run_dir=tmp_path, watchers=[live, count])
    assert points == [[], *([n, n] for n in range(1, TRAIN.epochs + 1))]  # training, validation
    strides = ["val_delta_t_mean", "val_delta_y_mean", "val_delta_x_mean"]
    shown = [line.get_label() for line in live.axes[1].lines]
    assert shown == (strides if variant == "a0" else ["train_loss"])


# evaluate


@pytest.mark.parametrize("variant", ["a0", "a1", "a2"])
def test_evaluate_does_not_depend_on_batch_size(variant, sets):
    model = build_model(MODEL, variant)
    results = [evaluate(model, sets[1], batch_size=size) for size in (1, 2, 5, 32)]
    for result in results:
        assert result["n_clips"] == 5
        assert result == pytest.approx(results[0], abs=1e-4)
    assert model.training  # as it was


def test_evaluate_equals_clip_by_clip(sets):
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


def test_batch_sums_average_the_scores_of_crops():
    """Two videos of three crops; by hand, the means are (.37, .4, .23) and (.33, .47, .2)."""
    first = [[0.0, 1.0, 0.0], [0.55, 0.1, 0.35], [0.55, 0.1, 0.35]]  # one sure crop outvotes two
    second = [[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.1, 0.6, 0.3]]  # and here two outvote one
    out = Output(torch.tensor(first + second), None, None, None, None, None, None, None)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert batch_sums(out, labels, n_crops=3)["top1"] == 100 * 3  # the second video, thrice
    assert batch_sums(out, labels * 0 + 1, n_crops=3)["top1"] == 100 * 6
    assert batch_sums(out, labels)["top1"] == 100 * 4  # each crop by itself


@pytest.mark.parametrize("variant", ["a0", "a1", "a2"])
def test_evaluate_with_three_crops_equals_video_by_video(variant, data, tmp_path):
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


def test_unreadable_clips_are_counted(tmp_path, make_video):
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
