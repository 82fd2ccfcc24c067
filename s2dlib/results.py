"""What is remembered: a run's record, all records as one table, our rows beside the paper's.

A run's folder holds config.json, history.csv and metrics.json. The last is written last: where it
is, the run is complete.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from s2dlib.config import (
    CONFIG_FILE,
    METRICS_FILE,
    PRESETS,
    SAME_RUN,
    DataConfig,
    TrainConfig,
)
from s2dlib.data import TRUTH, VideoDataset, load_batches
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import (
    Theta,
    check_clips,
    distance_to_truth,
    frozen_theta,
    grid_centres,
    nearest_detail_frame,
)
from s2dlib.train import batch_sums, evaluate, theta_at_test

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "decord",
    "decord2",
    "s2dlib",
)  # one of decord, decord2
SETTING = ["run", "preset", "variant", "seed", "recipe", "test_split"]
COLUMNS = [*SETTING, "data", "device", "complete"]
METRICS = ["top1", "top5", "snet_top1", "gmacs", "n_clips"]  # always there, NaN where not measured
MARKS = {  # what is on in each row of Table 2 (the paper's tick marks)
    **{"a1": "SNet", "a2": "DNet", "a0": "SNet, DNet"},
    **{"b1": "neither", "b2": "sample", "b3": "fuse", "b0": "sample, fuse"},
    **{"c1": "neither", "c2": "space", "c3": "time", "c0": "space, time"},
}
PAPER = ["top1", "top5", "gflops"]
COMPARISONS = {  # what the text concludes from Table 2 (Sec. 4.3): better row, other row, by what
    ("a0", "a1"): "DNet added to SNet",
    ("a0", "a2"): "SNet added to DNet",
    ("b2", "b1"): "sampling, without fusion",
    ("b3", "b1"): "fusion, without sampling",
    ("b0", "b2"): "fusion added to sampling",
    ("b0", "b3"): "sampling added to fusion",
    ("c2", "c1"): "sampling in space alone",
    ("c3", "c1"): "sampling in time alone",
    ("c0", "c2"): "time added to space",
    ("c0", "c3"): "space added to time",
}
CONTROLS = {  # words -> a metric of the full model's runs, or a trial (Snakefile)
    "learned theta (a0)": "a0",
    "the mean theta of all clips": "top1_mean",
    "another clip's theta": "top1_shuffled",
    "the uniform grid": "top1_uniform",
    "the true centre, own strides": "top1_truth",
    "trained with the best constant window": "constant",
    "trained with the truth": "truth",
}
PARTS = {  # words -> the trial that changes one thing about the full model (Snakefile)
    "the full model (a0)": "a0",
    "linear filters (Sec. 3.2)": "linear",
    "theta head of the paper, by FC layers": "fc",
    "no gradient from theta into SNet": "detached",
    "DNet has seen whole frames only": "nozoom",
    "DNet starts from nothing": "noclose",
    "the paper's words: from scratch, one stage, FC head": "paper",
    "the release: two stages, FC head, its loss": "authors",
    "alpha = 0.01 (0.1)": "alpha-0.01",
    "alpha = 1 (0.1)": "alpha-1",
    "k = 2 (5)": "k-2",
    "k = 10 (5)": "k-10",
    "C_m = 16 (64)": "context-16",
    "C_m = 256 (64)": "context-256",
}
OURS = {  # table and row of the paper -> the preset that is that row
    ("1-k400", "S2DNet X3D-S/X3D-M"): "kinetics400-x3d-s-m",
    ("1-k400", "S2DNet X3D-S/X3D-XL"): "kinetics400-x3d-s-xl",
    ("1-ssv2", "S2DNet MN2/R50"): "ssv2",
    ("3a", "S2DNet MN2/R50"): "mini-kinetics",
    ("3b-v1", "S2DNet MN2/R50"): "ssv1",
    ("3b-v2", "S2DNet MN2/R50"): "ssv2-efficient",
    ("4", "S2DNet MN2/R50"): "ssv2",
    ("1-k400", "X3D X3D-M"): "x3d-m",
    ("1-k400", "X3D X3D-XL"): "x3d-xl",
    ("1-ssv2", "TSM R50"): "tsm-r50",
    ("1-ssv2", "TDN R50"): "tdn-r50",
    ("4", "TSM R50"): "tsm-r50",
    ("4", "TDN R50"): "tdn-r50",
}


def provenance(
    command: str | None, device: torch.device | str, seed: int, data: str
) -> dict[str, Any]:
    """How a record came about, enough to repeat it.

    Args:
        command: the shell command; None: the one s2dlib.run was called with, if it was.
        device: where the run computed.
        data: the data set's name or its CSV.
    """
    device = torch.device(device)
    return {
        "command": command or os.environ.get("S2D_COMMAND", "by hand in JupyterLab"),
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "data": data,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(
    run_dir: str | Path,
    config: dict[str, Any],
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write config.json, history.csv and, last, metrics.json; a kill leaves no half record."""
    run_dir = Path(run_dir)
    texts = {
        CONFIG_FILE: json.dumps(config, indent=1) + "\n",
        "history.csv": pd.DataFrame(history).to_csv(index=False, float_format="%.6g"),
        METRICS_FILE: json.dumps(metrics, indent=1) + "\n",
    }
    (run_dir / METRICS_FILE).unlink(missing_ok=True)  # an older run's: not complete until below
    for name, text in texts.items():
        _write(run_dir / name, text)


