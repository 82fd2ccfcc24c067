"""Steps of gpu_check.py that are neither a benchmark nor tests; it starts each in a process.

Each yields claims: what, found, goal, note. Without a GPU sizes are tiny, in Triton's interpreter.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from gpu_check import ROOT, WORK, Row, n_workers
from sampler import SIDE, SIZE, measure_rates, median_of_calls
from torch import Tensor
from torch.nn.functional import cosine_similarity
from training import InMemory

from s2dlib.apps.inference import for_inference
from s2dlib.config import CONFIG_FILE, WEIGHTS
from s2dlib.data import synthetic
from s2dlib.data.dataset import VideoDataset
from s2dlib.losses import s2d_loss
from s2dlib.model import build_model
from s2dlib.presets import PRESETS
from s2dlib.report.records import provenance
from s2dlib.report.tables import write_measured
from s2dlib.sampler import grid_centres
from s2dlib.training import epoch, launch, loop
from s2dlib.training.optim import make_optimizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = DEVICE.type == "cpu"
LARGE, BACKEND = ("synthetic", "eager") if TINY else ("synthetic-large", "inductor")
SHAPES = {  # raw frames, and the volume
    "small": ((1, 12, 14, 20), (1, 9, 18)),
    "one row, one column": ((3, 12, 1, 1), (2, 3, 2)),
    "shorter than a band": ((3, 5, 9, 11), (3, 17, 33)),
    "odd": ((3, 31, 45, 71), (5, 33, 47)),
    "synthetic": ((1, 48, 64, 64), (8, 20, 20)),
    "mini-kinetics": ((3, 150, SIDE, SIDE), SIZE),
    "ssv2": ((3, 85, SIDE, SIDE), (16, 144, 144)),
}
KINDS = {  # mu, and the strides as shares of full coverage, around which they are drawn
    **{"outside": (1.4, 0.6), "zoomed": (0.5, 0.4), "whole": (0.5, 1.0)},
    **{"corner": (0.0, 0.2), "twice": (0.5, 1.8), "far outside": (-2.5, 0.8)},
}
LIMITS = {  # of the kernels' errors, by precision
    **{("volume", "highest"): 1e-5, ("slopes", "highest"): 2e-4},
    **{("volume", "high"): 5e-3, ("slopes", "high"): 2e-2},
}
STAGES = {  # what 02_train is given, as in the Snakefile; the weights of one start another
    "snet": {"variant": "a1", "recipe": "snet", "test_split": "val"},
    "closeups": {"variant": "a2", "recipe": "closeups", "train_split": "closeups"},
    "zoom": {"variant": "a2", "recipe": "zoom", "train_split": "closeups", "dnet_from": "closeups"},
    "a0": {"snet_from": "snet", "dnet_from": "zoom"},
}


def facts(_: Path) -> Iterator[tuple]:
    """What is here, and how fast it copies and multiplies."""
    source = provenance("-", DEVICE, 0, "-")
    yield "device", source["device"], "-", f"torch {torch.__version__}, commit {source['commit']}"
    copied, multiplied = measure_rates(DEVICE.type, TINY)
    yield "copy, GB/s", copied / 1e6
    block = torch.empty(2**28, dtype=torch.uint8, pin_memory=not TINY)
    ms = median_of_calls(lambda: block.to(DEVICE, copy=True), DEVICE.type)
    yield "copy to the GPU, GB/s", block.numel() / ms / 1e6
    yield "product in float32, 10^12 multiply-adds a second", multiplied / 1e9


def error(ours: Tensor, reference: Tensor, least: float = 1e-30) -> float:
    """Relative, by norms; infinite where something is not finite."""
    ours, reference = ours.detach().double(), reference.detach().to(ours.device).double()
    far = (ours - reference).norm().item() / max(reference.norm().item(), least)
    return far if ours.isfinite().all() else float("inf")


def compare(shape: str, kind: str, dtype: str) -> tuple[float, float, bool]:
    """Volume and slopes against the tests' dense form in float64; whether slopes repeat."""
    sys.path.append(str(ROOT / "tests"))
    from test_banded import dense

    from s2dlib.kernels import triton

    (C, T, *sides), size = SHAPES[shape]
    frames, p = torch.randint(256, (2, C, T, *sides), dtype=torch.uint8, device=DEVICE), []
    frames, n = frames.to(getattr(torch, dtype)), torch.tensor([T, max(1, T // 3)], device=DEVICE)
    for length, n_out, axes in zip((n.float(), *sides), size, (1, 2, 2), strict=True):
        (mu, share), drawn = KINDS[kind], torch.rand(2, *(2, size[0])[:axes], device=DEVICE)
        delta = share * (0.5 + drawn[1]) * length / n_out
        p.append(grid_centres(mu + 0.2 * drawn[0], delta, n_out, length))
    volume = triton.volume(frames, *p, n)
    gradient = torch.randn_like(volume)
    slopes, again = (triton.slopes(frames, *p, n, gradient) for _ in range(2))
    exact = [v.double().requires_grad_() for v in p]
    expected = dense(frames, *exact, n)
    exact = torch.autograd.grad((expected * gradient).sum(), exact)
    # Off the screen the exact slopes vanish: they are measured against the clips' own values.
    least = 0.01 * 255 * gradient.norm().item()
    far = max(error(a, b, least) for a, b in zip(slopes, exact, strict=True))
    return error(volume, expected), far, all(map(torch.equal, slopes, again))


def kernels(_: Path) -> Iterator[tuple]:
    """Volume and slopes over shapes, thetas, dtypes and precisions; the tests have the edges."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # what is not written stays NaN
    dtypes, rows = [(k, "highest") for k in ("uint8", "float32", "bfloat16")], []
    shapes, kinds = list(SHAPES)[: 1 if TINY else None], list(KINDS)[: 1 if TINY else None]
    choices = itertools.product(shapes, kinds, [*dtypes, ("uint8", "high")])
    for shape, kind, (dtype, precision) in choices:
        torch.set_float32_matmul_precision(precision)
        rows.append((shape, kind, dtype, precision, *compare(shape, kind, dtype)))
    yield f"kernels: slopes repeat in {len(rows)} cases", all(row[-1] for row in rows)
    for (what, precision), limit in LIMITS.items():
        column = 4 if what == "volume" else 5
        worst = max((row for row in rows if row[3] == precision), key=itemgetter(column))
        claim = f"kernels: {what}, products at precision {precision}"
        yield claim, worst[column], f"<= {limit:g}", ", ".join(worst[:3])


def whole_model(preset: str, T: int, goals: dict[str, float], _: Path) -> Iterator[tuple]:
    """GPU against CPU; a step in bfloat16, by the dense form or compiled, against a plain one."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    data, model = PRESETS[preset].data, build_model(replace(PRESETS[preset].model, dropout=0.0))
    size = (4, 1 if data.gray else 3, T, data.crop, data.crop)
    frames, n = torch.randint(256, size, dtype=torch.uint8), torch.tensor([T, T // 2, T, T])
    with torch.no_grad():
        expected = model.eval()(frames[:2], n[:2])
        frames, n = frames.to(DEVICE), n.to(DEVICE)
        out = model.to(DEVICE)(frames[:2], n[:2])
        folded = for_inference(model)(frames[:2], n[:2])
    found = {k: error(v, getattr(expected.theta, k)) for k, v in vars(out.theta).items()}
    found |= {k: error(getattr(out, k), getattr(expected, k)) for k in ("logits", "detail_logits")}
    found["folded"] = error(folded.detail_logits, expected.detail_logits)
    worst = max(found, key=found.get)
    yield f"{preset}: GPU / CPU, theta and logits", found[worst], "<= 1e-3", worst
    parts = {"SNet": model.snet.backbone, "f_theta": model.snet.theta_head, "DNet": model.dnet}
    plain, labels = {}, torch.arange(len(n), device=DEVICE)
    for name, goal in ({"plain": None} | goals).items():
        model.train().zero_grad()
        model.detail_sampler.algorithm = "dense" if name == "dense" else "auto"
        step = torch.compile(model, backend=BACKEND) if name == "compiled" else model
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=name == "bfloat16"):
            out = step(frames, n)
        s2d_loss(out, labels, masked=False).backward()
        for k, part in parts.items():
            gradient = torch.cat([p.grad.flatten() for p in part.parameters()])
            found[k] = cosine_similarity(gradient, plain.setdefault(k, gradient), dim=0).item()
        if goal is not None:
            worst = min(parts, key=found.get)
            yield f"{preset}: gradients, cosine, {name}", found[worst], f">= {goal}", worst


def waits(_: Path) -> Iterator[tuple]:
    """How often the CPU waits for the GPU in a step: an epoch of 6 steps, less one of 2."""
    preset, found = PRESETS[LARGE], []
    config = replace(preset.recipes["paper"], batch_size=2, workers=0)
    model = build_model(preset.model).to(DEVICE)
    optimizer = make_optimizer(model, config)
    if not TINY:
        torch.cuda.set_sync_debug_mode("warn")
    for n_steps in (2, 2, 6):  # in the first one things are made
        clips = InMemory(preset.data, 2 * n_steps, 20)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch.train_epoch(epoch.TrainState(model, optimizer, config, device=DEVICE), clips, 0)
        waited = [w for w in caught if "synchroniz" in str(w.message)]
        found.append(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waited))
    more = found[2] - found[1]
    yield "waits in a training step", more.total() / 4, "-" if TINY else "<= 1", str(dict(more))


def write_clips(name: str, share: float, folder: Path) -> list[VideoDataset]:
    """A few synthetic videos: clips to train on, and to validate."""
    synthetic.SPLITS = {split: synthetic.SPLITS[split] for split in ("train", "val")}
    csv = synthetic.write_dataset(folder, name, share)
    data = replace(PRESETS[name].data, csv=str(csv), cache=None)
    return [VideoDataset(data, split, train=split == "train") for split in ("train", "val")]


def learn(out: Path) -> Iterator[tuple]:
    """A short training from files, in bfloat16."""
    epochs, share, workers = (2, 0.001, 0) if TINY else (6, 0.04, n_workers())
    sets, preset = write_clips(LARGE, share, out / WORK / "clips"), PRESETS[LARGE]
    config = replace(preset.recipes["paper"], epochs=epochs, batch_size=10, eval_every=epochs)
    config = replace(config, workers=workers, lr=1e-3, lr_theta=1e-3)
    model, run_dir = build_model(preset.model), out / WORK / "run"
    history = loop.fit(model, *sets, config, run_dir=run_dir, device=DEVICE)
    yield "clips/s, training from files", len(sets[0]) / history[-2]["seconds"]
    ratio = history[-1]["train_loss_s"] / history[0]["train_loss_s"]  # L_d grows with the top k
    yield "SNet's loss in the last epoch / in the first", ratio, "-" if TINY else "<= 1"


def processes(out: Path) -> Iterator[tuple]:
    """NCCL with one process; two on this GPU by gloo, since NCCL refuses them: the same loss."""
    preset, work = PRESETS["synthetic"], out / WORK
    sets = write_clips("synthetic", 0.001, work / "few")
    config = replace(preset.recipes["joint"], epochs=1, batch_size=8, amp=False)
    model = build_model(replace(preset.model, dropout=0.0))
    one = launch.fit_in_processes(
        model, *sets, config, run_dir=work / "one", device=DEVICE, processes=1
    )
    (work / "two").mkdir(exist_ok=True)
    for name in (CONFIG_FILE, launch.START):
        shutil.copy(work / "one" / name, work / "two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    job = [__file__, str(work / "two"), "--device", DEVICE.type]
    subprocess.run([*torchrun, *job], check=True)
    two = pd.read_csv(work / "two" / "history.csv")["train_loss"][0]
    yield "loss of 2 processes / of 1, less 1", abs(two / one[0]["train_loss"] - 1), "<= 1e-2"


def by_gloo() -> None:
    """training/launch.py as one of several processes on one GPU."""
    start, os.environ["LOCAL_RANK"] = dist.init_process_group, "0"
    dist.init_process_group = lambda _: start("gloo")
    launch.main()


def starts(out: Path) -> Iterator[tuple]:
    """The full model (a0) on the synthetic videos; its top-1 among those of the CPU's seeds."""
    work, runs = out / WORK, ROOT / "results/runs"
    csv = work / "all/all.csv" if TINY else ROOT / PRESETS["synthetic"].data.csv
    if not csv.is_file():
        synthetic.write_dataset(csv.parent, share=0.001 if TINY else 1.0)
    weights = {name: runs / f"synthetic-{name}-0" / WEIGHTS for name in STAGES}
    known = not TINY and weights["snet"].is_file() and weights["zoom"].is_file()
    for name in ["a0"] if known else STAGES:
        given = {k: weights[v] if k[4:] == "_from" else v for k, v in STAGES[name].items()}
        given |= {"name": name, "csv": csv, "results": work, "smoke": TINY}
        given |= {"overrides": "{cache: null}"} if TINY else {}
        words = [word for k, v in given.items() for word in ("-p", k, str(v))]
        files = ["notebooks/02_train.ipynb", str(work / f"{name}.ipynb")]
        subprocess.run(
            [sys.executable, "-m", "s2dlib", "run", *files, *words], cwd=ROOT, check=True
        )
        weights[name] = work / "runs" / name / WEIGHTS
    row = json.loads((work / "runs/a0/metrics.json").read_text())
    paths = runs.glob("synthetic-a0-*/metrics.json")
    seeds = pd.Series([json.loads(path.read_text())["top1"] for path in paths])
    low, high = seeds.mean() - 2 * seeds.std(), seeds.mean() + 2 * seeds.std()
    source = provenance("python benchmarks/gpu_check.py --steps starts", DEVICE, 0, "synthetic")
    table = pd.DataFrame([row | {"cpu_low": low, "cpu_high": high, "cpu_seeds": len(seeds)}])
    write_measured(table, out / f"starts-{DEVICE.type}", source)
    for goal in (f">= {low:.1f}", f"<= {high:.1f}"):
        claim = f"top-1 of a0 is that of the CPU's {len(seeds)} seeds, +- 2 deviations"
        yield claim, row["top1"], "-" if TINY else goal, f"trained in {row['seconds_train']:.0f} s"


STEPS = {f.__name__: f for f in (facts, kernels, waits, learn, processes, starts)} | {
    "synthetic": partial(whole_model, "synthetic", 48, {"bfloat16": 0.9, "dense": 0.999}),
    "mini-kinetics": partial(whole_model, "mini-kinetics", 60, {"dense": 0.99}),
    "compiled": partial(whole_model, LARGE, 48, {"compiled": 0.9}),
}


def main() -> None:
    """gpu_steps.py STEP OUT PART: run it, and write what it has found after each claim."""
    if "RANK" in os.environ:  # from torchrun
        return by_gloo()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    step, part, out, rows = sys.argv[1], sys.argv[3], Path(sys.argv[2]).resolve(), []
    for found in STEPS[part](out):
        rows.append(asdict(Row(step, *found)))
        (out / WORK / f"{step}-{part}.json").write_text(json.dumps(rows))
    sys.exit(any(row["holds"] is False for row in rows))


if __name__ == "__main__":
    main()
