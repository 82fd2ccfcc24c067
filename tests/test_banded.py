"""The banded sampler equals the dense one: volumes and gradients, on the CPU and in Triton.

Without a GPU the kernels run in Triton's interpreter (conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from s2dlib.kernels import banded, cpu, triton
from s2dlib.kernels.band import REACH, TAPS, band
from s2dlib.kernels.banded import BandedVolume
from s2dlib.model import build_model
from s2dlib.sampler import DetailSampler, Extent, gaussian_filters, grid_centres
from s2dlib.training.windows import random_theta

T, H, W, SIZE = 30, 21, 34, (4, 9, 12)
WHERE = {  # centre and spacing, in frames or pixels, of the filters of each axis
    "inside": ((15.0, 2.0), (10.0, 1.2), (17.0, 1.7)),
    "identity": ((15.0, 1.0), (10.5, 1.0), (17.0, 1.0)),
    "at the borders": ((1.0, 3.0), (20.0, 2.0), (0.5, 3.0)),
    "off-screen": ((-9.0, 1.5), (40.0, 1.0), (-30.0, 0.5)),
    "the whole clip": ((15.0, 7.5), (10.5, 2.33), (17.0, 2.83)),
}


def centres(where, dtype=torch.float32, B=2):
    """p_t, p_y, p_x, a little different in each clip and detail frame, that ask for gradients."""
    (T_D, H_D, W_D), torch_rand = SIZE, torch.rand
    shapes = ((B, T_D), (B, T_D, H_D), (B, T_D, W_D))
    found = []
    for (middle, step), shape in zip(WHERE[where], shapes, strict=True):
        at = middle + step * (torch.arange(shape[-1]) + 0.5 - shape[-1] / 2)
        jitter = torch_rand(*shape[:-1], 1) if where != "identity" else torch.zeros(1)
        found.append((at + jitter).expand(shape).to(dtype).clone().requires_grad_())
    return found


def dense(frames, p_t, p_y, p_x, n):
    """Eq. 7 over whole clips."""
    frames = frames.to(p_t.dtype)
    G_t = gaussian_filters(p_t, frames.shape[2], n)[:, None]
    G_y = gaussian_filters(p_y, frames.shape[3])[:, None]
    G_x = gaussian_filters(p_x, frames.shape[4])[:, None]
    volume = (G_t @ frames.flatten(3)).unflatten(3, frames.shape[3:])
    return G_y @ volume @ G_x.transpose(-1, -2)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("lengths", [(T, T), (T, 17), (TAPS - 2, 1)])
def test_banded_volume_and_gradients_equal_dense(where, lengths):
    torch.manual_seed(0)
    frames = torch.rand(2, 3, T, H, W, dtype=torch.float64)
    n, p = torch.tensor(lengths), centres(where, torch.float64)
    ours, expected = BandedVolume.apply(frames, *p, n), dense(frames, *p, n)
    assert_close(ours, expected, atol=1e-6, rtol=0)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weight).sum(), p)
    for a, b in zip(torch.autograd.grad((ours * weight).sum(), p), gradients, strict=True):
        assert_close(a, b, atol=2e-5, rtol=0)


def test_banded_passes_gradcheck():
    torch.manual_seed(0)
    frames, n = torch.rand(1, 1, 12, 9, 10, dtype=torch.float64), torch.tensor([12])
    p = [torch.rand(shape, dtype=torch.float64) * 9 for shape in ((1, 2), (1, 2, 3), (1, 2, 2))]
    p = [v.sort(dim=-1).values.requires_grad_() for v in p]
    assert torch.autograd.gradcheck(lambda *p: BandedVolume.apply(frames, *p, n), p, atol=1e-5)


def test_the_band_stays_inside_the_clip_and_holds_all_of_the_weight():
    p = torch.tensor([-50.0, 0.2, 4.9, 15.0, 29.9, 70.0])
    taps = band(p, torch.tensor(30))
    assert taps.first.tolist() == [0, 0, 0, 9, 19, 19]
    full = gaussian_filters(p, 30)
    for row, first, weights in zip(full, taps.first.tolist(), taps.weights, strict=True):
        assert_close(weights, row[first : first + TAPS], atol=1e-6, rtol=0)
        assert row[:first].sum() + row[first + TAPS :].sum() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "kind"), [("inside", "uint8"), ("at the borders", "float"), ("off-screen", "uint8")]
)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of inputs outside, not used
def test_triton_volume_and_slopes_equal_cpu(where, kind, triton_kernels):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (T_D, H_D, W_D), n = (2, 20, 40), torch.tensor([13, 5])  # two tiles down and two across
    frames = torch.randint(256, (2, 1, 13, 19, 34), dtype=torch.uint8)
    frames = frames if kind == "uint8" else frames / 255
    p_t, p_y, p_x = (p.detach()[:, :T_D] for p in centres(where))
    p_y, p_x = (p[..., :1] + 0.8 * torch.arange(m) for p, m in ((p_y, H_D), (p_x, W_D)))
    arguments = [v.to(device).contiguous() for v in (frames, p_t, p_y, p_x, n)]
    expected = cpu.volume(frames, p_t, p_y, p_x, n)
    scale = frames.float().abs().max().item()
    assert expected.shape == (2, 1, T_D, H_D, W_D)
    close = {"atol": 1e-5 * scale, "rtol": 1e-5}
    assert_close(triton_kernels.volume(*arguments).cpu(), expected, **close)
    gradient = torch.randn_like(expected)
    slopes = triton_kernels.slopes(*arguments, gradient.to(device))
    for a, b in zip(slopes, cpu.slopes(frames, p_t, p_y, p_x, n, gradient), strict=True):
        assert_close(a.cpu(), b, atol=3e-4 * scale, rtol=1e-3)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import s2dlib.kernels.triton as kernels
from s2dlib.kernels.band import REACH, TAPS
constants = {"TAPS": TAPS, "REACH": REACH, **kernels.TILES}
warps = constants.pop("num_warps")
constants |= {"PADDED": 16, "BLOCK": kernels.BLOCK, "PRECISION": "ieee"}
types = {"frames": "*u8", "first_t": "*i32"} | dict.fromkeys(constants, "constexpr")
types |= dict.fromkeys(("C", "T", "H", "W", "T_D", "H_D", "W_D", "N", "n_in"), "i32")
for capability, precision in ((80, "ieee"), (90, "ieee"), (90, "tf32")):
    constants["PRECISION"] = precision
    for kernel in (kernels._taps, kernels._statistics, kernels._volume, kernels._slopes):
        signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
        own = {name: value for name, value in constants.items() if name in signature}
        source = ASTSource(fn=kernel, signature=signature, constexprs=own)
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"num_warps": warps})
        print(len(made.asm["cubin"]) > 0)
"""


