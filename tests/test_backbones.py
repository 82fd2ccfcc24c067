"""Backbones: the shift against a loop, the stages against torchvision's own networks."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import mobilenet_v2, resnet50

from s2dlib.backbones import tsm
from s2dlib.backbones.build import BACKBONES, build_backbone
from s2dlib.backbones.tsm import temporal_shift

TORCHVISION = {"mobilenet_v2": mobilenet_v2, "resnet50": resnet50}


def torchvision_features(net, images):
    """What the classifier of a torchvision network sees, before its pooling. (n, 3, H, W)"""
    if hasattr(net, "features"):
        return net.features(images)
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


@torch.no_grad()
def trained_like(net):
    """Batch norms that keep the signal alive to the last layer, each with its own statistics."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.3, 0.3)
    net.train()(torch.randn(4, 3, 48, 48))
    return net.eval()


@pytest.fixture(scope="module", params=TORCHVISION)
def pair(request, tmp_path_factory):
    """A torchvision network, and our backbone with its weights, read from a local file."""
    torch.manual_seed(0)
    net = trained_like(TORCHVISION[request.param](weights=None))
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(net.state_dict(), path)
    return net.double(), build_backbone(request.param, str(path)).eval().double()


@pytest.mark.parametrize(("T", "C"), [(1, 16), (2, 16), (5, 24), (3, 20), (4, 7)])
def test_temporal_shift_copies_an_eighth_of_the_channels_each_way(T, C):
    x = torch.randn(2, T, C, 3, 2)
    shifted = temporal_shift(x.flatten(0, 1), T).unflatten(0, (2, T))
    for b in range(2):
        for t in range(T):
            for c in range(C):
                source = t + 1 if c < C // 8 else t - 1 if c < 2 * (C // 8) else t
                expected = x[b, source, c] if 0 <= source < T else torch.zeros(3, 2)
                assert torch.equal(shifted[b, t, c], expected), (b, t, c)


def test_temporal_shift_keeps_clips_apart():
    x = torch.zeros(2, 3, 8, 1, 1)
    x[1] = 1
    assert temporal_shift(x.flatten(0, 1), 3)[:3].abs().sum() == 0


@torch.no_grad()
def test_stages_without_shift_equal_torchvision(pair, monkeypatch):
    net, ours = pair
    monkeypatch.setattr(tsm, "temporal_shift", lambda x, n_frames: x)
    video = torch.randn(2, 3, 2, 36, 33).double()
    features = ours(video)
    for t in range(2):
        expected = torchvision_features(net, video[:, :, t])
        assert_close(features[:, :, t], expected)


@torch.no_grad()
def test_temporal_shift_of_a_single_frame(pair):
    net, ours = pair
    blocks = [m for m in net.modules() if getattr(m, "use_res_connect", False)]  # MobileNetV2
    firsts = [m.conv[0][0] for m in blocks] + [
        m.conv1 for m in net.modules() if hasattr(m, "conv3")
    ]
    kept = [conv.weight.clone() for conv in firsts]
    for conv in firsts:
        conv.weight[:, : 2 * (conv.in_channels // 8)] = 0  # both neighbours are zeros
    images = torch.randn(2, 3, 36, 33).double()
    try:
        assert len(firsts) == (10 if blocks else 16)
        expected = torchvision_features(net, images)
        assert_close(ours(images[:, :, None])[:, :, 0], expected)
    finally:
        for conv, weight in zip(firsts, kept, strict=True):
            conv.weight.copy_(weight)


@torch.no_grad()
def test_temporal_shift_lets_a_frame_see_its_neighbours(pair):
    _, ours = pair
    video = torch.randn(1, 3, 3, 32, 32).double()
    changed = video.clone()
    changed[:, :, 2] += 1
    assert not torch.allclose(ours(video)[:, :, 1], ours(changed)[:, :, 1], atol=1e-2)


@torch.no_grad()
def test_stages_have_the_channels_and_the_strides_they_say(pair):
    video, strides = torch.randn(1, 3, 2, 64, 64).double(), []
    for name, stage in pair[1].stages.items():
        video = stage(video)
        assert video.shape[1] == pair[1].channels[name] and video.shape[2] == 2
        strides.append(64 // video.shape[3])
    assert strides in ([2, 4, 8, 16, 32], [4, 4, 8, 16, 32])
    assert pair[1].out_channels == video.shape[1]


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"tiny-s"}))  # which is SNet's alone
def test_backbones_have_the_stages_that_are_fused(name):
    with torch.device("meta"):  # no memory, no random numbers
        assert {"res3", "res4"} <= set(build_backbone(name).stages)


