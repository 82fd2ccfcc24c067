"""Training and evaluation steps on CUDA: on fake tensors anywhere, on a GPU where there is one.

On fake tensors (fake_cuda.py) a whole step runs "on CUDA" without a GPU, and shows what lies on
another device, what is in half precision, what kernels would be given, and where the CPU would wait
for the GPU. The kernels themselves run on a GPU, else in Triton's interpreter (conftest.py).
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from fake_cuda import CUDA, Stub, backward, counted, fake_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.testing import assert_close

from s2dlib.backbones import build
from s2dlib.backbones.base import Backbone
from s2dlib.config import TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import PREFETCH, collate, load_batches, on_device
from s2dlib.kernels import banded
from s2dlib.kernels.graph import as_cuda_graph
from s2dlib.losses import detail_loss, s2d_loss, synopsis_loss
from s2dlib.model import Output, S2DNet, build_model
from s2dlib.presets import PRESETS, VARIANTS
from s2dlib.training import epoch, evaluation, loop
from s2dlib.training.checkpoints import random_state, set_random_state
from s2dlib.training.optim import make_optimizer
from s2dlib.training.windows import theta_from_source

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def launched(monkeypatch) -> Iterator[list[str]]:
    """Fake CUDA tensors within the test; the names of the kernels launched on them."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for name in ("_exchange_device", "_maybe_exchange_device"):  # torch.cuda.device
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(Tensor, "backward", backward)
    names: list[str] = []
    with suppress(ImportError):
        from triton.runtime.jit import KernelInterface

        from s2dlib.kernels import triton

        for name, kernel in list(vars(triton).items()):
            if isinstance(kernel, KernelInterface):
                monkeypatch.setattr(triton, name, Stub(kernel, names))
    with FakeTensorMode():
        yield names


REAL = dict(build.BACKBONES)


@cache
def stages_of(name: str) -> Backbone:
    with unset_fake_temporarily(), torch.device("meta"):
        return REAL[name](None)