@pytest.mark.slow
def test_kernels_compile_without_a_gpu(tmp_path):
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert run.stdout.split() == ["True"] * 12, run.stderr


def test_detail_sampler_chooses_banded_or_dense(monkeypatch):
    used = []
    real = BandedVolume.apply
    monkeypatch.setattr(BandedVolume, "apply", lambda *a: used.append(1) or real(*a))
    small = torch.randint(256, (1, 1, 8, 16, 16), dtype=torch.uint8)
    large = small.expand(1, 1, 8, 16, 16).repeat(1, 1, 20, 8, 8)
    assert large[0].numel() >= banded.SMALL > small[0].numel()
    learned = large.float().requires_grad_()
    for frames, algorithm, banded_used in (
        *((small, "auto", False), (small, "banded", True), (small, "dense", False)),
        *((large, "auto", True), (large, "dense", False), (learned, "auto", False)),
    ):
        used.clear()
        n = torch.tensor([frames.shape[2]])
        theta = random_theta(Extent.of(frames, n), SIZE)
        volume = DetailSampler(SIZE, algorithm=algorithm)(frames, theta, n)
        assert bool(used) is banded_used, algorithm
        expected = DetailSampler(SIZE, algorithm="dense")(frames.detach(), theta, n)
        assert_close(volume.detach(), expected, atol=3e-4, rtol=0)
    used.clear()
    DetailSampler(SIZE, filters="linear")(
        large, random_theta(Extent(torch.tensor([160]), 128, 128), SIZE)
    )
    assert not used
    with pytest.raises(ValueError, match="banded"):
        DetailSampler(SIZE, filters="linear", algorithm="banded")


def test_theta_gradients_through_banded_equal_dense():
    torch.manual_seed(0)
    model = build_model("synthetic")
    for module in list(model.dnet.modules()):  # smooth: a ReLU that lies at 0 flips by rounding
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    frames = torch.randint(256, (2, 1, 48, 64, 64), dtype=torch.uint8)
    gradients = {}
    for algorithm in ("dense", "banded"):
        model.detail_sampler.algorithm = algorithm
        model.zero_grad()
        torch.manual_seed(1)
        model(frames).detail_logits.square().sum().backward()
        head = model.snet.theta_head
        gradients[algorithm] = torch.cat([p.grad.flatten() for p in head.parameters()])
    assert gradients["dense"].abs().max() > 0
    assert_close(gradients["banded"], gradients["dense"], atol=1e-5, rtol=1e-3)


def test_centres_of_the_band_are_those_of_the_grid():
    p = grid_centres(torch.tensor([0.5]), torch.tensor([2.0]), 4, 30)
    assert (p - 0.5 - band(p, torch.tensor(30)).first - REACH).abs().max() <= 0.5


class Launched:
    """In place of a kernel: counts that it is launched."""

    times = 0

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **constants):
        Launched.times += 1


def test_kernel_launches_and_operations_are_few(monkeypatch):
    kernels = pytest.importorskip("s2dlib.kernels.triton", exc_type=ImportError)
    for name in ("_taps", "_statistics", "_volume", "_slopes"):
        monkeypatch.setattr(kernels, name, Launched())
    monkeypatch.setattr(banded, "_kernels", lambda frames: triton)
    frames, n = torch.randint(256, (1, 3, T, H, W), dtype=torch.uint8), torch.tensor([T])
    theta = random_theta(Extent(n, H, W), SIZE).map(lambda v: v.clone().requires_grad_())
    sampler = DetailSampler(SIZE, algorithm="banded")
    monkeypatch.setattr(Launched, "times", 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        volume = sampler(frames, theta, n)
    calls = [e for e in profile.events() if e.name.startswith("aten::")]
    outermost = [e for e in calls if not (e.cpu_parent and e.cpu_parent.name.startswith("aten::"))]
    assert Launched.times == 4 and len(outermost) <= 45, len(outermost)  # 131 at commit 0325963
    volume.sum().backward()
    assert Launched.times == 8 and theta.mu_t.grad is not None
