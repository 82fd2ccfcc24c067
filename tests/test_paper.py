"""What the paper says and no training is needed to check, sentence by sentence."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from s2dlib.backbones.build import build_backbone
from s2dlib.model import build_model
from s2dlib.presets import PRESETS, SAME_RUN, VARIANTS
from s2dlib.sampler import DetailSampler, Theta, gaussian_filters, grid_centres
from s2dlib.synopsis import topk_mask


@pytest.fixture(scope="module")
def mini_kinetics():
    return build_model("mini-kinetics")


def count(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


# Sec. 3.1


def test_the_mask_is_the_single_line_of_footnote_3():
    p, k, N = torch.randn(30, 11).softmax(1), 5, 11
    s = nn.functional.one_hot(torch.topk(p, k).indices, N).sum(dim=1)  # a batch: its dim -1 is 1
    assert torch.equal(topk_mask(p, k), s.float())


def test_theta_is_six_parameters():
    names = ["mu_t", "delta_t", "mu_y", "mu_x", "delta_y", "delta_x"]
    assert [f.name for f in fields(Theta)] == names


def test_f_theta_is_two_convolutions_and_two_parallel_layers(mini_kinetics):
    f_theta = mini_kinetics.snet.theta_head
    convolutions = [m for m in f_theta.modules() if isinstance(m, nn.Conv3d)]
    assert [m.kernel_size for m in convolutions] == [(1, 1, 1), (3, 3, 3)]
    assert convolutions[0].in_channels == 1280 + 200  # [e, E(s)]
    kinds = [type(m) for m in f_theta.convolutions]
    assert kinds == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU] * 2
    assert f_theta.branches.time.out_features == 2
    assert f_theta.branches.space.out_features == 4 * 16  # 4 x T_D
    assert f_theta.branches.time.in_features == 64 * 16 * 5 * 5  # T_S x h x w of 144 pixels


def test_f_m_is_a_layer_over_pooled_features_and_mask(mini_kinetics):
    f_m = mini_kinetics.snet.context_head
    assert (f_m.fc.in_features, f_m.fc.out_features) == (1280 + 200, 256)


# Sec. 3.2


def test_a_smaller_stride_in_time_plays_slower():
    raw = torch.arange(100.0)[None, None, :, None, None].expand(1, 3, 100, 4, 4)  # frame numbers
    still = [torch.full((1, 8), v) for v in (0.5, 0.5, 1.0, 1.0)]
    for delta in (0.5, 1.0, 4.0, 12.5):
        theta = Theta(torch.tensor([0.5]), torch.tensor([delta]), *still)
        shown = DetailSampler((8, 2, 2))(raw, theta)[0, 0, :, 0, 0]
        assert_close(shown.diff(), torch.full((7,), delta), atol=0.02, rtol=0)


def test_a_smaller_stride_in_space_magnifies():
    frames = torch.zeros(1, 3, 1, 64, 64)
    frames[..., 28:36, 28:36] = 1  # a square of 8 pixels
    time = torch.tensor([0.5]), torch.tensor([1.0])
    for delta, side in ((2.0, 4), (1.0, 8), (0.5, 16)):
        space = [torch.full((1, 1), v) for v in (0.5, 0.5, delta, delta)]
        volume = DetailSampler((1, 32, 32))(frames, Theta(*time, *space))
        assert (volume[0, 0, 0, 16] > 0.5).sum() == side


def test_filter_weights_fall_as_a_gaussian_of_variance_1():
    G = gaussian_filters(torch.tensor([10.5]).double(), 21)[0]
    r = torch.arange(21) - 10.0
    assert_close((G * r**2).sum().item(), 1.0, atol=1e-6, rtol=0)
    assert_close((G[11] / G[10]).item(), torch.tensor(-0.5).double().exp().item())


def test_the_grid_is_centred_on_mu():
    mu, delta = torch.rand(5), torch.rand(5) * 3
    for n_out in (1, 4, 7):
        assert_close(grid_centres(mu, delta, n_out, 50).mean(-1), mu * 50)


def test_m_is_fused_after_res3_and_res4_of_resnet(mini_kinetics):
    fusions = mini_kinetics.dnet.fusions
    assert set(fusions) == {"res3", "res4"}
    assert fusions["res3"].conv.weight.shape == (512, 512 + 256, 1, 1, 1)
    assert fusions["res4"].conv.weight.shape == (1024, 1024 + 256, 1, 1, 1)
    assert mini_kinetics.dnet.classifier.in_features == 2048 + 256


def test_both_networks_learn_from_one_backward_pass():
    """ "As all modules are differentiable": the detail loss alone reaches f_theta and f_s."""
    model = build_model("synthetic")
    model(torch.rand(2, 1, 64, 72, 72)).detail_logits.sum().backward()
    assert all(p.grad is not None for p in model.snet.theta_head.parameters())
    assert all(p.grad is not None for p in model.snet.backbone.parameters())


# Sec. 4


@pytest.mark.parametrize("name", ["mini-kinetics", "ssv2"])
def test_presets_carry_the_settings_of_all_experiments(name):
    preset = PRESETS[name]
    assert (preset.model.k, preset.model.context_dim, preset.data.frame_stride) == (5, 256, 2)
    assert preset.recipes["paper"].alpha == 0.1
    assert (preset.data.short_side, preset.data.crop) == (256, 224)
    assert (preset.model.snet, preset.model.dnet) == ("mobilenet_v2", "resnet50")
    assert preset.data.flip == (name != "ssv2")  # left and right are labels there


def test_presets_carry_the_sizes_of_their_tables():
    mini, ssv2 = PRESETS["mini-kinetics"].model, PRESETS["ssv2"].model
    assert (mini.synopsis_size, mini.detail_size) == ((16, 144, 144), (16, 112, 112))
    assert (ssv2.synopsis_size, ssv2.detail_size) == ((16, 224, 224), (16, 144, 144))
    assert (mini.n_classes, ssv2.n_classes) == (200, 174)


def test_the_parameters_of_the_single_networks_are_the_published_counts():
    mn2, r50 = build_backbone("mobilenet_v2"), build_backbone("resnet50")
    assert round(count(mn2, nn.Linear(1280, 200)) / 1e6, 3) == 2.480
    assert round(count(r50, nn.Linear(2048, 174)) / 1e6, 3) == 23.865
    assert round(count(r50, nn.Linear(2048, 200)) / 1e6, 3) == 23.918
    assert round(count(r50, nn.Linear(2048, 400)) / 1e6, 1) == 24.3  # TSM in Table 4


@pytest.mark.parametrize(("row", "millions"), [("a1", 2.480), ("a2", 23.918)])
def test_a_row_with_one_network_is_that_network_alone(row, millions):
    assert round(count(build_model("mini-kinetics", row)) / 1e6, 3) == millions


def test_table_2_has_eleven_rows_of_eight_models():
    assert {*VARIANTS, *SAME_RUN} == {
        f"{t}{i}" for t, n in ("a3", "b4", "c4") for i in range(int(n))
    }
    assert SAME_RUN == {"b0": "a0", "c0": "a0", "c1": "b3"}


@pytest.mark.parametrize(
    ("row", "sample", "fuse"), [("b1", 0, 0), ("b2", 1, 0), ("b3", 0, 1), ("b0", 1, 1)]
)
def test_rows_b_switch_sampling_and_fusion_and_keep_m_in_the_classifier(row, sample, fuse):
    model = build_model("synthetic", row)
    assert (model.snet.theta_head is not None) == sample
    assert bool(model.dnet.fusions) == fuse
    assert model.dnet.classifier.in_features == 64 + 64  # [GAP(e-hat), m]


@pytest.mark.parametrize(
    ("row", "space", "time"), [("c1", 0, 0), ("c2", 1, 0), ("c3", 0, 1), ("c0", 1, 1)]
)
def test_rows_c_switch_space_and_time(row, space, time):
    config = replace(PRESETS["synthetic"].model, theta_head="fc")
    head = build_model(config, row).snet.theta_head
    assert (head is not None and head.branches.space is not None) == space
    assert (head is not None and head.branches.time is not None) == time


def test_dnet_sees_a_smaller_input_than_the_raw_frames():
    for preset in (PRESETS["mini-kinetics"], PRESETS["ssv2"]):
        assert preset.model.detail_size[1] < preset.data.crop


def test_centre_crops_of_uniform_frames_are_the_input_of_the_frozen_rows():
    config = replace(PRESETS["mini-kinetics"].model, snet="tiny-s", dnet="tiny-d", filters="linear")
    config = replace(config, synopsis_size=(4, 20, 20), detail_size=(4, 16, 16))
    frames = torch.randint(0, 256, (1, 3, 12, 40, 48), dtype=torch.uint8)
    volume = build_model(config, "c1").eval()(frames).detail_volume
    middles = torch.tensor([1, 4, 7, 10])  # of four segments of three frames
    crop = frames[:, :, middles, 12:28, 16:32].float()
    assert_close(volume, crop, atol=1e-2, rtol=0)