def read_records(runs_dir: str | Path) -> pd.DataFrame:
    """All runs as one tidy table: a row a run, unfinished ones too (complete is False).

    Returns:
        COLUMNS, METRICS and every other number or word of the metrics.json files.
    """
    if not (runs_dir := Path(runs_dir)).is_dir():
        raise FileNotFoundError(f"{runs_dir}: expected the folder of runs; make reproduce fills it")
    rows = []
    for folder in sorted(p for p in runs_dir.iterdir() if p.is_dir()):
        config, metrics = _read(folder / CONFIG_FILE), _read(folder / METRICS_FILE)
        if metrics and not config:
            raise ValueError(f"{folder}: metrics.json without config.json; run it again")
        source = config.get("provenance", {})
        row = {name: config.get(name) for name in SETTING} | metrics
        row |= {"run": folder.name, "complete": bool(metrics)}
        row |= {"data": source.get("data"), "device": source.get("device")}
        rows.append({k: v for k, v in row.items() if not isinstance(v, dict | list)})
    table = pd.DataFrame(rows)
    names = [*COLUMNS, *METRICS]
    return table.reindex(columns=names + [c for c in table.columns if c not in names])


def paper_table(path: str | Path) -> pd.DataFrame:
    """The paper's Tables 1-4, a line a row of a table: columns table, row, then one a metric."""
    long = pd.read_csv(path, dtype=str)
    wide = long.pivot(index=["table", "row"], columns="metric", values="value")
    order = pd.MultiIndex.from_frame(long[["table", "row"]].drop_duplicates())
    wide = wide.reindex(index=order, columns=long["metric"].unique()).reset_index()
    for name in set(wide.columns) - {"table", "row", "backbone", "frames", "reproduced"}:
        wide[name] = pd.to_numeric(wide[name])
    return wide.rename_axis(columns=None)


def table2(records: pd.DataFrame, paper: pd.DataFrame, preset: str) -> pd.DataFrame:
    """All 11 rows of Table 2, ours (mean and sample sd over seeds) beside the paper's.

    Rows that are one model share its runs (SAME_RUN). What was not measured stays missing.

    Args:
        records: from read_records.
        paper: from paper_table.
    """
    done = _rows_of(records, preset)
    rows = []
    for row, marks in MARKS.items():
        ours = done[done["variant"] == SAME_RUN.get(row, row)]
        theirs = paper[(paper["table"] == f"2{row[0]}") & (paper["row"] == row)].iloc[0]
        measured = {
            "top1": ours["top1"].mean(),
            "sd": ours["top1"].std(),  # missing for one seed
            "n_seeds": len(ours),
            "top5": ours["top5"].mean(),
            "gmacs": ours["gmacs"].mean(),
        }
        rows.append({"row": row, "on": marks} | measured | {f"paper_{m}": theirs[m] for m in PAPER})
    return pd.DataFrame(rows)


