"""TDN: its modules against loops, its size and cost, its authors' files by their key names."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from s2dlib.backbones.build import build_backbone
from s2dlib.backbones.tdn import PUBLISHED, LongTerm, ShortTerm, TemporalConv
from s2dlib.backbones.weights import renamed
from s2dlib.model import build_model
from s2dlib.presets import PRESETS
from s2dlib.report.cost import count

pytestmark = pytest.mark.slow

FOLDED = r"(enter\.0|branch\.[03]|shortcut\.0|stem\.0|conv\d|downsample\.0)\.weight$"


@torch.no_grad()
def settled(net, example):
    """Batch norms with statistics of their own, and of the size of their input."""
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.3, 0.3)
    net.train()(*example)
    return net.eval()


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return settled(build_backbone("tdn-r50"), (torch.randn(2, 3, 15, 64, 64),))


def test_tdn_parameters_and_multiply_adds():
    preset = PRESETS["tdn-r50"]
    model = build_model("tdn-r50")
    gmacs = count(model, preset.data.n_frames, 224, 224)["gmacs"].sum()
    assert gmacs == pytest.approx(71.277, rel=1e-3)
    state = model.snet.backbone.state_dict()
    biases = sum(
        len(v) for k, v in state.items() if re.search(FOLDED, k) and "motion_stem" not in k
    )
    unused = 64 * (3 * 7 * 7 + 1)  # a first convolution that the release stores and never calls
    n = sum(p.numel() for p in model.parameters())
    assert n + biases + unused == 24_420_046  # theirs, at 174 classes


@torch.no_grad()
def test_long_term_compares_neighbouring_segments(backbone):
    torch.manual_seed(1)
    module = settled(LongTerm(32).double(), (torch.randn(4, 32, 6, 6).double(), 2))
    B, T = 2, 4
    x = torch.randn(B * T, 32, 6, 6).double()
    out = module(x, T).unflatten(0, (B, T))
    for b in range(B):
        clip = x.unflatten(0, (B, T))[b]
        squeezed = [module.squeeze(frame[None]) for frame in clip]
        smooth = [module.smooth(frame) for frame in squeezed]
        nothing = torch.zeros_like(squeezed[0])
        for t in range(T):
            weight = 0
            ahead = smooth[t + 1] - squeezed[t] if t + 1 < T else nothing
            back = smooth[t - 1] - squeezed[t] if t > 0 else nothing
            fine_ahead = module.fine(ahead)
            for d, fine in ((ahead, fine_ahead), (back, module.fine(fine_ahead))):
                coarse = module.coarse(F.avg_pool2d(d, 2)).repeat_interleave(2, 2)
                mixture = (d + coarse.repeat_interleave(2, 3) + fine) / 3
                weight = weight + 0.5 * (module.expand(mixture).sigmoid() - 0.5)
            assert_close(out[b, t], (clip[t] * (1 + weight))[0])


@torch.no_grad()
def test_short_term_sees_middle_frame_and_differences(backbone):
    module: ShortTerm = backbone.stages["res2"]
    video = torch.randn(1, 3, 10, 64, 64)
    out = module(video)
    assert out.shape == (1, 256, 2, 16, 16)
    for t in range(2):
        frames = [video[:, :, 5 * t + i] for i in range(5)]
        steps = torch.cat([b - a for a, b in zip(frames, frames[1:], strict=False)], dim=1)
        motion = module.pool(module.motion_stem(F.avg_pool2d(steps, 2)))

        def up(m):
            return m.repeat_interleave(2, 2).repeat_interleave(2, 3)

        x = 0.75 * module.pool(module.stem(frames[2])) + 0.25 * up(motion)
        x = 0.75 * module.blocks(x) + 0.25 * up(module.motion_blocks(motion))
        assert_close(out[:, :, t], x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_short_term_of_a_still_clip_has_no_motion(backbone):
    still = torch.randn(1, 3, 1, 64, 64).expand(-1, -1, 10, -1, -1)
    seen = []
    hook = (
        backbone.stages["res2"]
        .motion_stem[0]
        .register_forward_hook(lambda module, inputs, output: seen.append(output))
    )
    backbone(still)
    hook.remove()
    assert seen[0].abs().max() == 0


@torch.no_grad()
def test_temporal_conv_starts_as_the_shift():
    module = TemporalConv(16)
    x = torch.randn(6, 16, 2, 3)
    clip = x.unflatten(0, (2, 3))
    moved = module(x, 3).unflatten(0, (2, 3))
    assert_close(moved[:, :2, :2], clip[:, 1:, :2])  # an eighth comes from the next segment
    assert moved[:, 2, :2].abs().max() == 0
    assert_close(moved[:, 1:, 2:4], clip[:, :2, 2:4])  # an eighth from the one before
    assert_close(moved[:, :, 4:], clip[:, :, 4:])
    module.taps.normal_()
    expected = F.conv1d(
        clip.permute(0, 3, 4, 2, 1).reshape(-1, 16, 3), module.taps[:, None], padding=1, groups=16
    )
    expected = expected.unflatten(0, (2, 2, 3)).permute(0, 4, 3, 1, 2).flatten(0, 1)
    assert_close(module(x, 3), expected)


def published_file(backbone, path):
    """The backbone's weights as its authors' files name them: biases, classifier, unused layers."""
    state = backbone.state_dict()
    file = {name: state[key].clone() for key, name in renamed(state, PUBLISHED).items()}
    for key in [
        k for k in file if re.search(FOLDED, k) and "conv1_5" not in k and ".mse." not in k
    ]:
        bias = 0.1 * torch.randn(len(file[key]))
        file[key.replace(".weight", ".bias")] = bias
        norm = key.replace("downsample.0", "downsample.1").removesuffix(".weight")
        norm = re.sub(r"conv(\d)$", r"bn\1", norm)
        file[f"{norm}.running_mean"] += bias
    for name in ("conv1_temp", "conv1_temp1"):
        file[f"base_model.{name}.weight"] = torch.randn(64, 3, 7, 7)
        file[f"base_model.{name}.bias"] = torch.randn(64)
    file |= {"new_fc.weight": torch.randn(174, 2048), "new_fc.bias": torch.randn(174)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in file.items()}}, path)
    return file


@torch.no_grad()
def test_tdn_file_of_the_authors_arrives(backbone, tmp_path):
    file = published_file(backbone, tmp_path / "tdn.pth")
    for name in (
        "base_model.conv1.bias",
        "base_model.conv1_5.1.running_var",
        "base_model.resnext_layer1.2.conv3.bias",
        "base_model.layer1_bak.0.downsample.0.bias",
        "base_model.layer3_bak.5.mse.conv3_smallscale4.weight",
        "base_model.layer4_bak.2.mse.bn3_smallscale2.weight",
        "base_model.layer2_bak.0.shift.conv.weight",
    ):
        assert name in file
    assert sum(k.endswith("conv2.bias") for k in file) == 19  # 16 bottlenecks, and three for motion
    loaded = build_backbone("tdn-r50", str(tmp_path / "tdn.pth"))
    assert_close(loaded.state_dict(), backbone.state_dict())  # bias and mean cancel out


def test_tdn_file_with_a_key_left_over_is_named(backbone, tmp_path):
    file = published_file(backbone, tmp_path / "tdn.pth")
    file["base_model.layer2_bak.0.shift.conv.weigth"] = file.pop(
        "base_model.layer2_bak.0.shift.conv.weight"
    )
    torch.save({"state_dict": file}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="2 keys .*shift.conv.weight; .*shift.conv.weigth"):
        build_backbone("tdn-r50", str(tmp_path / "odd.pth"))


def test_tdn_frames_of_no_whole_segments(backbone):
    with pytest.raises(ValueError, match="segments of 5 frames, got 12"):
        backbone(torch.randn(1, 3, 12, 64, 64))
