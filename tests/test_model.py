"""S2DNet as a whole: each row of Table 2, batches, input formats, weights, errors."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from s2dlib.config import ModelConfig
from s2dlib.losses import s2d_loss, topk_hits
from s2dlib.model import IMAGENET_MEAN, IMAGENET_STD, Output, build_model
from s2dlib.presets import PRESETS, VARIANTS
from s2dlib.sampler import Extent, Theta, UniformSampler
from s2dlib.training.initialise import load_networks

SMALL = ModelConfig(
    n_classes=12,
    k=5,
    snet="tiny-s",
    dnet="tiny-d",
    synopsis_size=(4, 12, 12),
    detail_size=(3, 10, 10),
    context_dim=8,
    theta_dim=6,
    dropout=0.0,
)
HEADS = ("fc", "attention")
ROWS_AND_HEADS = [(row, head) for row in VARIANTS for head in HEADS]


def small(variant="a0", **changes):
    """A model with weights far from the start, in eval mode."""
    model = build_model(replace(SMALL, **changes), variant)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.uniform_(-0.3, 0.3)
                m.running_var.uniform_(0.5, 1.5)
        for name, p in model.named_parameters():
            if "branches" in name:
                p.normal_(std=0.1)
    return model.eval()


def clips(B=3, T=9, C=3):
    return torch.randint(0, 256, (B, C, T, 20, 24), dtype=torch.uint8)


def parts(out):
    """Every tensor of an Output by name."""
    theta = {} if out.theta is None else {f"theta.{k}": v for k, v in vars(out.theta).items()}
    rest = {f.name: getattr(out, f.name) for f in fields(Output) if f.name != "theta"}
    return {k: v for k, v in (rest | theta).items() if v is not None}


def assert_same(a, b, atol=2e-4):
    a, b = parts(a), parts(b)
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# Each row of Table 2


@pytest.mark.parametrize(("row", "head"), ROWS_AND_HEADS)
def test_every_parameter_gets_a_gradient(row, head):
    model = build_model(replace(PRESETS["synthetic"].model, theta_head=head), row).train()
    frames = torch.randint(0, 256, (4, 1, 64, 72, 72), dtype=torch.uint8)
    out = model(frames)
    labels = out.scores.argmax(dim=1)  # SNet has them in its top k
    s2d_loss(out, labels).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} has no gradient"
        assert p.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert p.grad.abs().max() > 1e-7, f"the gradient of {name} is {p.grad.abs().max()}"


@torch.no_grad()
@pytest.mark.parametrize(("row", "head"), ROWS_AND_HEADS)
def test_batch_equals_its_clips_one_by_one(row, head):
    model, batch, lengths = small(row, theta_head=head), clips(), [9, 4, 1]
    together = model(batch, torch.tensor(lengths))  # the padding is garbage
    for i, n in enumerate(lengths):
        alone = model(batch[i : i + 1, :, :n])
        for name, value in parts(together).items():
            assert_close(
                value[i : i + 1], parts(alone)[name], atol=2e-4, rtol=1e-4,
                msg=lambda m, n=name: f"{n}: {m}",
            )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("row", VARIANTS)
def test_padding_does_not_leak(row):
    model, lengths = small(row), torch.tensor([9, 4, 1])
    batch = clips()
    other = batch.clone()
    for i, n in enumerate(lengths):
        other[i, :, n:] = 255 - other[i, :, n:]
    a, b = parts(model(batch, lengths)), parts(model(other, lengths))
    assert all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
@pytest.mark.parametrize("row", VARIANTS)
def test_output_of_each_row(row):
    out = small(row)(clips())
    absent = {
        "a1": {"theta", "context", "detail_volume", "detail_logits"},
        "a2": {"logits", "topk_mask", "context", "synopsis_frames"},
    }.get(row, set())
    assert {f.name for f in fields(Output) if getattr(out, f.name) is None} == absent
    assert out.scores.shape == (3, 12)
    if row == "a1":
        assert_close(out.scores, out.logits.softmax(1))
    else:
        assert out.detail_volume.shape == (3, 3, 3, 10, 10)
        mask = 1 if row == "a2" else out.topk_mask
        assert_close(out.scores, out.detail_logits.softmax(1) * mask)


@torch.no_grad()
@pytest.mark.parametrize("row", ["a2", "b1", "b3"])
def test_frozen_theta_is_the_same_for_every_clip(row):
    model = small(row)
    a, b = (model(clips()).theta for _ in range(2))
    for name in vars(a):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert_close(a.delta_t, torch.full((3,), 3.0))
    assert_close(a.delta_y, torch.ones(3, 3))


@torch.no_grad()
@pytest.mark.parametrize(
    ("row", "learned"), [("a0", "tyx"), ("c2", "yx"), ("c3", "t"), ("b2", "tyx")]
)
def test_learned_theta_follows_the_clip(row, learned):
    model = small(row)
    a, b = (model(clips()).theta for _ in range(2))
    for name in vars(a):
        same = torch.equal(getattr(a, name), getattr(b, name))
        assert same == (name[-1] not in learned), name


# The whole against its parts


@torch.no_grad()
@pytest.mark.parametrize("filters", ["gaussian", "linear"])
def test_the_forward_is_figure_2(filters):
    model, frames = small(filters=filters), clips()
    n = torch.tensor([9, 4, 6])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    out = model(frames, n)
    V = UniformSampler((4, 12, 12))(frames, n)
    logits, mask, theta, context = model.snet((V / 255 - mean) / std, Extent(n, 20, 24))
    V_hat = model.detail_sampler((frames / 255 - mean) / std, theta, n)
    detail_logits = model.dnet(V_hat, context)
    scores = detail_logits.softmax(1) * mask
    volume = model.detail_sampler(frames, theta, n)
    assert_same(
        out, Output(scores, logits, mask, theta, context, V, volume, detail_logits), atol=1e-3
    )


@torch.no_grad()
def test_given_theta_is_used():
    model, frames = small(), clips()
    theta = Theta(torch.full((3,), 0.2), torch.full((3,), 0.5), *[torch.full((3, 3), 0.7)] * 4)
    out = model(frames, theta=theta)
    assert out.theta is theta
    assert_close(out.detail_volume, model.detail_sampler(frames, theta))
    assert_close(out.logits, model(frames).logits)


@torch.no_grad()
@pytest.mark.parametrize("row", ["a0", "a1", "a2"])
def test_a_constant_video_gives_constant_volumes(row):
    out = small(row)(torch.full((2, 3, 7, 20, 24), 90, dtype=torch.uint8))
    for volume in (out.synopsis_frames, out.detail_volume):
        if volume is not None:
            assert_close(volume, torch.full_like(volume, 90.0))


@torch.no_grad()
@pytest.mark.parametrize("sharp", [1.0, 30.0, 1000.0])
def test_top5_with_k_five_is_that_of_snet(sharp):
    model = small()
    model.dnet.classifier.weight *= sharp  # a verdict as sure as one likes
    out, labels = model(clips(B=60, T=4)), torch.arange(60) % 12
    snet = topk_hits(out.logits.softmax(1), labels, 5)
    assert 0 < snet.sum() < 60
    assert torch.equal(topk_hits(out.scores, labels, 5), snet)


@torch.no_grad()
def test_the_prediction_is_one_of_the_top_k():
    out = small(k=2)(clips(B=40, T=4))
    assert (out.topk_mask.sum(1) == 2).all()
    assert (out.topk_mask.gather(1, out.scores.argmax(1, keepdim=True)) == 1).all()


# Input


@torch.no_grad()
@pytest.mark.parametrize("row", ["a0", "a1", "a2"])
def test_uint8_and_float_frames_agree(row):
    model, frames = small(row), clips()
    a, b = model(frames), model(frames / 255)
    for name in ("scores", "logits", "detail_logits", "context"):
        if getattr(a, name) is not None:
            assert_close(getattr(a, name), getattr(b, name), atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("row", ["a0", "a1", "a2"])
def test_gray_clips_are_clips_of_three_equal_channels(row):
    model, gray = small(row), clips(C=1)
    a, b = model(gray), model(gray.expand(-1, 3, -1, -1, -1))
    for name in ("scores", "logits", "detail_logits", "context"):
        if getattr(a, name) is not None:
            assert_close(getattr(a, name), getattr(b, name), atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (30, 41, 12)])
@pytest.mark.parametrize("head", HEADS)
def test_any_length_and_size_of_frames_is_taken(shape, head):
    out = small(theta_head=head)(torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8))
    assert all(v.isfinite().all() for v in parts(out).values())


@torch.no_grad()
@pytest.mark.parametrize(("k", "n_classes"), [(1, 1), (1, 3), (4, 4), (7, 40)])
@pytest.mark.parametrize("head", HEADS)
def test_any_k_n_classes_and_sizes_are_taken(k, n_classes, head):
    model = small(
        k=k, n_classes=n_classes, theta_head=head, synopsis_size=(1, 3, 5), detail_size=(2, 1, 4)
    )
    out = model(clips())
    assert out.scores.shape == (3, n_classes) and out.topk_mask.sum(1).tolist() == [k] * 3


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_at_shrunken_sizes(name):
    size = (5, 64, 64) if name == "tdn-r50" else (2, 32, 32)  # one segment, halved once more
    sizes = {"synopsis_size": size, "detail_size": (3, 32, 32)}
    config = replace(PRESETS[name].model, n_classes=9, k=5, **sizes)
    out = build_model(config).eval()(torch.rand(2, 3, 5, 40, 40), torch.tensor([5, 2]))
    assert out.scores.shape == (2, 9) and out.scores.isfinite().all()
    if config.dnet is None:  # a single network
        assert out.detail_volume is None and config.synopsis_size == out.synopsis_frames.shape[2:]
    else:
        assert out.detail_volume.shape == (2, 3, 3, 32, 32)


# Training


@pytest.mark.parametrize("head", HEADS)
def test_a_seed_repeats_the_same_losses(head):
    def losses():
        torch.manual_seed(5)
        model = build_model(replace(SMALL, theta_head=head, dropout=0.5)).train()
        frames, labels = clips(B=6), torch.randint(0, 12, (6,))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        values = []
        for _ in range(4):
            loss = s2d_loss(model(frames), labels, alpha=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    first = losses()
    assert first == losses() and len(set(first)) == 4


@pytest.mark.parametrize("head", HEADS)
def test_a_few_steps_lower_the_loss(head):
    model = build_model(replace(SMALL, theta_head=head)).train()
    frames, labels = clips(B=8), torch.arange(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    values = []
    for _ in range(25):
        loss = s2d_loss(model(frames), labels, alpha=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


# Weights of other runs


@torch.no_grad()
def test_load_networks_trained_alone(tmp_path):
    s, d, frames = small("a1"), small("a2", frozen_space="full"), clips()
    save_file(s.state_dict(), tmp_path / "s.safetensors")
    save_file(d.state_dict(), tmp_path / "d.safetensors")
    model = small("b1", frozen_space="full")
    load_networks(model, tmp_path / "s.safetensors", tmp_path / "d.safetensors")
    out = model(frames)
    assert_close(out.logits, s(frames).logits)
    C_D = d.dnet.classifier.in_features
    assert torch.equal(model.dnet.classifier.weight[:, :C_D], d.dnet.classifier.weight)
    verdict = out.detail_logits - out.context @ model.dnet.classifier.weight[:, C_D:].T
    assert_close(verdict, d(frames).detail_logits, atol=1e-4, rtol=1e-4)


def test_load_networks_of_a_first_stage(tmp_path):
    first, second = small(), small()
    assert not torch.equal(first.snet.classifier.weight, second.snet.classifier.weight)
    save_file(first.state_dict(), tmp_path / "first.safetensors")
    load_networks(second, tmp_path / "first.safetensors", tmp_path / "first.safetensors")
    for name, value in first.state_dict().items():
        assert_close(second.state_dict()[name], value)


def test_load_networks_of_a_file_without_a_classifier_start_the_rest_of_dnet(tmp_path):
    alone, model = small("a2"), small()
    state = {k: v for k, v in alone.state_dict().items() if "classifier" not in k}
    save_file(state, tmp_path / "d.safetensors")
    before = model.dnet.classifier.weight.clone()
    load_networks(model, None, tmp_path / "d.safetensors")
    assert torch.equal(model.dnet.classifier.weight, before)
    for name, value in model.state_dict().items():
        if name in state:
            assert torch.equal(value, state[name]), name


def test_load_networks_that_do_not_fit(tmp_path):
    s, d = tmp_path / "s.safetensors", tmp_path / "d.safetensors"
    save_file(small("a1", n_classes=9).state_dict(), s)
    save_file(small("a2", n_classes=9).state_dict(), d)
    with pytest.raises(ValueError, match=r"s.safetensors.*classifier"):
        load_networks(small(), s, None)
    with pytest.raises(ValueError, match=r"s.safetensors.*does not have"):
        load_networks(small("a2"), s, None)
    with pytest.raises(ValueError, match=r"d.safetensors.*snet"):
        load_networks(small(), d, None)
    with pytest.raises(ValueError, match=r"d.safetensors.*classifier"):
        load_networks(small(), None, d)


# Errors


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'mini-kinetic'.*synthetic.*mini-kinetics"):
        build_model("mini-kinetic")
    with pytest.raises(ValueError, match="'d1'.*a0, a1"):
        build_model("synthetic", variant="d1")
    with pytest.raises(ValueError, match="'vgg'.*tiny-s"):
        build_model(replace(SMALL, snet="vgg"))


def test_the_number_of_classes_can_be_given():
    model = build_model("synthetic", n_classes=3)
    assert model.config.n_classes == model.config.k == 3
    assert model.snet.classifier.out_features == model.dnet.classifier.out_features == 3
    with pytest.raises(ValueError, match="got 0"):
        build_model("synthetic", n_classes=0)


@pytest.mark.parametrize(
    "shape", [(3, 9, 20, 24), (1, 2, 9, 20, 24), (0, 3, 9, 20, 24), (1, 3, 0, 20, 24)]
)
@pytest.mark.parametrize("row", ["a0", "a1", "a2"])
def test_frames_of_a_wrong_shape_are_named(row, shape):
    with pytest.raises(ValueError, match="frames must be") as error:
        small(row)(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_empty_clips_are_named():
    with pytest.raises(ValueError, match=r"T=9.*\[9, 0, 3\]"):
        small()(clips(), torch.tensor([9, 0, 3]))