def comparisons(records: pd.DataFrame, paper: pd.DataFrame, preset: str) -> pd.DataFrame:
    """What the paper concludes from Table 2, and whether our rows agree.

    Args: as in table2.

    Returns:
        rows, what is compared, the difference in top-1 (ours, the half-width of its 95 % interval
        over seeds, the number of seeds, the paper's), and whether ours has the paper's sign: yes,
        no, or missing.
    """
    done = _rows_of(records, preset).set_index(["variant", "seed"])["top1"]
    theirs, lines = paper.drop_duplicates("row").set_index("row")["top1"], []
    for (better, other), what in COMPARISONS.items():
        pair = [SAME_RUN.get(row, row) for row in (better, other)]
        line = {"rows": f"{better} - {other}", "what": what} | difference(
            *(done[row] if row in done.index else done[:0].droplevel(0) for row in pair)
        )
        line["paper"] = theirs[better] - theirs[other]
        holds = None if pd.isna(line["ours"]) else line["ours"] * line["paper"] > 0
        lines.append(line | {"holds": {None: None, True: "yes", False: "no"}[holds]})
    return pd.DataFrame(lines)


def difference(ours: pd.Series, other: pd.Series) -> dict[str, float]:
    """Mean difference of two kinds of runs over the seeds that both have, and its 95 % interval.

    Runs of one seed start from the same networks, so they are compared in pairs (Student's t).

    Args:
        ours, other: top-1 by seed.

    Returns:
        ours (points; missing without a common seed), interval (half-width; missing for one seed),
        n_seeds.
    """
    pairs = (ours - other).dropna()
    n = len(pairs)
    half = stats.t.ppf(0.975, n - 1) * pairs.std() / n**0.5 if n > 1 else float("nan")
    return {"ours": pairs.mean(), "interval": half, "n_seeds": n}


def against_full_model(
    records: pd.DataFrame, preset: str, kinds: dict[str, str], metrics: Sequence[str] = ()
) -> pd.DataFrame:
    """Runs with one thing changed, and exchanged thetas, beside the full model (a0) of each seed.

    Args:
        records: from read_records.
        kinds: words for a line -> its trial, the middle of the runs' name <preset>-<trial>-<seed>;
            or a control, a metric top1_... of the full model's own runs.
        metrics: other numbers of the records to show, means over seeds.

    Returns:
        A line a kind: top1 (mean), sd, n_seeds, a0_minus (the full model's top-1 less this one's,
        on the seeds that both have), interval (half-width of its 95 % interval), and metrics. What
        was not measured stays missing.
    """
    done = records[(records["preset"] == preset) & records["complete"].astype(bool)]
    done = done[done["test_split"] == "test"]
    trial = done["run"].str.removeprefix(f"{preset}-").str.replace(r"-\d+$", "", regex=True)
    full, lines = done[trial == "a0"].set_index("seed"), []
    for words, kind in kinds.items():
        runs = full if kind.startswith("top1_") else done[trial == kind].set_index("seed")
        top1 = runs.get(kind if kind.startswith("top1_") else "top1", pd.Series(dtype=float))
        less = difference(full["top1"], top1)
        line = {"what": words, "top1": top1.mean(), "sd": top1.std(), "n_seeds": top1.count()}
        line |= {"a0_minus": less["ours"], "interval": less["interval"]}
        lines.append(line | {name: runs[name].mean() for name in metrics if name in runs})
    return pd.DataFrame(lines)


