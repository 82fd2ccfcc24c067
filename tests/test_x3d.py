"""X3D: sizes and costs of its paper, and pytorchvideo's network weight for weight."""

from __future__ import annotations

import pytest
import torch
from pytorchvideo.models.x3d import create_x3d
from torch import nn
from torch.testing import assert_close

from s2dlib.backbones.build import build_backbone
from s2dlib.backbones.x3d import round_width
from s2dlib.config import ModelConfig
from s2dlib.model import build_model
from s2dlib.presets import PRESETS
from s2dlib.report.cost import count

pytestmark = pytest.mark.slow

FACTORS = {"x3d-m": (2.0, 2.2), "x3d-xl": (2.9, 5.0)}  # of width and of depth


@pytest.fixture(scope="module", params=FACTORS)
def pair(request, tmp_path_factory):
    """pytorchvideo's network with random weights, and ours with the same, read from its file."""
    torch.manual_seed(0)
    width, depth = FACTORS[request.param]
    net = create_x3d(
        input_clip_length=4, input_crop_size=32, model_num_class=7, width_factor=width,
        depth_factor=depth, head_activation=None, dropout_rate=0.5,
    )  # fmt: skip
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm3d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "x3d.pyth"
    torch.save({"model_state": net.state_dict()}, path)
    return net.eval(), build_backbone(request.param, str(path)).eval(), path


@torch.no_grad()
def test_x3d_equals_pytorchvideo(pair):
    net, ours, _ = pair
    clips = torch.randn(2, 3, 4, 32, 32)
    pooled = ours.neck(ours(clips).mean((2, 3, 4)))
    assert pooled.shape == (2, ours.pooled_channels) == (2, 2048)
    assert_close(net.blocks[5].proj(pooled), net(clips), atol=1e-5, rtol=1e-5)


def test_x3d_file_of_another_network_is_refused(pair, tmp_path):
    net, ours, path = pair
    state = torch.load(path, weights_only=True)["model_state"]
    state["odd.weight"] = state.pop("blocks.0.norm.weight")
    state["blocks.5.pool.post_conv.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "other.pyth")
    name = "x3d-m" if ours.out_channels == 432 else "x3d-xl"
    with pytest.raises(ValueError, match="3 keys") as error:
        build_backbone(name, str(tmp_path / "other.pyth"))
    for key in ("odd.weight", "blocks.0.norm.weight", "blocks.5.pool.post_conv.weight"):
        assert key in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_backbone(name, "nowhere.pyth")


@pytest.mark.parametrize(
    ("name", "size", "gmacs", "n_parameters"),
    [
        ("x3d-s", (16, 224, 224), 4.732, 3_794_274),
        ("x3d-m", (16, 256, 256), 6.181, 3_794_274),
        ("x3d-xl", (16, 312, 312), 35.838, 11_095_840),
    ],
)
def test_x3d_parameters_and_multiply_adds(name, size, gmacs, n_parameters):
    config = ModelConfig(n_classes=400, snet=name, dnet=None, synopsis_size=size)
    model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    assert count(model, *size)["gmacs"].sum() == pytest.approx(gmacs, rel=5e-3)


def test_round_width_gives_multiples_of_eight():
    assert [round_width(w) for w in (3.4, 24, 34.8, 69.6, 139.2, 278.4)] == [
        8, 24, 32, 72, 136, 280
    ]  # fmt: skip
    assert round_width(19) == 24  # 16 would be less than nine tenths


def test_x3d_is_fused_after_res3_and_res4():
    preset = PRESETS["kinetics400-x3d-s-m"].model
    model = build_model(preset, n_classes=10).eval()
    assert {name: f.bn.num_features for name, f in model.dnet.fusions.items()} == {
        "res3": 48,
        "res4": 96,
    }
    assert model.dnet.classifier.in_features == 2048 + preset.context_dim
    assert model.snet.context_head.fc.in_features == 432 + 10  # [GAP(e), s], before the neck