def thin(name: str, weights: None) -> Backbone:
    """A backbone with a convolution a stage: to the rows of Table 2 it is its channels."""
    real, stages, C = stages_of(name), {}, 3
    for stage, channels in real.channels.items():
        stages[stage] = nn.Conv3d(C, channels, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        C = channels
    return Backbone(stages, real.channels, copy.deepcopy(real.neck), real.pooled_channels)


@pytest.fixture
def thin_backbones(monkeypatch) -> None:
    for name in build.BACKBONES:
        monkeypatch.setitem(build.BACKBONES, name, partial(thin, name))


def batch_of(preset: str, B: int = 2, device: torch.device = CUDA) -> dict[str, Tensor]:
    """What data.on_device gives, of noise; with the truth where the clips have one."""
    data, recipes = PRESETS[preset].data, PRESETS[preset].recipes
    size = (B, 1 if data.gray else 3, data.n_frames, data.crop, data.crop)
    batch = {"frames": torch.randint(256, size, dtype=torch.uint8, device=device)}
    batch |= {"n_frames": torch.full((B,), data.n_frames, device=device)}
    batch |= {name: torch.arange(B, device=device) for name in ("label", "index")}
    truth = {"truth": data.crop * torch.rand(B, 5, device=device)}
    return batch | (truth if "truth" in recipes else {})


def check(out: Output, sums: dict[str, Tensor]) -> None:
    """All on the GPU; what is kept, summed or learned from, in float32 or more."""
    parts = {k: v for k, v in vars(out).items() if isinstance(v, Tensor)}
    theta = {} if out.theta is None else vars(out.theta)
    labels = torch.zeros(len(out.scores), dtype=torch.int64, device=CUDA)
    kinds = (("logits", synopsis_loss), ("detail_logits", detail_loss))
    losses = {k: loss(out, labels) for k, loss in kinds if k in parts}
    for name, value in (parts | theta | sums).items():
        assert value.device == CUDA, name
    for name, value in (theta | {"scores": out.scores}).items():
        assert value.dtype == torch.float32, name
    for name, value in (sums | losses).items():
        assert value.dtype in (torch.float32, torch.float64) and value.shape == (), name


def training_step(
    model: S2DNet,
    batch: dict[str, Tensor],
    recipe: TrainConfig,
    optimizer: torch.optim.Optimizer,
) -> tuple[Output, dict[str, Tensor]]:
    """As in epoch.train_epoch."""
    optimizer.zero_grad()
    state = epoch.TrainState(model, optimizer, recipe, device=CUDA)
    out, sums = epoch.backward(state, batch, 1.0)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
    assert norm.isfinite() & sums["loss"].isfinite()
    optimizer.step()
    return out, sums | {"norm": norm}


def evaluation_step(model: S2DNet, batch: dict[str, Tensor], recipe: TrainConfig) -> None:
    """As in evaluation.evaluate; the CPU does not wait."""
    own = model.dnet is None or recipe.theta_source == "random"
    with counted() as lines, torch.no_grad():
        theta = None if own else theta_from_source(model, batch, recipe.theta_source)
        with torch.autocast("cuda", torch.bfloat16):
            out = model.eval()(batch["frames"], batch["n_frames"], theta)
        sums = evaluation.batch_sums(out, batch["label"]) | evaluation.theta_shares(out, batch)
        sums |= evaluation.truth_statistics(out, batch)
    check(out, sums)
    assert not lines


ALIKE: dict[tuple, list[str]] = {}  # presets of the same networks and clips, which run once
for name, preset in PRESETS.items():
    clips = (preset.data.n_frames, preset.data.crop, preset.data.gray)
    ALIKE.setdefault((preset.model, *clips), []).append(name)
EACH = [pytest.param(names[0], id="+".join(names)) for names in ALIKE.values()]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["synthetic", "mini-kinetics", "x3d-m", "tdn-r50"])
def test_cuda_step_keeps_float32_and_waits_once(preset, launched):
    model, recipe = fake_model(preset, "a0"), next(iter(PRESETS[preset].recipes.values()))
    optimizer = make_optimizer(model, recipe)
    for group in optimizer.param_groups:
        group["foreach"] = True  # as it is on a GPU
    with counted() as lines:
        check(*training_step(model, batch_of(preset), recipe, optimizer))
    assert len(lines) <= 1, lines
    evaluation_step(model, batch_of(preset), recipe)
    assert all(p.grad is not None for p in model.parameters())
    assert bool(launched) is (model.dnet is not None and banded.pays(torch.empty(1, device=CUDA)))


@pytest.mark.slow
@pytest.mark.parametrize("preset", EACH)
def test_cuda_rows_and_recipes_keep_float32_and_do_not_wait(
    preset, launched, thin_backbones, monkeypatch
):
    monkeypatch.setattr(Tensor, "backward", lambda _: None)  # as in the whole step
    recipes = list(PRESETS[preset].recipes.values())
    cases = [("a0", recipe) for recipe in recipes]
    if PRESETS[preset].model.dnet is not None:
        cases += [(row, recipes[0]) for row in VARIANTS]
        cases += [("a0", replace(recipes[0], theta_source=theta)) for theta in ("frozen", "random")]
    for row, recipe in cases:
        model, batch = fake_model(preset, row), batch_of(preset)
        with counted() as lines:
            state = epoch.TrainState(model, None, recipe, device=CUDA)
            check(*epoch.backward(state, batch, 1.0))
        assert not lines
        if recipe is recipes[0] or recipe.theta_source in ("frozen", "truth"):
            evaluation_step(model, batch, recipe)


