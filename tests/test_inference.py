"""Folded models predict the same; the curve of early exits is what counting by hand gives."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from s2dlib.apps.inference import exit_curve, exit_for, for_inference
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
