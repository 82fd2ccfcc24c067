"""Folded models predict the same; clips that end early get SNet's scores and the others DNet's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from s2dlib.apps.inference import exit_curve, exit_for, for_inference, predict, predict_video
from s2dlib.config import DataConfig, ModelConfig
from s2dlib.data.clips import load_clip
from s2dlib.data.readers import read_frames
from s2dlib.model import build_model
from s2dlib.presets import PRESETS

NETWORKS = ["mini-kinetics", "kinetics400-x3d-s-m", "tdn-r50", "synthetic"]


def settled(model, frames):
    """Batch norms with statistics of their own, and weights that are not the identity."""
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.momentum = 1.0
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
    with torch.no_grad():
        model.train()(frames)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_folded_model_gives_the_same_and_has_no_batch_norm_after_a_convolution(name):
    size = (5, 64, 64) if name == "tdn-r50" else (2, 32, 32)
    config = replace(
        PRESETS[name].model, n_classes=9, synopsis_size=size, detail_size=(3, 32, 32), dropout=0.0
    )
    frames = torch.rand(3, 3, 6, 40, 40)
    model = settled(build_model(config).double(), frames.double())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = for_inference(model)
    expected, out = model(frames.double()), folded(frames.double())
    assert_close(out.logits, expected.logits, rtol=1e-8, atol=1e-8)
    if expected.detail_logits is not None:
        assert_close(out.detail_logits, expected.detail_logits, rtol=1e-6, atol=1e-6)
    left = [k for k, m in folded.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert set(left) <= {"snet.context_head.bn", "snet.theta_head.branches.time_norm"}
    assert_close(model.state_dict(), before)  # which stays as it was
    assert not folded.training


def clips(n=6):
    return torch.randint(256, (n, 1, 16, 64, 64), dtype=torch.uint8)


def test_clips_of_which_snet_is_sure_end_with_its_scores():
    model = build_model("synthetic").eval()
    frames, n = clips(), torch.tensor([16, 9, 16, 16, 3, 16])
    with torch.no_grad():
        out = model(frames, n)
    p = out.logits.softmax(dim=1)
    sure = p.amax(dim=1)
    exit_at = sure.median().item()
    scores, ended = predict(model, frames, n, exit_at)
    assert ended.tolist() == (sure >= exit_at).tolist() and 0 < ended.sum() < 6
    assert_close(scores[ended], p[ended])
    assert_close(scores[~ended], out.scores[~ended])


@pytest.mark.parametrize(("exit_at", "n_ended"), [(2.0, 0), (0.0, 6)])
def test_none_or_all_may_end_and_dnet_is_not_called_in_vain(exit_at, n_ended, monkeypatch):
    model, called = build_model("synthetic").eval(), []
    monkeypatch.setattr(
        type(model.dnet), "forward", lambda self, v, m: called.append(len(v)) or torch.zeros(6, 20)
    )
    _, ended = predict(model, clips(), exit_at=exit_at)
    assert ended.sum() == n_ended and called == ([] if n_ended else [6])
    with pytest.raises(ValueError, match="SNet and DNet"):
        predict(build_model("synthetic", "a1"), clips())


TABLE = pd.DataFrame(
    {
        "label": [0, 1, 2, 3],
        "snet": [0, 1, 0, 0],
        "s2dnet": [0, 0, 2, 0],
        "confidence": [0.9, 0.8, 0.8, 0.3],
    }
)


def test_the_curve_is_what_counting_by_hand_gives():
    curve = exit_curve(TABLE, cost_snet=1.0, cost=5.0)
    # none ends: clips 0 and 2 right; from 0.9 the first ends; from 0.8 three end, 0 and 1 right
    assert curve["exit_at"].tolist() == [2.0, 0.9, 0.8, 0.3]
    assert curve["top1"].tolist() == [50.0, 50.0, 50.0, 50.0]
    assert curve["share"].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert curve["gmacs"].tolist() == [5.0, 4.0, 2.0, 1.0]
    other = exit_curve(TABLE.assign(snet=[0, 1, 2, 0]), 1.0, 5.0)
    assert other["top1"].tolist() == [50.0, 50.0, 75.0, 75.0]


def test_a_budget_chooses_the_highest_threshold_that_keeps_to_it():
    assert exit_for(TABLE, 1.0, 5.0, budget=5.0) == 2.0
    assert exit_for(TABLE, 1.0, 5.0, budget=4.5) == 0.9
    assert exit_for(TABLE, 1.0, 5.0, budget=1.0) == 0.3
    with pytest.raises(ValueError, match="at least SNet's own 1 G"):
        exit_for(TABLE, 1.0, 5.0, budget=0.5)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("zoom", [1.0, 0.2])
def test_a_video_is_read_where_it_is_looked_at_and_judged_as_a_whole_clip(
    folder, zoom, tmp_path, make_video
):
    n, data = 90, DataConfig(csv="", n_frames=40, frame_stride=2, short_side=40, crop=32)
    path = make_video(tmp_path / "clip.mp4", n_frames=n, size=(48, 56))
    if folder:
        images, path = read_frames(path), tmp_path / "frames"
        path.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{i + 1:05d}.png")
    model = build_model(
        ModelConfig(
            n_classes=7, snet="tiny-s", dnet="tiny-d", synopsis_size=(4, 16, 16),
            detail_size=(4, 16, 16), context_dim=8, theta_dim=8,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():  # theta of the fc head starts at the whole clip; here it is zoomed in
        model.snet.theta_head.branches.time.bias[1] = 3 * np.log(zoom)
    frames = load_clip(path, 40, 2, 40)[:, :, 4:36, 7:39]  # of 40 x 47 pixels
    expected = model(frames[None])
    out, n_read = predict_video(model, path, data)
    assert_close(out.scores, expected.scores, atol=1e-5, rtol=1e-4)
    assert_close(out.detail_volume, expected.detail_volume, atol=1e-2, rtol=0)
    stride = expected.theta.delta_t.item()
    assert n_read <= 4 + min(4 * 11, 3 * stride + 12) and (zoom == 1 or n_read < 25)
