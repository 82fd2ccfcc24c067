"""What a model costs: multiply-adds and parameters by part, and latency (Tables 1-4).

A multiply-add counts one, as in the paper; convolutions, linear layers and matrix products count,
batch norm and activations do not. Nothing is computed: the model runs on fake tensors, which have
shapes but no data.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from s2dlib.kernels.graph import as_cuda_graph
from s2dlib.model import S2DNet, scale_of
from s2dlib.sampler import Extent, check_clips

MODULES = {  # name -> module
    "SNet backbone": "snet.backbone",
    "SNet classifier": "snet.classifier",
    "theta head": "snet.theta_head",
    "context head": "snet.context_head",
    "time filter": "detail_sampler",
    "space filters": "detail_sampler",
    "DNet backbone": "dnet.backbone",
    "fusion": "dnet.fusions",
    "DNet classifier": "dnet.classifier",
}


def count(model: S2DNet, T: int, H: int, W: int, channels: int = 3) -> pd.DataFrame:
    """Multiply-adds of one clip and parameters, by part of Fig. 2.

    Args:
        T, H, W: frames, rows and columns of the raw frames I.
        channels: of the raw frames: 1 where they are gray, which only the detail sampler notices.

    Returns:
        part, gmacs (1e9 multiply-adds), mparams (1e6 parameters); a part that the model does not
        have counts 0. The columns add up to the whole model.
    """
    model = copy.deepcopy(model).cpu().eval()
    model.detail_sampler.algorithm = "dense"  # Eq. 7 as written: no less where theta zooms
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake, FlopCounterMode(display=False) as counter:
        model(torch.empty(1, channels, T, H, W, dtype=torch.uint8))
    found = counter.get_flop_counts()  # module -> operation -> 2 a multiply-add

    def macs(path: str) -> int:
        """Of a module, or of those inside it that are called by themselves."""
        name = f"{type(model).__name__}.{path}"
        inside = [n for n in found if f"{n}.".startswith(f"{name}.")]
        outer = [n for n in inside if not any(n.startswith(f"{m}.") for m in inside)]
        return sum(sum(found[n].values()) for n in outer) // 2

    in_time = channels * model.config.detail_size[0] * T * H * W  # G_t I
    rows = []
    for part, path in MODULES.items():
        n = macs(path)
        if path == "detail_sampler" and n:
            n = in_time if part == "time filter" else n - in_time
        named = model.named_parameters()
        n_parameters = sum(p.numel() for name, p in named if name.startswith(f"{path}."))
        rows.append({"part": part, "gmacs": n / 1e9, "mparams": n_parameters / 1e6})
    return pd.DataFrame(rows)


def steps(model: S2DNet, frames: Tensor) -> dict[str, Callable[[], object]]:
    """The steps of Fig. 2 as calls, each with what the steps before it gave.

    frames: raw frames I, on the device of the model, which has both networks. (B, C, T, H, W)
    """
    assert model.snet is not None and model.dnet is not None
    n, scale = check_clips(frames, None), scale_of(frames)
    with torch.no_grad():
        out = model.eval()(frames)
        synopsis = model.normalise(out.synopsis_frames, scale)
        volume = model.normalise(out.detail_volume, scale)
    return {
        "synopsis sampler": partial(model.synopsis_sampler, frames, n),
        "SNet": partial(model.snet, synopsis, Extent.of(frames, n)),
        "detail sampler": partial(model.detail_sampler, frames, out.theta, n),
        "DNet": partial(model.dnet, volume, out.context),
    }


@torch.no_grad()
def latency(
    calls: Mapping[str, Callable[[], object]], device: str = "cpu", n_runs: int = 10
) -> pd.DataFrame:
    """Time of calls that take turns, so that a busy machine slows all alike.

    Args:
        calls: by name; models are to be in evaluation mode.
        n_runs: of each, after two that are not counted.

    Returns:
        name, ms (median) and ms_iqr (interquartile range).
    """
    turns = [
        {name: milliseconds(call, device) for name, call in calls.items()}
        for _ in range(n_runs + 2)
    ]
    low, ms, high = pd.DataFrame(turns)[2:].quantile([0.25, 0.5, 0.75]).to_numpy()
    return pd.DataFrame({"name": list(calls), "ms": ms, "ms_iqr": high - low})


@torch.no_grad()
def compare_latency(
    models: Mapping[str, S2DNet], size: tuple[int, int, int, int], device: str, n_runs: int
) -> pd.DataFrame:
    """Latency of whole models on random frames, and of the steps of the first, S2DNet.

    All at one precision: bfloat16 autocast on CUDA, where each is one CUDA graph, or the time of
    small networks is that of Python's launches; float32 elsewhere.

    Args:
        models: by name; moved to the device.
        size: B, T, H, W of the raw frames.

    Returns:
        name (steps indented), ms, ms_iqr, ratio (to the first model) and batch.
    """
    B, *extent = size
    frames = torch.randint(256, (B, 3, *extent), dtype=torch.uint8, device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    calls: dict[str, Callable[[], object]] = {
        name: partial(model.to(device).eval(), frames) for name, model in models.items()
    }
    with autocast:
        inner = steps(next(iter(models.values())), frames)
    calls |= {f"- {name}": step for name, step in inner.items()}
    # Entered by each pass, as a user does: around all, it would keep the weights that it has cast.
    calls = {name: autocast(call) for name, call in calls.items()}
    if device == "cuda":
        calls = {name: as_cuda_graph(call) for name, call in calls.items()}
    table = latency(calls, device, n_runs)
    return table.assign(ratio=table["ms"] / table["ms"][0], batch=B)


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Of one call; on CUDA between two events of its stream."""
    if torch.device(device).type != "cuda":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
