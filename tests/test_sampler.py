"""The samplers against Eq. 6-7 written out in loops, in float64."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from s2dlib.kernels import band
from s2dlib.sampler import (
    DetailSampler,
    Extent,
    Theta,
    UniformSampler,
    anchored_zoom,
    check_clips,
    frozen_theta,
    gaussian_filters,
    grid_centres,
    linear_filters,
    log_stride_bounds,
)
from s2dlib.training.windows import distance_to_truth, random_theta, true_theta

# References


def centres(mu, delta, n_out, length):
    """Eq. 6, z from 1."""
    return [mu * length + (z - n_out / 2 - 0.5) * delta for z in range(1, n_out + 1)]


def gaussian(p, length, total):
    """Eq. 7: the weights of one centre on `total` inputs, of which the first `length` are real."""
    weights = [math.exp(-((p - (r + 0.5)) ** 2) / 2) if r < length else 0.0 for r in range(total)]
    return [w / sum(weights) for w in weights]


def linear(p, length, total):
    """The two inputs beside a centre share it; a centre beyond the border goes to the border."""
    x = min(max(p - 0.5, 0.0), length - 1.0)
    left, weights = min(int(x), length - 1), [0.0] * total
    weights[left] = 1 - (x - left)
    if left + 1 < length:
        weights[left + 1] = x - left
    return weights


def detail_volume(frames, theta, size, lengths, weigh=gaussian):
    """V-hat = G_X G_Y G_T I, a sum over r, v, u for every z, j, i. frames: (B, C, T, H, W)"""
    (B, C, T, H, W), (T_D, H_D, W_D) = frames.shape, size
    volume = np.zeros((B, C, T_D, H_D, W_D))
    for b in range(B):
        p_t = centres(theta["mu_t"][b], theta["delta_t"][b], T_D, lengths[b])
        for z in range(T_D):
            G_t = weigh(p_t[z], lengths[b], T)
            p_y = centres(theta["mu_y"][b, z], theta["delta_y"][b, z], H_D, H)
            p_x = centres(theta["mu_x"][b, z], theta["delta_x"][b, z], W_D, W)
            for j in range(H_D):
                G_y = weigh(p_y[j], H, H)
                for i in range(W_D):
                    G = np.multiply.outer(np.multiply.outer(G_t, G_y), weigh(p_x[i], W, W))
                    volume[b, :, z, j, i] = [(G * frames[b, c]).sum() for c in range(C)]
    return volume


def resized(image, size):
    """Bilinear with antialiasing: triangles as wide as an output pixel, at least an input one."""
    for axis, n_out in enumerate(size):
        n_in = image.shape[axis]
        scale = n_in / n_out
        rows = []
        for i in range(n_out):
            away = np.abs(np.arange(n_in) + 0.5 - (i + 0.5) * scale) / max(scale, 1.0)
            weights = np.maximum(0, 1 - away)
            rows.append(np.tensordot(weights / weights.sum(), image, (0, axis)))
        image = np.stack(rows, axis)
    return image


def numbers(B, T_D, seed=0):
    """Six parameters near the middle of a small clip, as float64 arrays."""
    rng = np.random.default_rng(seed)
    shapes = [(B,), (B,), *[(B, T_D)] * 4]
    values = [rng.uniform(0.3, 0.7, s) for s in shapes]
    for i in (1, 4, 5):
        values[i] = rng.uniform(0.6, 1.8, shapes[i])
    return dict(zip([f.name for f in fields(Theta)], values, strict=True))


def as_theta(values, dtype=torch.float32):
    return Theta(**{k: torch.as_tensor(v, dtype=dtype) for k, v in values.items()})


def theta_of(B, T_D, mu=0.5, delta=1.0):
    """The same window in every frame of every clip."""
    return Theta(
        *(torch.full((B,), v) for v in (mu, delta)),
        *(torch.full((B, T_D), v) for v in (mu, mu, delta, delta)),
    )


# Eq. 6


@pytest.mark.parametrize("n_out", [1, 2, 5])
@pytest.mark.parametrize("n_in", [1, 7, 30])
def test_grid_centres_are_equation_6(n_out, n_in):
    mu, delta = torch.rand(3, 2, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64) * 4
    p = grid_centres(mu, delta, n_out, n_in)
    for b, z in np.ndindex(3, 2):
        expected = centres(float(mu[b, z]), float(delta[b, z]), n_out, n_in)
        assert_close(p[b, z], torch.tensor(expected, dtype=torch.float64))


def test_grid_centres_of_clips_of_different_lengths():
    mu, delta = torch.tensor([0.5, 0.25]).double(), torch.tensor([1.0, 2.0]).double()
    p = grid_centres(mu, delta, 4, torch.tensor([8, 20]))
    expected = torch.tensor([[2.5, 3.5, 4.5, 5.5], [2.0, 4.0, 6.0, 8.0]], dtype=torch.float64)
    assert_close(p, expected)


def test_grid_centres_at_stride_one_are_the_identity():
    p = grid_centres(torch.tensor(0.5), torch.tensor(1.0), n_out=9, n_in=9)
    assert_close(p, torch.arange(9) + 0.5)
    assert_close(linear_filters(p, 9), torch.eye(9))
    assert (gaussian_filters(p, 9).argmax(dim=1) == torch.arange(9)).all()


# Eq. 7


@pytest.mark.parametrize(
    ("filters", "weigh"), [(gaussian_filters, gaussian), (linear_filters, linear)]
)
def test_filters_are_their_definition(filters, weigh):
    p = torch.tensor([[-2.0, 0.1, 0.5, 3.0, 3.3], [1.2, 4.9, 6.4, 8.0, 11.0]], dtype=torch.float64)
    for lengths in ([9, 9], [9, 5], [1, 7]):
        G = filters(p, 9, torch.tensor(lengths, dtype=torch.float64))
        for b, z in np.ndindex(2, 5):
            expected = weigh(float(p[b, z]), lengths[b], 9)
            assert_close(G[b, z], torch.tensor(expected, dtype=torch.float64))
    assert_close(filters(p, 9), filters(p, 9, torch.tensor([9.0, 9.0]).double()))


@pytest.mark.parametrize("filters", [gaussian_filters, linear_filters])
@pytest.mark.parametrize("mu", [-300.0, -3.0, 0.5, 4.0, 300.0])
def test_filters_sum_to_one_and_carry_gradient(filters, mu):
    mu, delta = torch.tensor(mu, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    G = filters(grid_centres(mu, delta, n_out=4, n_in=16), n_in=16)
    assert_close(G.sum(dim=-1), torch.ones(4))
    (G @ torch.linspace(0, 1, 16)).sum().backward()
    assert mu.grad.isfinite() and delta.grad.isfinite()
    assert (mu.grad > 0.1) == (0 < mu < 1)  # where the grid is on screen, mu moves what is seen


@pytest.mark.parametrize("filters", [gaussian_filters, linear_filters])
def test_filters_off_screen_repeat_the_border(filters):
    G = filters(torch.tensor([[-50.0, 100.0], [-50.0, 100.0]]), 10, torch.tensor([10.0, 6.0]))
    assert_close(G[0], torch.eye(10)[[0, 9]])
    assert_close(G[1], torch.eye(10)[[0, 5]])  # the last real frame, not the padding


def test_gaussian_filters_hold_no_subnormal_number():
    p = torch.linspace(-40, 110, 400)[:, None]  # also far beyond the border
    taps = band.band(p, torch.tensor(72))
    for weights in (gaussian_filters(p, 72), band.filters(p, 72)[0], taps.weights):
        assert (weights[weights != 0] > 1e-23).all() and (weights == 0).any()
    # The same as a softmax of all: what is left out lies below any digit of float64, too.
    r = torch.arange(72, dtype=torch.float64) + 0.5
    every = (-((p.double()[..., None] - r) ** 2) / 2).softmax(-1)
    assert_close(gaussian_filters(p.double(), 72), every, rtol=0, atol=1e-20)


@pytest.mark.parametrize("filters", [gaussian_filters, linear_filters])
def test_filters_pass_gradcheck(filters):
    mu = torch.tensor([0.31, 0.62], dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([0.83, 1.37], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9.0, 7.0], dtype=torch.float64)

    def both(mu, delta):
        return filters(grid_centres(mu, delta, 4, lengths), 9, lengths)

    assert torch.autograd.gradcheck(both, (mu, delta), eps=1e-7, atol=1e-5)


# The detail volume


@pytest.mark.parametrize(("name", "weigh"), [("gaussian", gaussian), ("linear", linear)])
@pytest.mark.parametrize("lengths", [[7, 7], [7, 4], [1, 6]])
def test_detail_volume_is_the_sum_over_the_clip(name, weigh, lengths):
    frames = np.random.default_rng(1).uniform(0, 255, (2, 3, 7, 6, 5))
    size, values = (3, 4, 2), numbers(2, 3)
    volume = DetailSampler(size, name)(
        torch.tensor(frames), as_theta(values), torch.tensor(lengths)
    )
    expected = detail_volume(frames, values, size, lengths, weigh)
    assert_close(volume.double(), torch.tensor(expected), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("name", "weigh"), [("gaussian", gaussian), ("linear", linear)])
def test_detail_volume_gradient_of_theta(name, weigh):
    rng = np.random.default_rng(2)
    frames, size, lengths = rng.standard_normal((2, 1, 6, 5, 6)), (2, 3, 2), [6, 5]
    upstream, values = rng.standard_normal((2, 1, *size)), numbers(2, 2, seed=3)
    theta = as_theta(values).map(lambda v: v.requires_grad_())
    volume = DetailSampler(size, name)(torch.tensor(frames), theta, torch.tensor(lengths))
    (volume * torch.tensor(upstream)).sum().backward()

    def objective(changed):
        return (detail_volume(frames, changed, size, lengths, weigh) * upstream).sum()

    eps = 1e-5
    for parameter, value in values.items():
        for where in np.ndindex(value.shape):
            step = np.zeros_like(value)
            step[where] = eps
            up, down = (
                objective(values | {parameter: value + sign * step}) for sign in (1.0, -1.0)
            )
            slope = getattr(theta, parameter).grad[where].item()
            assert slope == pytest.approx((up - down) / (2 * eps), abs=2e-4), (parameter, where)


def test_detail_volume_gradient_of_frames():
    frames = torch.rand(1, 3, 4, 5, 5, requires_grad=True)
    volume = DetailSampler((2, 3, 3))(frames, theta_of(1, 2))
    volume.sum().backward()
    assert frames.grad.sum().item() == pytest.approx(volume.numel())  # each row sums to 1


@pytest.mark.parametrize("name", ["gaussian", "linear"])
def test_detail_volume_of_a_constant_video(name):
    frames = torch.full((2, 3, 6, 9, 8), 77, dtype=torch.uint8)
    theta = as_theta(numbers(2, 4))
    theta.mu_y[0], theta.delta_x[1] = 1.4, 9.0  # off-screen too
    volume = DetailSampler((4, 5, 3), name)(frames, theta, torch.tensor([6, 2]))
    assert_close(volume, torch.full_like(volume, 77.0))


def test_detail_volume_identity_of_linear_filters():
    frames = torch.randint(0, 256, (2, 3, 5, 6, 7), dtype=torch.uint8)
    volume = DetailSampler((5, 6, 7), "linear")(frames, theta_of(2, 5))
    assert_close(volume, frames.float(), atol=1e-3, rtol=0)


def test_detail_volume_identity_of_gaussian_filters_keeps_a_ramp():
    ramp = torch.arange(20.0)[None, None, :, None, None].expand(1, 3, 20, 20, 20)
    volume = DetailSampler((20, 20, 20))(ramp, theta_of(1, 20))
    assert_close(volume[:, :, 5:15], ramp[:, :, 5:15], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["gaussian", "linear"])
@pytest.mark.parametrize(("mu", "border"), [(-40.0, 0), (40.0, -1)])
def test_detail_volume_off_screen_is_the_border(name, mu, border):
    frames = torch.rand(2, 3, 5, 6, 7)
    theta = theta_of(2, 4, mu=mu).map(lambda v: v.requires_grad_())
    lengths = torch.tensor([5, 3])
    volume = DetailSampler((4, 3, 2), name)(frames, theta, lengths)
    last = [frames[b, :, 0 if border == 0 else n - 1] for b, n in enumerate(lengths)]
    expected = torch.stack(last)[:, :, None, None, None, border, border].expand_as(volume)
    assert_close(volume.detach(), expected)
    volume.sum().backward()
    assert all(getattr(theta, f.name).grad.isfinite().all() for f in fields(Theta))


@pytest.mark.parametrize("name", ["gaussian", "linear"])
def test_detail_volume_of_a_batch_equals_its_clips(name):
    clips = [torch.randint(0, 256, (3, n, 6, 7), dtype=torch.uint8) for n in (4, 9, 1)]
    batch = torch.randint(0, 256, (3, 3, 9, 6, 7), dtype=torch.uint8)  # garbage in the padding
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    theta, sampler = as_theta(numbers(3, 4)), DetailSampler((4, 3, 5), name)
    together = sampler(batch, theta, torch.tensor([4, 9, 1]))
    for i, clip in enumerate(clips):
        alone = sampler(clip[None], theta.map(lambda v, i=i: v[i : i + 1]))
        assert_close(together[i : i + 1], alone)


def test_detail_volume_commutes_with_normalisation():
    frames, theta = torch.rand(2, 3, 6, 8, 8), as_theta(numbers(2, 4))
    mean, std = torch.rand(3, 1, 1, 1), torch.rand(3, 1, 1, 1) + 0.5
    sampler = DetailSampler((4, 3, 5))
    after = (sampler(frames, theta) - mean) / std
    assert_close(sampler((frames - mean) / std, theta), after)


# The synopsis sampler


@pytest.mark.parametrize("T_S", [1, 3, 6, 8, 16, 20])
def test_uniform_sampler_takes_the_middle_of_equal_segments(T_S):
    lengths = torch.arange(1, 151)
    index = torch.arange(150.0).view(1, 1, 150, 1, 1).expand(150, 1, 150, 1, 1)
    picked = UniformSampler((T_S, 1, 1))(index, lengths)[:, 0, :, 0, 0]
    for n, row in zip(lengths.tolist(), picked.tolist(), strict=True):
        assert row == [(2 * z + 1) * n // (2 * T_S) for z in range(T_S)], n


@pytest.mark.parametrize("size", [(4, 5), (9, 9), (12, 20)])
def test_uniform_sampler_resizes_with_antialiasing(size):
    frames = torch.randint(0, 256, (2, 3, 4, 9, 11), dtype=torch.uint8)
    V = UniformSampler((2, *size))(frames, torch.tensor([4, 2]))
    for b, c, z in np.ndindex(2, 3, 2):
        image = frames[b, c, (2 * z + 1) * (4, 2)[b] // 4].double().numpy()
        assert_close(V[b, c, z].double(), torch.tensor(resized(image, size)), atol=1e-3, rtol=0)


def test_uniform_sampler_of_a_constant_video():
    frames = torch.full((1, 3, 5, 9, 8), 200, dtype=torch.uint8)
    V = UniformSampler((3, 4, 6))(frames, torch.tensor([5]))
    assert_close(V, torch.full((1, 3, 3, 4, 6), 200.0))


# Theta


@pytest.mark.parametrize("space", ["crop", "full"])
def test_frozen_theta_is_uniform_in_time_crop_or_full_in_space(space):
    size, (H, W) = (4, 6, 5), (20, 25)
    theta = frozen_theta(Extent(torch.tensor([12, 30]), H, W), size, space)
    p_t = grid_centres(theta.mu_t, theta.delta_t, 4, torch.tensor([12, 30]))
    assert_close(p_t, torch.tensor([[1.5, 4.5, 7.5, 10.5], [3.75, 11.25, 18.75, 26.25]]))
    p_y = grid_centres(theta.mu_y, theta.delta_y, 6, H)
    p_x = grid_centres(theta.mu_x, theta.delta_x, 5, W)
    y = torch.arange(6) + 7.5 if space == "crop" else (torch.arange(6) + 0.5) * 20 / 6
    x = torch.arange(5) + 10.5 if space == "crop" else (torch.arange(5) + 0.5) * 25 / 5
    assert_close(p_y, y.expand(2, 4, 6))
    assert_close(p_x, x.expand(2, 4, 5))


def test_frozen_theta_zoom_is_a_window_in_the_middle():
    n, size = torch.tensor([12, 30]), (4, 6, 5)
    theta = frozen_theta(Extent(n, 20, 25), size, "full", zoom=(0.5, 0.7))
    p_t = grid_centres(theta.mu_t, theta.delta_t, 4, n)
    assert_close(p_t, torch.tensor([[3.75, 5.25, 6.75, 8.25], [9.375, 13.125, 16.875, 20.625]]))
    for mu, delta, L, n_out in (
        (theta.mu_y, theta.delta_y, 20, 6),
        (theta.mu_x, theta.delta_x, 25, 5),
    ):
        assert_close(mu, torch.full((2, 4), 0.5))
        assert_close(n_out * delta, torch.full((2, 4), 0.7 * L))


def test_a_frozen_window_lies_where_it_is_told_in_time_and_space():
    theta = frozen_theta(
        Extent(torch.tensor([12, 30]), 20, 25), (4, 6, 5), "full", (0.5, 0.7), (0.6, 0.3, 0.8)
    )
    assert_close(theta.mu_t, torch.full((2,), 0.6))
    assert_close(theta.mu_y, torch.full((2, 4), 0.3))
    assert_close(theta.mu_x, torch.full((2, 4), 0.8))
    assert_close(theta.delta_t, torch.tensor([1.5, 3.75]))


def test_true_theta_is_a_window_of_twice_the_detail():
    size, n = (4, 6, 5), torch.tensor([40, 40, 8])
    truth = torch.tensor([[10.0, 6, 9, 30, 12], [39, 100, 90, 5, 5], [4, 0.5, 1, 20, 20]])
    theta = true_theta(truth, Extent(n, 48, 60), size)
    assert_close(theta.mu_t * n, truth[:, 0])
    assert_close(theta.mu_y[:, 0] * 48, truth[:, 3])
    assert_close(theta.mu_x[:, 3] * 60, truth[:, 4])
    assert_close(theta.delta_t, torch.tensor([12 / 4, 40 / 4, 1.0]))  # 2 duration / T_D; full; 1
    assert_close(theta.delta_y[:, 0], torch.tensor([18 / 6, 48 / 6, 1.0]))
    assert_close(theta.delta_x[:, 0], torch.tensor([18 / 5, 60 / 5, 1.0]))


def test_distance_to_truth_of_intervals_and_boxes():
    size, n = (4, 6, 5), torch.tensor([40])
    space = dict(
        mu_y=torch.tensor([[0.1, 0.5, 0.9, 0.9]]), mu_x=torch.tensor([[0.1, 0.25, 0.9, 0.9]]),
        delta_y=torch.tensor([[9.0, 2, 9, 9]]), delta_x=torch.tensor([[9.0, 4, 9, 9]]),
    )  # fmt: skip
    theta = Theta(mu_t=torch.tensor([0.5]), delta_t=torch.tensor([3.0]), **space)
    # Frames at 15.5, 18.5, 21.5, 24.5: the second is nearest to 18; its window is rows 18-30 of 48,
    # columns 5-25 of 60. The detail: frames 16-20, rows 20-32, columns 14-26.
    truth = torch.tensor([[18.0, 4.0, 12.0, 26.0, 20.0]])
    far = distance_to_truth(theta, truth, Extent(n, 48, 60), size)
    assert far["distance_t"].item() == pytest.approx(2)
    assert far["distance_yx"].item() == pytest.approx(math.hypot(2, 5))
    assert far["iou_t"].item() == pytest.approx(4 / 12)  # 16-20 within 14-26
    both = 10 * 11
    assert far["iou_yx"].item() == pytest.approx(both / (12 * 20 + 12 * 12 - both))
    perfect = true_theta(truth, Extent(n, 48, 60), size)
    far = distance_to_truth(perfect, truth, Extent(n, 48, 60), size)
    assert far["distance_t"].item() == pytest.approx(0, abs=1e-5)
    assert far["iou_yx"].item() == pytest.approx(1 / 4)  # a window of twice the side
    away = distance_to_truth(
        theta, truth + torch.tensor([[20.0, 0, 0, 20, 30]]), Extent(n, 48, 60), size
    )
    assert away["iou_t"].item() == 0


def test_anchored_zoom_stays_in_the_clip():
    anchor, zoom = torch.meshgrid(
        torch.linspace(0, 1, 21).double(), torch.linspace(0.01, 1, 21).double(), indexing="ij"
    )
    L, n_out = 30, 8
    mu, delta = anchored_zoom(anchor, zoom, L / n_out)
    p = grid_centres(mu, delta, n_out, L)
    assert (p[..., 0] - delta / 2).min() >= -1e-9 and (p[..., -1] + delta / 2).max() <= L + 1e-9
    uniform = torch.tensor(centres(0.5, L / n_out, n_out, L)).double()
    a = anchor[..., None] * L
    assert_close(p, a + zoom[..., None] * (uniform - a))


def test_random_theta_stays_inside_and_half_is_uniform():
    n, size = torch.randint(5, 60, (2000,)), (4, 6, 5)
    theta = random_theta(Extent(n, 40, 50), size)
    for mu, delta, n_out, L in (
        (theta.mu_t, theta.delta_t, 4, n),
        (theta.mu_y, theta.delta_y, 6, 40),
        (theta.mu_x, theta.delta_x, 5, 50),
    ):
        p = grid_centres(mu, delta, n_out, L if mu.ndim == 1 else torch.tensor(L))
        L = torch.as_tensor(L).expand(2000)[:, None]
        low, high = (p[..., 0] - delta / 2).view(2000, -1), (p[..., -1] + delta / 2).view(2000, -1)
        assert (low >= -1e-4).all() and (high <= L + 1e-4).all()
        whole = (delta.view(2000, -1)[:, :1] * n_out > L - 1e-4).double().mean()
        assert 0.4 < whole < 0.6


def test_stride_bounds_are_one_frame_and_twice_the_uniform_stride():
    low, high = log_stride_bounds(torch.tensor([0.5, 1.0, 4.0]))
    assert_close(low.exp(), torch.tensor([1.0, 1.0, 0.25]))
    assert high == math.log(2)
    assert log_stride_bounds(4.0) == (-math.log(4), math.log(2))
    assert log_stride_bounds(0.5)[0] == 0


# Errors


@pytest.mark.parametrize(
    "shape", [(3, 4, 8, 8), (2, 2, 4, 8, 8), (0, 3, 4, 8, 8), (2, 3, 0, 8, 8), (2, 3, 4, 0, 8)]
)
def test_frames_of_a_wrong_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"frames must be") as error:
        check_clips(torch.zeros(shape), None)
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("lengths", [[0, 4], [4, 5], [-1, 2]])
def test_lengths_out_of_range_are_named(lengths):
    with pytest.raises(ValueError, match=r"\[1, T=4\]") as error:
        check_clips(torch.zeros(2, 3, 4, 8, 8), torch.tensor(lengths))
    assert str(lengths) in str(error.value)


def test_lengths_of_wrong_number_are_named():
    with pytest.raises(ValueError, match=r"2 lengths.*\(3,\)"):
        check_clips(torch.zeros(2, 3, 4, 8, 8), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    "frames",
    [
        255 * torch.rand(2, 3, 4, 8, 8),
        torch.rand(2, 3, 4, 8, 8) - 0.5,
        torch.full((2, 3, 4, 8, 8), torch.nan),
        torch.randint(255, (2, 3, 4, 8, 8)),
        torch.randint(255, (2, 3, 4, 8, 8), dtype=torch.int16),
        torch.ones(2, 3, 4, 8, 8, dtype=torch.bool),
    ],
    ids=["0 to 255", "normalised", "nan", "int64", "int16", "bool"],
)
def test_frames_of_a_wrong_range_or_type_are_named(frames):
    with pytest.raises(ValueError, match=r"uint8, or float in \[0, 1\]") as error:
        check_clips(frames, None)
    assert str(frames.dtype) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_frames_of_the_right_range_pass(dtype):
    frames = (255 if dtype == torch.uint8 else 1) * torch.rand(2, 3, 4, 8, 8)
    assert check_clips(frames.to(dtype), None).tolist() == [4, 4]


@pytest.mark.parametrize("n_frames", [None, torch.tensor([6, 4])])
@pytest.mark.parametrize("algorithm", ["dense", "banded"])
def test_detail_volume_of_a_float64_theta_is_that_of_float32(algorithm, n_frames):
    frames = torch.randint(255, (2, 3, 6, 16, 16), dtype=torch.uint8)
    theta = as_theta(numbers(2, 4))
    sample = DetailSampler((4, 5, 6), algorithm=algorithm)
    volume = sample(frames, theta.map(torch.Tensor.double), n_frames)
    assert volume.dtype == torch.float32
    assert torch.equal(volume, sample(frames, theta.map(torch.Tensor.float), n_frames))