OFFENDERS = {
    "item": lambda x, mask, cpu: x.sum().item(),
    "bool": lambda x, mask, cpu: bool(mask.any()),
    "tolist": lambda x, mask, cpu: x[:1, 0].tolist(),
    "cpu": lambda x, mask, cpu: x.cpu(),
    "to the GPU": lambda x, mask, cpu: cpu.to(CUDA),
    "copy_": lambda x, mask, cpu: cpu.copy_(x),
    "a slice from the CPU": lambda x, mask, cpu: x[:1].copy_(cpu[:1]),
    "mask": lambda x, mask, cpu: x[mask],
    "nonzero": lambda x, mask, cpu: mask.nonzero(),
    "masked_select": lambda x, mask, cpu: x.masked_select(mask),
    "unique": lambda x, mask, cpu: x.unique(),
    "repeats": lambda x, mask, cpu: x.repeat_interleave(mask[0].long(), dim=0),
    "index on the CPU": lambda x, mask, cpu: x[cpu[0].long()],
    "torch.tensor": lambda x, mask, cpu: torch.tensor([1.0, 2.0], device=CUDA),
    "as_tensor": lambda x, mask, cpu: torch.as_tensor(3, device=x.device),
    "new_tensor": lambda x, mask, cpu: x.new_tensor([0, 11]),
    "a number for where": lambda x, mask, cpu: torch.where(mask, x, torch.tensor(1.0)),
    "a value on the GPU": lambda x, mask, cpu: x.masked_fill(mask, x.amax()),
}
INNOCENT = {
    "not blocking": lambda x, mask, cpu: cpu.to(CUDA, non_blocking=True),
    "new": lambda x, mask, cpu: torch.full((2,), 3.0, device=CUDA) + x.new_zeros(2),
    "numbers": lambda x, mask, cpu: torch.where(mask, 2.0, x.clamp(max=3)).masked_fill(mask, 1),
    "filled": lambda x, mask, cpu: x.index_put((mask,), x.new_ones(())),
    "as_tensor": lambda x, mask, cpu: torch.as_tensor(x, device=CUDA),
    "index": lambda x, mask, cpu: x[torch.arange(2, device=CUDA)[:, None], x.argmax(1)],
    "repeats": lambda x, mask, cpu: x.repeat_interleave(3, dim=0),
    "on the CPU": lambda x, mask, cpu: (torch.tensor([1.0]), cpu[0].sum().item()),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_waits_are_counted(name, launched):
    x, mask = torch.ones(2, 2, device=CUDA), torch.ones(2, 2, dtype=torch.bool, device=CUDA)
    with counted() as lines, suppress(DynamicOutputShapeException):
        OFFENDERS[name](x, mask, torch.ones(2, 2))
    assert len(lines) == 1 and lines[0].startswith("test_cuda.py:")


@pytest.mark.parametrize("name", INNOCENT)
def test_waits_are_not_counted_where_there_are_none(name, launched):
    x, mask = torch.ones(2, 2, device=CUDA), torch.ones(2, 2, dtype=torch.bool, device=CUDA)
    with counted() as lines:
        INNOCENT[name](x, mask, torch.ones(2, 2))
    assert not lines


class Clips(list):
    """A data set for the loops of train.py, whose batches are fake."""

    n_crops, failed = 1, frozenset()

    def set_epoch(self, epoch):
        pass


@pytest.mark.slow
def test_waits_of_training_and_evaluation_loops(launched, thin_backbones, monkeypatch):
    def batches_of(*_, steps, **__):
        return (batch_of("synthetic", len(step)) for step in steps)

    def lines(n_steps):
        model, clips = fake_model("synthetic", "a0"), Clips(range(4 * n_steps))
        optimizer = make_optimizer(model, recipe)
        with counted() as training:
            epoch.train_epoch(epoch.TrainState(model, optimizer, recipe, device=CUDA), clips, 0)
        with counted() as testing:
            evaluation.evaluate(model, clips, batch_size=4, device=CUDA)
        return training, testing

    for module in (epoch, evaluation):
        monkeypatch.setattr(module, "load_batches", batches_of)
    monkeypatch.setattr(S2DNet, "to", lambda model, _: model)  # it is there
    recipe = replace(PRESETS["synthetic"].recipes["joint"], batch_size=4)
    for few, more, each in zip(lines(1), lines(2), (1, 0), strict=True):
        assert len(more) - len(few) <= each, (few, more)


# On a GPU alone


@needs_gpu
@pytest.mark.parametrize(
    ("preset", "recipe"),
    [
        *(("synthetic", recipe) for recipe in ("joint", "zoom", "truth")),
        *(("mini-kinetics", recipe) for recipe in ("paper", "authors-1")),
        ("videos", "joint"),
    ],
)
def test_gpu_step_waits_once(preset, recipe):
    model, recipe = build_model(preset).to(CUDA).train(), PRESETS[preset].recipes[recipe]
    optimizer, batch = make_optimizer(model, recipe), batch_of(preset, 4)
    for mode in ("default", "warn"):  # the first step makes what lasts
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode(mode)
            try:
                training_step(model, batch, recipe, optimizer)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    lines = [f"{w.filename}:{w.lineno}" for w in caught if "called a sync" in str(w.message)]
    assert len(lines) == 1, lines


@needs_gpu
def test_gpu_losses_in_bfloat16_are_near_float32():
    model, batch = build_model("mini-kinetics").to(CUDA).train(), batch_of("mini-kinetics")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    losses = []
    for enabled in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            out = model(batch["frames"], batch["n_frames"])
        losses.append(s2d_loss(out, batch["label"], masked=False))
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert_close(*losses, atol=0, rtol=0.05)


@needs_gpu
def test_gpu_random_state_goes_through_a_checkpoint():
    file = io.BytesIO()
    torch.save(random_state(CUDA), file)
    expected = torch.rand(5, device=CUDA)
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), CUDA)
    assert torch.equal(torch.rand(5, device=CUDA), expected)


