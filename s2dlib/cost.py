"""What a model costs: multiply-adds and parameters by part, and latency (Tables 1-4).

A multiply-add counts one, as in the paper; convolutions, linear layers and matrix products count,
batch norm and activations do not. Nothing is computed: the model runs on fake tensors, which have
shapes but no data.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from s2dlib.model import S2DNet

PARTS = {  # name -> module
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
    for part, path in PARTS.items():
        n = macs(path)
        if path == "detail_sampler" and n:
            n = in_time if part == "time filter" else n - in_time
        rows.append({"part": part, "gmacs": n / 1e9, "mparams": _parameters(model, path) / 1e6})
    return pd.DataFrame(rows)


def _parameters(model: nn.Module, path: str) -> int:
    """Parameters of a module by its path; none where the model lacks it."""
    module: nn.Module | None = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


@torch.no_grad()
def latency(models: Mapping[str, nn.Module], frames: Tensor, n_runs: int = 10) -> pd.DataFrame:
    """Time of a forward pass. Models take turns, so that a busy machine slows all alike.

    Args:
        models: by name, on the device of the frames.
        frames: raw frames I. (B, C, T, H, W)
        n_runs: of each model, after one that is not counted.

    Returns:
        model, ms (median) and ms_iqr (interquartile range), of the whole batch.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(n_runs + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.eval()(frames)
            if frames.is_cuda:
                torch.cuda.synchronize(frames.device)
            times[name].append(1e3 * (time.perf_counter() - start))
    quartiles = pd.DataFrame(times)[1:].quantile([0.25, 0.5, 0.75])
    spread = quartiles.loc[0.75] - quartiles.loc[0.25]
    ms = {"model": list(models), "ms": quartiles.loc[0.5].values, "ms_iqr": spread.values}
    return pd.DataFrame(ms)