KEYS = {  # SHA-256 of the keys of each backbone's weights, in order
    "mobilenet_v2": "038a9fb693b9",
    "resnet50": "2c631338075d",
    "x3d-s": "0fcf6165b458",
    "x3d-m": "0fcf6165b458",
    "x3d-xl": "f434f2fc7f8c",
    "tdn-r50": "0943557dda95",
    "swin3d-t": "cf5f9c1e2f1f",
    "tiny-s": "1c4e91283d6f",
    "tiny-d": "b302e764692e",
    "tiny-3d": "62fc6e22576c",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_keys_of_weights_stay_those_of_older_runs(name):
    with torch.device("meta"):
        keys = "\n".join(build_backbone(name).state_dict())
    assert hashlib.sha256(keys.encode()).hexdigest()[:12] == KEYS[name]


@pytest.mark.parametrize("name", ["tiny-s", "tiny-d", "tiny-3d"])
def test_tiny_backbones_take_any_length_and_size(name):
    net = build_backbone(name).eval()
    for T, H, W in ((1, 1, 1), (3, 18, 18), (2, 7, 30)):
        features = net(torch.randn(2, 3, T, H, W))
        assert features.shape[:3] == (2, net.out_channels, T) and features.isfinite().all()


def test_weights_of_a_file_all_arrive(pair):
    net, ours = pair
    theirs = [v for k, v in net.state_dict().items() if not k.startswith(("classifier.", "fc."))]
    ours = {v.numpy().tobytes() for v in ours.state_dict().values()}
    assert ours == {v.numpy().tobytes() for v in theirs}


def tsm_names(state, mobilenet):
    """A torchvision state_dict under the names of a TSM checkpoint, as its authors save it."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if mobilenet and len(parts) > 3 and parts[2] == "conv":
            n = 1 if parts[1] == "1" else 2  # convolutions that have their own batch norm inside
            if int(parts[3]) < n:  # conv.<i>.<0 or 1>.weight -> 3 i + 0 or 1
                parts[3:5] = [str(3 * int(parts[3]) + int(parts[4]))]
            else:
                parts[3] = str(3 * n + int(parts[3]) - n)
            if parts[3] == "0" and n == 2 and value.ndim == 4 and parts[1] in ("3", "5", "6"):
                parts.insert(4, "net")  # shifted
        if not mobilenet and key.startswith("layer") and parts[2] == "conv1":
            parts.insert(3, "net")
        name = ".".join(parts)
        last = name.startswith(("classifier", "fc."))
        renamed["module." + ("new_fc." + parts[-1] if last else "base_model." + name)] = value
    return {"state_dict": renamed}


def test_weights_of_a_tsm_checkpoint_all_arrive(pair, tmp_path):
    net, ours = pair
    mobilenet = hasattr(net, "features")
    path = tmp_path / "tsm.pth"
    torch.save(tsm_names({k: v.float() for k, v in net.state_dict().items()}, mobilenet), path)
    loaded = build_backbone("mobilenet_v2" if mobilenet else "resnet50", str(path)).double()
    for name, value in ours.state_dict().items():
        assert_close(loaded.state_dict()[name], value, atol=1e-6, rtol=1e-6)


# Errors


def test_an_unknown_backbone_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet51'.*mobilenet_v2.*resnet50"):
        build_backbone("resnet51")


def test_weights_for_a_backbone_without_are_refused():
    with pytest.raises(ValueError, match=r"tiny-s.*'DEFAULT'"):
        build_backbone("tiny-s", "DEFAULT")


def test_weights_file_missing_is_named():
    with pytest.raises(FileNotFoundError, match=r"'nowhere.pth'.*IMAGENET1K_V1"):
        build_backbone("mobilenet_v2", "nowhere.pth")


def test_weights_of_another_network_are_refused_by_key(tmp_path):
    path = tmp_path / "other.pth"
    state = mobilenet_v2(weights=None).state_dict()
    state["features.0.0.weight"] = state["features.0.0.weight"][:, :1]  # a gray network
    state["odd.weight"] = torch.zeros(1)
    del state["features.1.conv.1.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"3 keys") as error:
        build_backbone("mobilenet_v2", str(path))
    for name in (str(path), "features.0.0.weight", "odd.weight", "features.1.conv.1.weight"):
        assert name in str(error.value)


def test_weights_with_another_classifier_arrive(tmp_path):
    path = tmp_path / "ten.pth"
    state = mobilenet_v2(weights=None, num_classes=10).state_dict()
    torch.save(state, path)
    arrived = {
        v.numpy().tobytes() for v in build_backbone("mobilenet_v2", str(path)).state_dict().values()
    }
    assert state["features.18.0.weight"].numpy().tobytes() in arrived