def _rows_of(records: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The complete runs of a preset, one a row and seed, all tested on the same clips."""
    done = records[(records["preset"] == preset) & records["complete"].astype(bool)]
    repeated = done[done.duplicated(["variant", "seed"], keep=False)]
    if len(repeated):
        raise ValueError(f"one seed measured twice, keep one: {', '.join(repeated['run'])}")
    if len(done[["data", "n_clips"]].drop_duplicates()) > 1:
        raise ValueError(
            f"the runs of preset {preset!r} were tested on different clips, so they make no table: "
            + ", ".join(f"{r.run} ({r.n_clips} of {r.data})" for r in done.itertuples())
        )
    return done


def beside_paper(records: pd.DataFrame, paper: pd.DataFrame, table: str) -> pd.DataFrame:
    """One of the Tables 1, 3, 4: the paper's lines, and ours (mean over seeds) where measured.

    Args:
        records: from read_records.
        paper: from paper_table.
        table: as named there, "1-k400" and so on.
    """
    lines = paper[paper["table"] == table].dropna(axis=1, how="all").drop(columns="table")
    done = records[records["complete"].astype(bool) & (records["variant"] == "a0")]
    names = {"top1": "our_top1", "top5": "our_top5", "gmacs": "our_gmacs"}
    ours = done.groupby("preset")[list(names)].mean().rename(columns=names)
    presets = [OURS.get((table, row)) for row in lines["row"]]
    return lines.reset_index(drop=True).join(ours.reindex(presets).reset_index(drop=True))


def command(
    preset: str,
    variant: str = "a0",
    seed: int = 0,
    csv: str = "",
    splits: Collection[str] = ("train", "val", "test"),
) -> str:
    """The shell command that makes a run; or that its preset is yet to come.

    Args:
        csv: of another data set than the preset's, or its checked index.
        splits: that the data set has; without test, val is tested, as is usual on Kinetics and
            Something-Something; without val, test is watched.
    """
    if preset not in PRESETS:
        return f"(needs a preset {preset})"
    if preset == "synthetic" and not csv:
        return "make reproduce"
    row = SAME_RUN.get(variant, variant)
    stem = Path(csv or PRESETS[preset].data.csv).stem.removesuffix(".checked")
    own = stem == Path(PRESETS[preset].data.csv).stem
    run = f"{preset if own else stem}-{row}-{seed}"
    values = {"preset": preset, "variant": row, "recipe": next(iter(PRESETS[preset].recipes))}
    values |= {"seed": seed} | ({"csv": csv} if csv else {}) | ({} if own else {"name": run})
    values |= {} if "test" in splits else {"test_split": "val"}
    values |= {} if "val" in splits else {"val_split": "test"}
    words = " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in values.items())
    notebook = "notebooks/02_train.ipynb"
    executed = shlex.quote(f"results/runs/{run}/02_train.ipynb")
    return f"python -m s2dlib.run {notebook} {executed} {words}"


def load_run(run_dir: str | Path) -> tuple[S2DNet, dict[str, Any]]:
    """The trained model of a run, or a shared one, ready to evaluate, and its config.json."""
    model = S2DNet.from_pretrained(run_dir)
    return model, model.record


@torch.no_grad()
def where_it_looks(
    model: S2DNet,
    dataset: VideoDataset,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> pd.DataFrame:
    """What the full model does with each test clip: its verdicts, and where it looks.

    Returns:
        A row a clip: label, snet and s2dnet (the classes they say); confidence (SNet's largest
        probability); looks_t (mu_t T) and delta_t in raw frames; looks_y, looks_x, delta_y, delta_x
        in raw pixels, of the detail frame nearest to the true moment (of the middle one where it is
        not known); and, where the truth is known, t, duration, size, y, x of the detail,
        sampler.distance_to_truth, and nearest_t, from the true moment to the detail frame nearest
        to it (raw frames).
    """
    if model.snet is None or model.dnet is None:
        raise ValueError(
            "expected SNet and DNet: rows a1 and a2 of Table 2 look nowhere by themselves"
        )
    model, rows, size = model.to(device).eval(), [], model.config.detail_size
    for batch in load_batches(dataset, batch_size, workers, device=device):
        out = model(batch["frames"], batch["n_frames"])
        theta, extent = out.theta.map(torch.Tensor.cpu), batch["frames"].shape[-2:]
        batch = {name: value.cpu() for name, value in batch.items() if name != "frames"}
        moment = theta.mu_t * batch["n_frames"]  # (B,)
        row = {"label": batch["label"], "snet": out.logits.argmax(1).cpu()}
        row |= {"confidence": out.logits.float().softmax(1).amax(1).cpu()}
        row |= {"s2dnet": out.scores.argmax(1).cpu(), "looks_t": moment, "delta_t": theta.delta_t}
        if "truth" in batch:
            moment = batch["truth"][:, 0]
            row |= dict(zip(TRUTH, batch["truth"].unbind(1), strict=True))
            row |= distance_to_truth(theta, batch["truth"], batch["n_frames"], *extent, size)
        z = nearest_detail_frame(theta, moment, batch["n_frames"], size[0])  # (B, 1)
        if "truth" in batch:
            p_t = grid_centres(theta.mu_t, theta.delta_t, size[0], batch["n_frames"])  # (B, T_D)
            row |= {"nearest_t": (p_t.gather(1, z)[:, 0] - moment).abs()}
        space = {"looks_y": theta.mu_y * extent[0], "looks_x": theta.mu_x * extent[1]}
        space |= {"delta_y": theta.delta_y, "delta_x": theta.delta_x}
        row |= {name: values.gather(1, z)[:, 0] for name, values in space.items()}
        rows.append(pd.DataFrame({name: values.numpy() for name, values in row.items()}))
    return pd.concat(rows, ignore_index=True)


def looks_of(run_dir: str | Path, csv: str = "", split: str = "test") -> pd.DataFrame:
    """where_it_looks of a run's model on a split of its data set, or of another CSV.

    Returns:
        Also variant, seed, n_frames of the clips, and right (percent: 100 or 0).
    """
    model, config = load_run(run_dir)
    data = DataConfig(**config["data"])
    data = replace(data, csv=csv or data.csv, cache=None if csv else data.cache, test_crops=1)
    dataset, device = VideoDataset(data, split, train=False), best_device()
    looks = where_it_looks(model, dataset, device=device, workers=workers_of(config))
    right = 100.0 * (looks["label"] == looks["s2dnet"])
    known = {"variant": config["variant"], "seed": config["seed"], "n_frames": data.n_frames}
    return looks.assign(right=right, **known)


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def workers_of(record: dict[str, Any]) -> int:
    """How many processes read the clips of a run, by its record."""
    return max((train.get("workers", 0) for train in record.get("recipes", {}).values()), default=0)


def by_thirds(clips: pd.DataFrame, column: str) -> pd.DataFrame:
    """Top-1 in thirds of the clips by a number of their detail, a row a theta and seed.

    Args:
        clips: rows of looks_of, with a column theta (words).

    Returns:
        the column (words, a range), theta, seed, top1.
    """
    edges = clips[column].quantile([0, 1 / 3, 2 / 3, 1]).to_list()
    words = [f"{low:.0f}-{high:.0f}" for low, high in pairwise(edges)]
    third = pd.cut(clips[column], edges, labels=words, include_lowest=True)
    means = clips.groupby([third, "theta", "seed"], observed=True)["right"].mean()
    return means.rename("top1").reset_index()


class SeenThetas:
    """Each clip's own theta, kept while a model is evaluated: evaluate(on_batch=seen.add)."""

    def __init__(self) -> None:
        self.indices: list[Tensor] = []
        self.thetas: list[Theta] = []

    def add(self, out: Output, batch: dict[str, Tensor]) -> None:
        """Keep a batch's theta, and which clips these are."""
        self.indices.append(batch["index"])
        self.thetas.append(out.theta.map(torch.Tensor.detach))

    def all(self) -> Theta:
        """Of all clips, in the order in which they came. (n,) or (n, T_D) each"""
        names = vars(self.thetas[0])
        return Theta(**{k: torch.cat([vars(t)[k] for t in self.thetas]) for k in names})

    def rows(self, n_clips: int) -> Tensor:
        """The row of `all` of each clip by its index; 0 for one that could not be read. (n,)"""
        indices = torch.cat(self.indices)
        rows = indices.new_zeros(n_clips)
        rows[indices] = torch.arange(len(indices), device=indices.device)
        return rows


def metrics_of(
    model: S2DNet, dataset: VideoDataset, config: TrainConfig, device: str = "cpu"
) -> dict[str, float]:
    """What a record says of a trained model: accuracy, and what its theta is worth.

    The clips are read twice: the thetas of all are known only when all have been seen.

    Args:
        dataset: the split to test on.
        config: batch size, workers, precision, and where DNet looks.

    Returns:
        As of train.evaluate and, where the model learns theta, of controls.
    """
    how = {"batch_size": config.batch_size, "workers": config.workers, "device": device}
    how |= {"amp": config.amp}
    learns = model.snet is not None and model.snet.theta_head is not None
    seen, look = SeenThetas(), theta_at_test(model, config)
    keep = seen.add if learns and look is None else None
    metrics = evaluate(model, dataset, theta=look, on_batch=keep, **how)
    if learns and look is not None:  # its own thetas are still to be seen
        evaluate(model, dataset, on_batch=seen.add, **how)
    return metrics | (controls(model, dataset, seen, **how) if learns else {})


@torch.no_grad()
def controls(
    model: S2DNet,
    dataset: VideoDataset,
    seen: SeenThetas,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "cpu",
    amp: bool = True,
) -> dict[str, float]:
    """Top-1 of a trained model when its theta is exchanged at test time, all else kept.

    What theta is worth: a model that owes its accuracy to where it looks loses it with the mean
    theta of all clips, with another clip's, and with the uniform grid; the truth tells how much
    better it could look. Each clip is read once, and sampled at all of these thetas.

    Args:
        seen: the model's own thetas of these clips.
        others: as in train.evaluate.

    Returns:
        Percent: top1_mean, top1_shuffled, top1_uniform, and, where the truth is known, top1_truth
        (centres on the detail, the model's own strides).
    """
    device = torch.device(device)
    model, looks, n = model.to(device).eval(), _exchanged(model, dataset, seen), 0
    sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in looks}
    for batch in load_batches(dataset, batch_size, workers, device=device):
        frames, n_frames = batch["frames"], check_clips(batch["frames"], batch["n_frames"])
        n += len(frames)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            glance = model.glance(frames, n_frames)
            for name, look in looks.items():
                out = model.look_closely(glance, frames, n_frames, look(batch))
                sums[name] += batch_sums(out, batch["label"], dataset.n_crops)["top1"]
    return {f"top1_{name}": value.item() / n for name, value in sums.items()}


