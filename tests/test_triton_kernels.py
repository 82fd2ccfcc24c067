"""The kernels at the edges of what they may be given, on a GPU, else in Triton's interpreter.

Nothing outside a clip is read, whatever lengths and centres say; layouts do not matter; far off the
screen, and with offsets beyond 2^31, volume and slopes are those of float64.
"""

from __future__ import annotations

import pytest
import torch
from test_banded import dense
from torch.testing import assert_close

from s2dlib.sampler import DetailSampler, Extent, Theta, grid_centres
from s2dlib.training.windows import random_theta

pytestmark = pytest.mark.slow

HERE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(HERE == "cpu", reason="needs a GPU")


def clip_and_centres(B=2, T=13, H=18, W=34, size=(2, 9, 20), C=1):
    """Frames in [0, 255], centres at a zoom, lengths."""
    T_D, H_D, W_D = size
    frames = torch.randint(256, (B, C, T, H, W), dtype=torch.uint8, device=HERE)
    shapes = ((T, (B, T_D)), (H, (B, T_D, H_D)), (W, (B, T_D, W_D)))
    p = [(n * torch.rand(shape, device=HERE)).sort(-1).values for n, shape in shapes]
    return frames, p, torch.full((B,), T, device=HERE)


def both(kernels, frames, p, n, gradient=None):
    """The volume, and the slopes of a gradient."""
    volume = kernels.volume(frames, *p, n)
    gradient = torch.ones_like(volume) if gradient is None else gradient
    return volume, *kernels.slopes(frames, *p, n, gradient)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_kernels_with_a_nan_centre(axis, triton_kernels):
    frames, p, n = clip_and_centres()
    held = torch.full((frames.numel() + 9999,), torch.nan, device=HERE)  # NaN behind the clips
    clips = held[: frames.numel()].view(frames.shape).copy_(frames)
    expected = both(triton_kernels, frames, p, n)
    p[axis][0] = torch.nan
    found = both(triton_kernels, clips, p, n)
    assert found[0][0].isnan().all()
    for ours, plain in zip(found, expected, strict=True):
        assert_close(ours[1], plain[1], rtol=1e-4, atol=1e-4)  # float frames: other products


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_kernels_move_lengths_into_the_clip(dtype, triton_kernels):
    frames, p, n = clip_and_centres()
    held = torch.full((frames.numel() + 99 * frames[0, 0, 0].numel(),), 255, device=HERE)
    clips = held.to(torch.uint8)[: frames.numel()].view(frames.shape).copy_(frames)  # 255 behind
    p[0] += torch.tensor([[0.0], [9.0]], device=HERE)
    lengths = torch.tensor([-4, 63], dtype=dtype, device=HERE)
    found = both(triton_kernels, clips, p, lengths)
    expected = both(triton_kernels, frames, p, torch.tensor([1, 13], device=HERE))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_kernels_take_any_layout(triton_kernels):
    frames, p, n = clip_and_centres()
    gradient = torch.rand(2, 1, 2, 9, 20, device=HERE)
    turned = [v.transpose(0, -1).contiguous().transpose(0, -1) for v in (*p, gradient)]
    assert not any(v.is_contiguous() for v in turned)
    clips = frames.transpose(2, 4).contiguous().transpose(2, 4)
    found = both(triton_kernels, clips, turned[:3], n, turned[3])
    expected = both(triton_kernels, frames, p, n, gradient)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_kernels_far_off_screen_are_exact(axis, triton_kernels):
    sides, size = [12, 12, 12], [1, 2, 2]
    n_out = 96 if axis else 16  # each detail frame is a program
    sides[axis], size[axis] = 224, n_out
    frames, p, n = clip_and_centres(1, *sides, size)
    p[axis][:] = torch.linspace(-600, 824, n_out, device=HERE)
    exact = [v.double().requires_grad_() for v in p]
    expected = dense(frames, *exact, n)
    volume, *slopes = both(triton_kernels, frames, p, n)
    assert_close(volume.double(), expected, atol=1e-6 * 255, rtol=0)
    for a, b in zip(slopes, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert_close(a.double(), b, atol=1e-5 * 255, rtol=1e-4)


# On a GPU alone


@needs_gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("where", ["whole", "drawn", "outside"])
def test_kernels_at_the_papers_size_equal_float64(where, precision, triton_kernels):
    frames = torch.randint(256, (2, 3, 150, 224, 224), dtype=torch.uint8, device=HERE)
    n = torch.tensor([150, 50], device=HERE)
    p = centres(n, where)
    exact = [v.double().requires_grad_() for v in p]
    expected = dense(frames, *exact, n)
    gradient = torch.randn_like(expected).float()
    torch.set_float32_matmul_precision(precision)
    try:
        found = both(triton_kernels, frames, p, n, gradient)
    finally:
        torch.set_float32_matmul_precision("highest")
    expected_slopes = torch.autograd.grad((expected * gradient).sum(), exact)
    volume, slopes = {"highest": (1e-5, 2e-4), "high": (5e-3, 2e-2)}[precision]
    assert far(found[0], expected, 0) < volume
    # Off the screen the exact slopes vanish: they are measured against the clips' own values.
    least = 0.01 * 255 * gradient.norm().item()
    for ours, slope in zip(found[1:], expected_slopes, strict=True):
        assert far(ours, slope, least) < slopes


def centres(n, where, size=(16, 112, 112), side=224):
    """p_t, p_y, p_x at the paper's size: of the uniform grid, of random_theta, or off-screen."""
    theta = random_theta(Extent(n, side, side), size)
    if where != "drawn":
        mu, full = {"whole": 0.5, "outside": 1.4}[where], n / size[0]
        middle, stride = torch.full_like(theta.mu_y, mu), torch.full_like(theta.mu_y, 2.0)
        theta = Theta(torch.full_like(full, mu), full, middle, middle, stride, stride)
    return [
        grid_centres(theta.mu_t, theta.delta_t, size[0], n),
        grid_centres(theta.mu_y, theta.delta_y, size[1], side),
        grid_centres(theta.mu_x, theta.delta_x, size[2], side),
    ]


def far(ours, expected, least):
    """Relative, by norms."""
    return ((ours.double() - expected).norm() / expected.norm().clamp(min=least)).item()


@needs_gpu
def test_kernels_with_offsets_beyond_two_to_the_31(triton_kernels):
    if torch.cuda.get_device_properties(0).total_memory < 12e9:
        pytest.skip("needs 12 GB")
    frames = torch.randint(256, (64, 3, 300, 224, 224), dtype=torch.uint8, device=HERE)
    assert frames.numel() > 2**31
    n = torch.full((64,), 300, device=HERE)
    p = centres(n, "drawn")
    found = both(triton_kernels, frames, p, n)
    for b in (0, 63):
        exact = [v[b : b + 1].double().requires_grad_() for v in p]
        expected = dense(frames[b : b + 1], *exact, n[b : b + 1])
        assert far(found[0][b : b + 1], expected, 0) < 1e-5
        for ours, slope in zip(found[1:], torch.autograd.grad(expected.sum(), exact), strict=True):
            assert far(ours[b : b + 1], slope, 1.0) < 1e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_on_another_gpu(triton_kernels):
    frames, n = torch.randint(256, (2, 3, 20, 40, 36), dtype=torch.uint8), torch.tensor([20, 13])
    theta = random_theta(Extent(n, 40, 36), (4, 18, 20))
    expected = DetailSampler((4, 18, 20), algorithm="dense")(frames, theta, n)
    second = torch.device("cuda", 1)
    sampler = DetailSampler((4, 18, 20), algorithm="banded")
    found = sampler(frames.to(second), theta.map(lambda v: v.to(second)), n.to(second))
    assert found.device == second and torch.cuda.current_device() == 0
    assert_close(found.cpu(), expected, atol=3e-4, rtol=0)