@needs_gpu
def test_gpu_resumed_run_is_near_the_whole_one(csv, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    preset, step, steps = PRESETS["synthetic"], torch.optim.AdamW.step, []
    data = replace(preset.data, csv=csv, cache=None)
    config = replace(preset.recipes["joint"], epochs=2, batch_size=8, checkpoint_steps=1, amp=False)

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 4:  # of two epochs of two
            raise KeyboardInterrupt
        return step(self, *arguments)

    def run(name, seed):
        torch.manual_seed(seed)
        sets = VideoDataset(data, "train", train=True), VideoDataset(data, "val", train=False)
        model = build_model("synthetic")
        loop.fit(model, *sets, config, run_dir=tmp_path / name, device=CUDA)
        return nn.utils.parameters_to_vector(model.parameters())

    whole = run("whole", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        run("parts", 0)
    assert (run("parts", 5) - whole).abs().median() < 0.01 * config.lr  # other dropout: 0.035


@needs_gpu
@torch.no_grad()
def test_gpu_graph_gives_what_the_model_gives():
    model = build_model("synthetic").to(CUDA).eval()
    first, second = (batch_of("synthetic", 2, CUDA) for _ in range(2))
    graph = as_cuda_graph(model, first["frames"], first["n_frames"])
    for batch in (second, first):
        expected = model(batch["frames"], batch["n_frames"])
        out = graph(batch["frames"], batch["n_frames"])
        assert_close(out.detail_logits, expected.detail_logits)
        assert_close(vars(out.theta), vars(expected.theta))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=needs_gpu)])
def test_on_device_keeps_batches_in_order(device):
    made = [batch_of("synthetic", 2 + i % 3, torch.device("cpu")) for i in range(7)]
    if device != "cpu":
        made = [{k: v.pin_memory() for k, v in batch.items()} for batch in made]
    for batch, expected in zip(on_device(iter(made), device), made, strict=True):
        busy = torch.rand(999, 999, device=device) @ torch.rand(999, 999, device=device)
        assert batch.keys() == expected.keys() and busy.isfinite().all()
        for name, value in batch.items():
            assert value.device == torch.device(device)
            assert torch.equal(value.cpu(), expected[name])
    assert not list(on_device(iter(()), device))


@needs_gpu
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_on_a_gpu_are_those_of_the_files(workers, csv):
    data = replace(PRESETS["synthetic"].data, csv=csv, cache=None)
    dataset, steps = VideoDataset(data, "test", train=False), [[i, 7 * i % 20] for i in range(20)]
    for _ in range(2):
        batches = load_batches(dataset, workers=workers, steps=steps, device="cuda")
        for batch, step in zip(batches, steps, strict=True):
            busy = torch.rand(2999, 2999, device="cuda") @ torch.rand(2999, 2999, device="cuda")
            expected = collate([dataset[i] for i in step])["frames"]
            assert torch.equal(batch["frames"].cpu(), expected) and busy.isfinite().all()
    assert bool(workers) <= len(dataset.loader._pinned) <= (PREFETCH + 1) * workers