def _exchanged(
    model: S2DNet, dataset: VideoDataset, seen: SeenThetas
) -> dict[str, Callable[[dict[str, Tensor]], Theta]]:
    """By name, what gives the clips of a batch another theta than their own."""
    own, rows = seen.all(), seen.rows(len(dataset) * dataset.n_crops)
    mean = own.map(lambda v: v.mean(dim=0, keepdim=True).expand_as(v))
    another = own.map(lambda v: v.roll(dataset.n_crops, dims=0))  # no video keeps its own

    def uniform(batch: dict[str, Tensor]) -> Theta:
        extent = (batch["n_frames"], *batch["frames"].shape[-2:])
        return frozen_theta(*extent, model.config.detail_size, "full")

    def true_centres(batch: dict[str, Tensor]) -> Theta:
        theta = own.map(lambda v: v[rows[batch["index"]]])
        t, _, _, y, x = batch["truth"].unbind(1)  # (B,) each
        n, (H, W) = batch["n_frames"], batch["frames"].shape[-2:]
        mu_y, mu_x = (v[:, None].expand_as(theta.mu_y) for v in (y / H, x / W))
        return replace(theta, mu_t=t / n, mu_y=mu_y, mu_x=mu_x)

    looks = {
        "mean": lambda batch: mean.map(lambda v: v[rows[batch["index"]]]),
        "shuffled": lambda batch: another.map(lambda v: v[rows[batch["index"]]]),
        "uniform": uniform,
    }
    return looks | ({"truth": true_centres} if dataset.has_truth else {})


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table as people read it: one decimal (below 1, two digits), a dash for what is missing."""
    return table.astype(object).map(_cell)


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table; numbers to one decimal (below 1, two digits), missing ones a dash."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    lines = [list(table.columns), ["--:" if n else ":--" for n in numeric]]
    lines += as_text(table).to_numpy().tolist()
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def write_table(table: pd.DataFrame, stem: str | Path) -> tuple[Path, Path]:
    """Write stem.csv (for machines) and stem.md (for people), and return their paths."""
    csv, md = Path(f"{stem}.csv"), Path(f"{stem}.md")
    _write(csv, table.to_csv(index=False, float_format="%.6g"))
    _write(md, to_markdown(table))
    return csv, md


def write_measured(table: pd.DataFrame, stem: str | Path, source: dict[str, Any]) -> None:
    """Write a table of measurements as stem.csv and stem.md, and how it came about as stem.json.

    Args:
        source: of provenance.
    """
    write_table(table, stem)
    _write(Path(f"{stem}.json"), json.dumps(source, indent=1) + "\n")


def _cell(value: object) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
    return str(value).replace("|", r"\|").replace("\n", " ")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); delete the folder and run it again"
        ) from error
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: expected a JSON object with entries, got {value!r:.40}")
    return value


def _commit(root: Path) -> str:
    """The commit of the code, with + where the tree differs from it (results/ aside).

    Of a copy without .git, what the variable S2D_COMMIT says.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if not (root / ".git").exists():
        return os.environ.get("S2D_COMMIT", "unknown (no git checkout)")
    try:
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({type(error).__name__})"


def _versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
