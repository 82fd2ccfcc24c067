"""Multiply-adds agree with counts by hand; parts add up to the whole."""

import time

import pytest
import torch
from torch.testing import assert_close

from s2dlib.config import ModelConfig
from s2dlib.model import build_model
from s2dlib.presets import PRESETS, VARIANTS
from s2dlib.report.cost import compare_latency, count, latency, steps

HAND = {  # backbone, frames, side, classes -> multiply-adds (G) and parameters (M)
    ("resnet50", 16, 224, 174): (65.400, 23.865),
    ("resnet50", 8, 224, 174): (32.700, 23.865),
    ("mobilenet_v2", 16, 144, 200): (2.107, 2.480),
    ("resnet50", 16, 112, 200): (17.220, 23.918),
}


@pytest.mark.parametrize("backbone, T, side, n_classes", HAND)
def test_a_network_alone_costs_what_a_count_by_hand_gives(backbone, T, side, n_classes):
    size = (T, side, side)
    config = ModelConfig(n_classes=n_classes, snet=backbone, dnet=None, synopsis_size=size)
    table = count(build_model(config), *size).set_index("part")
    gmacs, mparams = HAND[backbone, T, side, n_classes]
    classifier = T * table["gmacs"]["SNet classifier"]  # TSM classifies every frame, SNet the clip
    assert table["gmacs"]["SNet backbone"] + classifier == pytest.approx(gmacs, abs=5e-4)
    assert table["mparams"].sum() == pytest.approx(mparams, abs=5e-4)


def test_the_parts_of_s2dnet_cost_what_their_shapes_say():
    config = PRESETS["synthetic"].model
    table = count(build_model(config), 64, 72, 72, channels=1).set_index("part")["gmacs"] * 1e9
    table = table.round().astype(int)
    (T_D, H_D, W_D), N, C_m = config.detail_size, config.n_classes, config.context_dim
    assert table["SNet classifier"] == 48 * N
    assert table["context head"] == (48 + N) * C_m
    assert table["DNet classifier"] == (64 + C_m) * N
    assert table["time filter"] == T_D * 64 * 72 * 72
    assert table["space filters"] == T_D * (H_D * 72 * 72 + H_D * 72 * W_D)
    fused = sum(T_D * side**2 * C * C + C_m * C for side, C in ((5, 32), (3, 48)))
    assert table["fusion"] == fused  # W_m m once a clip, not at every position


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_row_is_in_one_part(variant):
    model = build_model("synthetic", variant)
    table = count(model, 64, 72, 72)
    n = sum(p.numel() for p in model.parameters())
    assert table["mparams"].sum() * 1e6 == pytest.approx(n)
    absent = {"a1": 7, "a2": 5, "b1": 2, "b2": 1, "b3": 1}.get(variant, 0)
    assert (table["gmacs"] == 0).sum() == absent


def test_a_large_clip_is_counted_by_the_dense_form_of_the_sampler():
    model = build_model("mini-kinetics")
    table = count(model, 150, 224, 224).set_index("part")["gmacs"]
    assert table["time filter"] == pytest.approx(3 * 16 * 150 * 224 * 224 / 1e9)
    space = 3 * 16 * (112 * 224 * 224 + 112 * 224 * 112) / 1e9
    assert table["space filters"] == pytest.approx(space)
    assert model.detail_sampler.algorithm == "auto"


def test_the_model_that_is_counted_stays_where_and_as_it_is():
    model = build_model("synthetic").train()
    count(model, 64, 72, 72)
    assert model.training and next(model.parameters()).device.type == "cpu"


def test_latency_is_the_median_of_turns_and_leaves_out_the_first_two():
    order = []
    calls = {
        "slow": lambda: (order.append("slow"), time.sleep(0.2 if len(order) < 4 else 0.02)),
        "fast": lambda: order.append("fast"),
    }
    table = latency(calls, n_runs=3).set_index("name")
    assert order == ["slow", "fast"] * 5
    assert 20 <= table["ms"]["slow"] < 100 and table["ms_iqr"]["slow"] < 50
    assert table["ms"]["fast"] < table["ms"]["slow"]


@torch.no_grad()
def test_the_steps_that_are_timed_give_what_the_model_gives():
    model = build_model("synthetic").eval()
    frames = torch.randint(256, (2, 1, 16, 64, 64), dtype=torch.uint8)
    out, made = model(frames), {name: call() for name, call in steps(model, frames).items()}
    assert list(made) == ["synopsis sampler", "SNet", "detail sampler", "DNet"]
    assert_close(made["synopsis sampler"], out.synopsis_frames)
    assert_close(made["SNet"][0], out.logits)
    assert_close(made["detail sampler"], out.detail_volume)
    assert_close(made["DNet"], out.detail_logits)


def test_models_are_timed_side_by_side_and_the_steps_of_the_first_with_them():
    models = {name: build_model("synthetic", row) for name, row in (("S2D", "a0"), ("SNet", "a1"))}
    table = compare_latency(models, (2, 16, 64, 64), "cpu", n_runs=2).set_index("name")
    steps_of = ["- synopsis sampler", "- SNet", "- detail sampler", "- DNet"]
    assert table.index.tolist() == ["S2D", "SNet", *steps_of]
    assert table["ratio"]["S2D"] == 1 and (table["batch"] == 2).all()
    assert table["ratio"]["SNet"] == pytest.approx(table["ms"]["SNet"] / table["ms"]["S2D"])
    assert not any(model.training for model in models.values())
