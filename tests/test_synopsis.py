"""SNet against Eq. 1-5 written out with numpy, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from s2dlib.backbones.build import build_backbone
from s2dlib.config import ModelConfig
from s2dlib.sampler import Extent, frozen_theta
from s2dlib.synopsis import (
    AttentionHead,
    ContextHead,
    FcHead,
    SNet,
    ThetaHead,
    bounded_stride,
    bounded_zoom,
    expand_like,
    feature_shape,
    interpolate,
    squash,
    topk_mask,
)

CONFIG = ModelConfig(
    n_classes=7,
    k=3,
    snet="tiny-s",
    dnet="tiny-d",
    synopsis_size=(4, 12, 16),
    detail_size=(3, 5, 6),
    context_dim=8,
    theta_dim=6,
)
LENGTHS, H, W = torch.tensor([12, 7]), 20, 24
EXTENT = Extent(LENGTHS, H, W)


def shaken(module):
    """Weights far from the start, and batch norms as after a training; in eval mode."""
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(-0.5, 0.5)
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.uniform_(-0.3, 0.3)
                m.running_var.uniform_(0.5, 1.5)
    return module.eval()


def array(tensor):
    return tensor.detach().double().numpy()


def batch_norm(x, bn):
    """In testing, channel by channel. x: (B, C, ...)"""
    mean, var, weight, bias = map(array, (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    shape = (1, -1, *[1] * (x.ndim - 2))
    x = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + bn.eps)
    return x * weight.reshape(shape) + bias.reshape(shape)


def linear(x, layer):
    return x @ array(layer.weight).T + (0 if layer.bias is None else array(layer.bias))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def snet(**changes):
    config = replace(CONFIG, **changes)
    return shaken(SNet(build_backbone("tiny-s"), config))


# Eq. 1-3


def test_snet_classifier_is_on_mean_features():
    net, V = snet(), torch.randn(2, 3, 4, 12, 16)
    logits, mask, theta, context = net(V, EXTENT)
    e = array(net.backbone(V))
    pooled = np.array([[e[b, c].sum() / e[b, c].size for c in range(48)] for b in range(2)])
    assert_close(array(logits), linear(pooled, net.classifier), atol=1e-5, rtol=1e-4)
    assert logits.shape == mask.shape == (2, 7) and context.shape == (2, 8)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_mask_marks_the_k_largest(k):
    logits = torch.randn(50, 7)
    mask = topk_mask(logits, k)
    for row, s in zip(logits.tolist(), mask.tolist(), strict=True):
        for n in range(7):
            assert s[n] == float(sum(other > row[n] for other in row) < k)


def test_topk_mask_among_equals_marks_k():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    for k in (1, 2, 3, 5):
        mask = topk_mask(logits, k)
        assert mask.sum(1).tolist() == [k, k]
        for row, s in zip(logits, mask.bool(), strict=True):
            if k < 5:
                assert row[s].min() >= row[~s].max()


def test_topk_mask_carries_no_gradient():
    logits = torch.randn(2, 7, requires_grad=True)
    assert not topk_mask(logits, 3).requires_grad


# Eq. 4


def test_expand_like_repeats_a_vector_everywhere():
    vector, features = torch.randn(2, 7), torch.zeros(2, 5, 3, 4, 2)
    expanded = expand_like(vector, features)
    assert expanded.shape == (2, 7, 3, 4, 2)
    for t, y, x in np.ndindex(3, 4, 2):
        assert torch.equal(expanded[:, :, t, y, x], vector)


def convolution(x, weight):
    """A 3-D convolution with zeros around, position by position. (B, C, T, h, w)"""
    weight = array(weight)
    r = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), *[(r, r)] * 3))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for t, y, i in np.ndindex(*x.shape[2:]):
        patch = padded[:, :, t : t + 2 * r + 1, y : y + 2 * r + 1, i : i + 2 * r + 1]
        out[:, :, t, y, i] = np.tensordot(patch, weight, ((1, 2, 3, 4), (1, 2, 3, 4)))
    return out


def stride(raw, full):
    """full exp(raw) near 0, bounded in log space by one frame or pixel and twice full."""
    low, high = min(0.0, -math.log(full)), math.log(2)
    limit = max(high if raw >= 0 else -low, 1e-6)
    return full * math.exp(limit * math.tanh(raw / limit))


def check_fc(theta, h, head, T_D, H_D, W_D):
    """h: (B, C, T, h, w)"""
    for b, n in enumerate(LENGTHS.tolist()):
        mu, delta = linear(h[b].reshape(-1), head.time)
        assert float(theta.mu_t[b]) == pytest.approx((1 + math.tanh(mu)) / 2, abs=1e-5)
        assert float(theta.delta_t[b]) == pytest.approx(stride(delta, n / T_D), rel=1e-4)
        raw = linear(h[b].reshape(-1), head.space).reshape(4, T_D)
        for z in range(T_D):
            for name, value in zip(("mu_y", "mu_x"), raw[:2, z], strict=True):
                got = float(getattr(theta, name)[b, z])
                assert got == pytest.approx((1 + math.tanh(value)) / 2, abs=1e-5)
            for name, value, full in (
                ("delta_y", raw[2, z], H / H_D),
                ("delta_x", raw[3, z], W / W_D),
            ):
                assert float(getattr(theta, name)[b, z]) == pytest.approx(
                    stride(value, full), rel=1e-4
                )


def zoom(raw, full, start):
    """s between one frame or pixel and the uniform stride, at `start` for raw = 0."""
    smallest = 1 / max(full, 1)
    share = min(max((start - smallest) / max(1 - smallest, 1e-6), 1e-3), 1 - 1e-3)
    return smallest + (1 - smallest) / (1 + math.exp(-raw) * (1 - share) / share)


def check_attention(theta, h, head, T_D, H_D, W_D):
    """h: (B, C, T, h, w)"""
    T_S, rows, columns = h.shape[2:]
    for b, n in enumerate(LENGTHS.tolist()):
        pooled = np.array([[*h[b, :, t].mean((1, 2)), *h[b, :, t].max((1, 2))] for t in range(T_S)])
        change, norm = pooled - pooled.mean(0), head.time_norm  # what changes over time, normalised
        change = (change - array(norm.running_mean)) / (array(norm.running_var) + norm.eps) ** 0.5
        weights = softmax(4 * linear(change, head.time_score)[:, 0])
        anchor = sum(w * (t + 0.5) / T_S for t, w in enumerate(weights))
        s = zoom(linear(weights @ pooled, head.time_zoom)[0], n / T_D, 0.5)
        mu_t, delta_t = anchor + s * (0.5 - anchor), s * n / T_D
        assert float(theta.mu_t[b]) == pytest.approx(mu_t, abs=1e-5)
        assert float(theta.delta_t[b]) == pytest.approx(delta_t, rel=1e-4)

        values = np.zeros((T_S, 4))  # anchor y, anchor x, raw zoom y, raw zoom x
        for t in range(T_S):
            score = np.array(
                [
                    [linear(h[b, :, t, y, x], head.space_score)[0] for x in range(columns)]
                    for y in range(rows)
                ]
            )
            attention = softmax(4 * score.reshape(-1)).reshape(rows, columns)
            for y, x in np.ndindex(rows, columns):
                values[t, 0] += attention[y, x] * (y + 0.5) / rows
                values[t, 1] += attention[y, x] * (x + 0.5) / columns
            values[t, 2:] = linear(pooled[t], head.space_zoom)
        for z in range(T_D):
            at = mu_t + (z + 1 - T_D / 2 - 0.5) * delta_t / n
            a_y, a_x, raw_y, raw_x = (
                np.interp(at, (np.arange(T_S) + 0.5) / T_S, values[:, i]) for i in range(4)
            )
            for axis, a, raw, full in (("y", a_y, raw_y, H / H_D), ("x", a_x, raw_x, W / W_D)):
                s = zoom(raw, full, 0.8)
                mu, delta = getattr(theta, f"mu_{axis}"), getattr(theta, f"delta_{axis}")
                assert float(mu[b, z]) == pytest.approx(a + s * (0.5 - a), abs=1e-5)
                assert float(delta[b, z]) == pytest.approx(s * full, rel=1e-4)


@pytest.mark.parametrize("head", ["fc", "attention"])
def test_theta_head_is_two_convolutions_and_two_branches(head):
    config = replace(CONFIG, theta_head=head)
    f_theta = shaken(ThetaHead(config, (5, 3, 2, 4)))
    e, mask = torch.randn(2, 5, 3, 2, 4), topk_mask(torch.randn(2, 7), 3)
    frozen = frozen_theta(EXTENT, config.detail_size, "crop")
    theta = f_theta(e, mask, frozen, EXTENT).map(torch.Tensor.detach)

    one, bn_one, _, three, bn_three, _ = f_theta.convolutions
    E = np.repeat(array(mask), 3 * 2 * 4, axis=1).reshape(2, 7, 3, 2, 4)
    h = np.concatenate((array(e), E), axis=1)
    h = np.maximum(batch_norm(convolution(h, one.weight), bn_one), 0)
    h = np.maximum(batch_norm(convolution(h, three.weight), bn_three), 0)
    check = {"fc": check_fc, "attention": check_attention}[head]
    check(theta, h, f_theta.branches, *config.detail_size)


@pytest.mark.parametrize("head", [FcHead, AttentionHead])
@pytest.mark.parametrize(("time", "space"), [(True, False), (False, True)])
def test_theta_of_an_axis_not_learned_stays_frozen(head, time, space):
    config = replace(CONFIG, sample_time=time, sample_space=space)
    frozen = frozen_theta(EXTENT, config.detail_size, "crop")
    theta = shaken(head(config, (6, 3, 2, 4)))(torch.randn(2, 6, 3, 2, 4), frozen, EXTENT)
    for name, changed in [
        *((n, time) for n in ("mu_t", "delta_t")),
        *((n, space) for n in ("mu_y", "mu_x", "delta_y", "delta_x")),
    ]:
        assert torch.equal(getattr(theta, name), getattr(frozen, name)) != changed, name


@pytest.mark.parametrize("head", ["fc", "attention"])
def test_theta_starts_near_the_middle_and_inside_its_bounds(head):
    net = SNet(build_backbone("tiny-s"), replace(CONFIG, theta_head=head)).eval()
    theta = net(torch.randn(2, 3, 4, 12, 16), EXTENT)[2]
    start_t, start_yx = {"fc": (1, 1), "attention": (0.5, 0.8)}[head]
    for mu in (theta.mu_t, theta.mu_y, theta.mu_x):
        assert_close(mu, torch.full_like(mu, 0.5), atol=0.06, rtol=0)
    assert_close(theta.delta_t, start_t * LENGTHS / 3, rtol=0.06, atol=0)
    assert_close(theta.delta_y, torch.full((2, 3), start_yx * H / 5), rtol=0.06, atol=0)


def test_centres_stay_inside_the_axis():
    raw = torch.linspace(-50, 50, 201, requires_grad=True)
    mu = squash(raw)
    assert ((mu >= 0) & (mu <= 1)).all() and squash(torch.tensor(0.0)) == 0.5
    mu.sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("full", [0.3, 1.0, 1.5, 9.0, torch.tensor([0.3, 1.0, 9.0])[:, None]])
def test_strides_stay_in_their_bounds_for_any_raw_value(full):
    raw = torch.linspace(-50, 50, 401).expand(3, -1).clone().requires_grad_()
    delta = bounded_stride(raw, full)
    full = torch.as_tensor(full)
    assert (delta >= full.clamp(max=1.0) * (1 - 1e-5)).all()
    assert (delta <= 2 * full * (1 + 1e-5)).all()
    assert (delta.diff(dim=1) >= -1e-6).all()  # grows with raw
    assert_close(delta[:, 200], full.flatten().expand(3))  # raw = 0
    delta.sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("full", [0.3, 1.0, 1.2, 9.0, torch.tensor([0.3, 1.0, 9.0])])
def test_zooms_stay_between_one_pixel_and_the_whole_for_any_raw_value(full):
    raw = torch.linspace(-50, 50, 401).expand(3, -1).clone().requires_grad_()
    s = bounded_zoom(raw, full, start=0.75)
    smallest = 1 / torch.as_tensor(full).clamp(min=1).reshape(-1, 1).expand(3, 1)
    assert (s >= smallest - 1e-6).all() and (s <= 1 + 1e-6).all()
    assert (s.diff(dim=1) >= -1e-6).all()
    expected = smallest[:, 0].clamp(min=0.75)
    assert_close(s[:, 200], expected, atol=1e-3, rtol=0)
    s.sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("head", [FcHead, AttentionHead])
def test_theta_of_extreme_features_is_finite(head):
    module = head(CONFIG, (6, 3, 2, 4))
    h = (1e4 * torch.rand(2, 6, 3, 2, 4)).requires_grad_()
    theta = module(h, frozen_theta(EXTENT, CONFIG.detail_size, "crop"), EXTENT)
    sum(v.sum() for v in vars(theta).values()).backward()
    assert all(v.isfinite().all() for v in vars(theta).values())
    assert h.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_windows_of_the_attention_head_never_leave_the_clip():
    module = AttentionHead(CONFIG, (6, 3, 2, 4))
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=5)
    frozen = frozen_theta(EXTENT, CONFIG.detail_size, "crop")
    for _ in range(20):
        theta = module(3 * torch.rand(2, 6, 3, 2, 4), frozen, EXTENT)
        for mu, delta, n_out, L in (
            (theta.mu_t, theta.delta_t, 3, LENGTHS),
            (theta.mu_y, theta.delta_y, 5, H),
            (theta.mu_x, theta.delta_x, 6, W),
        ):
            assert (mu * L - n_out / 2 * delta >= -1e-4).all()
            assert (mu * L + n_out / 2 * delta <= L + 1e-4).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_interpolate_is_linear_and_held_at_the_ends(n):
    values, at = torch.randn(3, n), torch.linspace(-0.5, 1.5, 31).expand(3, 31)
    read = interpolate(values, at)
    for b in range(3):
        expected = np.interp(array(at[b]), (np.arange(n) + 0.5) / n, array(values[b]))
        assert_close(array(read[b]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("detach", [False, True])
def test_detach_theta_stops_the_gradient(detach):
    net = SNet(build_backbone("tiny-s"), replace(CONFIG, detach_theta=detach)).eval()
    theta = net(torch.randn(2, 3, 4, 12, 16), EXTENT)[2]
    sum(v.sum() for v in vars(theta).values()).backward()
    assert all(p.grad is not None for p in net.theta_head.parameters())
    assert all((p.grad is None) == detach for p in net.backbone.parameters())


# Eq. 5


def test_context_head_is_equation_5():
    f_m = shaken(ContextHead(5, CONFIG))
    pooled, mask = torch.randn(3, 5), topk_mask(torch.randn(3, 7), 3)
    x = np.concatenate((array(pooled), array(mask)), axis=1)
    expected = batch_norm(np.maximum(linear(x, f_m.fc), 0), f_m.bn)
    assert_close(array(f_m(pooled, mask)), expected, atol=1e-5, rtol=1e-5)


def test_snet_context_of_pooled_features_and_mask():
    net, V = snet(), torch.randn(2, 3, 4, 12, 16)
    logits, mask, _, context = net(V, EXTENT)
    assert torch.equal(mask, topk_mask(logits, 3))
    e = array(net.backbone(V)).mean((2, 3, 4))
    x = np.concatenate((e, array(mask)), axis=1)
    expected = batch_norm(np.maximum(linear(x, net.context_head.fc), 0), net.context_head.bn)
    assert_close(array(context), expected, atol=1e-4, rtol=1e-4)


def test_snet_alone_makes_no_synopsis():
    net = SNet(build_backbone("tiny-s"), CONFIG, synopsis=False)
    logits, mask, theta, context = net(torch.randn(2, 3, 4, 12, 16), EXTENT)
    assert theta is None and context is None and logits.shape == (2, 7)
    assert not [n for n, _ in net.named_parameters() if "head" in n]


def test_feature_shape_leaves_the_network_as_it_was():
    backbone = build_backbone("tiny-s").train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert feature_shape(backbone, (4, 12, 16)) == (48, 4, 3, 4)
    assert backbone.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
