"""DNet against Eq. 8-10 written out with numpy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from s2dlib.backbones.build import build_backbone
from s2dlib.detail import DNet, LateralFusion


def array(tensor):
    return tensor.detach().double().numpy()


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


def concatenated(fusion, features, context):
    """Eq. 9 as printed: a convolution over [e-hat, E(m)], with batch norm and ReLU."""
    E = context[:, :, None, None, None].expand(-1, -1, *features.shape[2:])
    return F.relu(fusion.bn(F.conv3d(torch.cat((features, E), dim=1), fusion.conv.weight)))


def test_fusion_is_equation_9_position_by_position():
    fusion = shaken(LateralFusion(4, 3))
    features, context = torch.randn(2, 4, 2, 3, 2), torch.randn(2, 3)
    fused, weight, bn = array(fusion(features, context)), array(fusion.conv.weight), fusion.bn
    for b, c, t, y, x in np.ndindex(*fused.shape):
        column = np.concatenate((array(features[b, :, t, y, x]), array(context[b])))
        value = sum(weight[c, i, 0, 0, 0] * column[i] for i in range(7))
        value = (value - bn.running_mean[c].item()) / (bn.running_var[c].item() + bn.eps) ** 0.5
        value = value * bn.weight[c].item() + bn.bias[c].item()
        assert fused[b, c, t, y, x] == pytest.approx(max(value, 0.0), abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_fusion_factorised_equals_plain_convolution(training):
    fusion = shaken(LateralFusion(6, 5)).double().train(training)
    inputs = [torch.randn(3, 6, 2, 4, 3).double(), torch.randn(3, 5).double()]
    results = []
    for f in (fusion, lambda *x: concatenated(fusion, *x)):
        leaves = [v.clone().requires_grad_() for v in inputs]
        fusion.zero_grad()
        out = f(*leaves)
        (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
        grads = [p.grad.clone() for p in fusion.parameters()]
        results.append([out.detach(), *(v.grad for v in leaves), *grads])
    for ours, plain in zip(*results, strict=True):
        assert_close(ours, plain)


def test_fusion_starts_close_to_the_identity():
    fusion = LateralFusion(32, 8).eval()
    features = torch.rand(2, 32, 2, 3, 3)
    assert_close(fusion(features, torch.zeros(2, 8)), features, atol=0.5, rtol=0)


@pytest.mark.parametrize("fuse", [True, False])
def test_dnet_fuses_after_res3_and_res4(fuse):
    net = shaken(DNet(build_backbone("tiny-d"), 7, context_dim=5, fuse=fuse, dropout=0.5))
    volume, context = torch.randn(2, 3, 3, 20, 20), torch.randn(2, 5)
    x = net.backbone.stages["stem"](volume)
    x = net.backbone.stages["res3"](x)
    x = concatenated(net.fusions["res3"], x, context) if fuse else x
    x = net.backbone.stages["res4"](x)
    x = concatenated(net.fusions["res4"], x, context) if fuse else x
    e_hat = array(net.backbone.stages["res5"](x))
    assert set(net.fusions) == ({"res3", "res4"} if fuse else set())

    pooled = np.array([[e_hat[b, c].sum() / e_hat[b, c].size for c in range(64)] for b in range(2)])
    column = np.concatenate((pooled, array(context)), axis=1)  # Eq. 10
    expected = column @ array(net.classifier.weight).T + array(net.classifier.bias)
    assert_close(array(net(volume, context)), expected, atol=1e-3, rtol=1e-4)


def test_dnet_alone_has_no_fusion():
    net = shaken(DNet(build_backbone("tiny-d"), 7, context_dim=0, fuse=True, dropout=0.5))
    volume = torch.randn(2, 3, 3, 20, 20)
    pooled = array(net.backbone(volume)).mean((2, 3, 4))
    expected = pooled @ array(net.classifier.weight).T + array(net.classifier.bias)
    assert len(net.fusions) == 0
    assert_close(array(net(volume)), expected, atol=1e-3, rtol=1e-4)


def test_dnet_logits_depend_on_context():
    net = shaken(DNet(build_backbone("tiny-d"), 7, context_dim=5, fuse=True, dropout=0.0))
    volume = torch.randn(1, 3, 3, 20, 20)
    assert not torch.allclose(net(volume, torch.zeros(1, 5)), net(volume, torch.ones(1, 5)))
