"""Whole models by turns: S2DNet (ssv2) beside TSM, TDN and X3D-M, plain and folded alike.

    python benchmarks/models.py                                  # a CPU, one clip
    python benchmarks/models.py --batches 1 16 --compile         # a GPU

Each samples its own frames from the same raw clip. Folded is inference.for_inference; graph, on
CUDA, that as one CUDA graph (kernels/graph.py); compiled, the networks (not the samplers) go
through torch.compile. On CUDA all run under bfloat16 autocast, entered anew in each pass, which
then casts the weights, as in evaluation.
"""

from __future__ import annotations

import argparse
from functools import partial

import pandas as pd
import torch

from s2dlib.apps.inference import for_inference
from s2dlib.kernels.graph import as_cuda_graph
from s2dlib.model import S2DNet, build_model
from s2dlib.presets import PRESETS
from s2dlib.report import records, tables
from s2dlib.report.cost import latency

NAMES = ["ssv2", "tsm-r50", "tdn-r50", "x3d-m"]


def compiled(model: S2DNet) -> S2DNet:
    """Its networks compiled, the samplers between them left as they are."""
    for name in ("snet", "dnet"):
        if getattr(model, name) is not None:
            getattr(model, name).compile(dynamic=False)
    return model


def measure(names: list[str], B: int, compile: bool, device: str, n_runs: int) -> pd.DataFrame:
    """Latency of every model in every form; ratio is to S2DNet, the first, in the same form."""
    data = PRESETS[names[0]].data
    size = (B, 3, data.n_frames, data.crop, data.crop)
    frames = torch.randint(256, size, dtype=torch.uint8, device=device)
    models = {}
    for name in names:
        plain = build_model(name).to(device).eval()
        models |= {f"{name}/plain": plain, f"{name}/folded": for_inference(plain)}
        if compile:
            models[f"{name}/compiled"] = compiled(for_inference(plain))
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    calls = {name: autocast(partial(model, frames)) for name, model in models.items()}
    if device == "cuda":
        folded = [name for name in calls if name.endswith("/folded")]
        calls |= {f"{name[:-6]}graph": as_cuda_graph(calls[name]) for name in folded}
    table = latency(calls, device, n_runs)
    table[["model", "how"]] = table.pop("name").str.split("/", expand=True)
    first = table[table["model"] == names[0]].set_index("how")["ms"]
    table["ratio"] = table["ms"] / table["how"].map(first)
    return table.assign(batch=B)[["batch", "model", "how", "ms", "ms_iqr", "ratio"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--models", nargs="+", default=NAMES, help="presets, S2DNet first")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", help="stem of the files written; without it nothing is")
    parser.add_argument("--smoke", action="store_true", help="small models, once: the test's")
    chosen = parser.parse_args()
    names, n_runs = (["synthetic"], 1) if chosen.smoke else (chosen.models, chosen.runs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = pd.concat([measure(names, B, chosen.compile, device, n_runs) for B in chosen.batches])
    print(f"{device}, {torch.get_num_threads()} threads")
    print(tables.as_text(table).to_string(index=False))
    if chosen.out:
        source = records.provenance(None, device, 0, "random frames")
        tables.write_measured(table, chosen.out, source)


if __name__ == "__main__":
    main()
