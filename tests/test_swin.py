"""Video Swin: torchvision's network stage by stage, and in S2DNet like any other backbone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.video import swin3d_t

from s2dlib.backbones.build import build_backbone
from s2dlib.config import ModelConfig
from s2dlib.losses import s2d_loss
from s2dlib.model import build_model
from s2dlib.report.cost import count

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_swin_stages_equal_torchvision(tmp_path):
    torch.manual_seed(0)
    net = swin3d_t(weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "swin.pth")
    ours = build_backbone("swin3d-t", str(tmp_path / "swin.pth")).eval()
    video = torch.randn(1, 3, 4, 40, 72)
    assert_close(net.head(ours(video).mean((2, 3, 4))), net(video), atol=1e-5, rtol=1e-5)
    shapes = {}
    for name, stage in ours.stages.items():
        video = stage(video)
        shapes[name] = video.shape[1]
    assert shapes == ours.channels


def test_swin_parameters_and_multiply_adds():
    config = ModelConfig(n_classes=400, snet="swin3d-t", dnet=None, synopsis_size=(16, 224, 224))
    model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) == 28_158_070
    assert count(model, 16, 224, 224)["gmacs"].sum() == pytest.approx(43.882, rel=5e-3)


@pytest.mark.parametrize("head", ["fc", "attention"])
def test_swin_in_both_networks_learns(head):
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            n_classes=5,
            snet="swin3d-t",
            dnet="swin3d-t",
            synopsis_size=(4, 64, 64),
            detail_size=(4, 64, 64),
            theta_head=head,
        )
    )
    assert {name: f.bn.num_features for name, f in model.dnet.fusions.items()} == {
        "res3": 192,
        "res4": 384,
    }
    frames = torch.randint(256, (2, 3, 8, 80, 80), dtype=torch.uint8)
    out = model(frames)
    assert out.scores.shape == (2, 5)
    s2d_loss(out, torch.tensor([0, 1])).backward()
    still = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
