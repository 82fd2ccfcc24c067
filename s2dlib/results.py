"""What is remembered: a run's record, all records as one table, our rows beside the paper's.

A run's folder holds config.json, history.csv and metrics.json. The last is written last: where it
is, the run is complete.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from s2dlib.config import PRESETS, SAME_RUN, ModelConfig
from s2dlib.data import VideoDataset, choose_frames, collate
from s2dlib.model import S2DNet, build_model
from s2dlib.sampler import grid_centres
from s2dlib.synthetic import N_FRAMES, SIDE
from s2dlib.train import WEIGHTS

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "decord",
    "decord2",
    "s2dlib",
)  # one of decord, decord2
COLUMNS = ["run", "preset", "variant", "seed", "recipe", "data", "device", "complete"]
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
OURS = {  # table and row of the paper -> the preset whose full model is that row
    ("1-k400", "S2DNet X3D-S/X3D-M"): "kinetics400-x3d-s-m",
    ("1-k400", "S2DNet X3D-S/X3D-XL"): "kinetics400-x3d-s-xl",
    ("1-ssv2", "S2DNet MN2/R50"): "ssv2",
    ("3a", "S2DNet MN2/R50"): "mini-kinetics",
    ("3b-v1", "S2DNet MN2/R50"): "ssv1",
    ("3b-v2", "S2DNet MN2/R50"): "ssv2-efficient",
    ("4", "S2DNet MN2/R50"): "ssv2",
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
        "config.json": json.dumps(config, indent=1) + "\n",
        "history.csv": pd.DataFrame(history).to_csv(index=False, float_format="%.6g"),
        "metrics.json": json.dumps(metrics, indent=1) + "\n",
    }
    (run_dir / "metrics.json").unlink(missing_ok=True)  # an older run's: not complete until below
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
        config, metrics = _read(folder / "config.json"), _read(folder / "metrics.json")
        if metrics and not config:
            raise ValueError(f"{folder}: metrics.json without config.json; run it again")
        source = config.get("provenance", {})
        row = {name: config.get(name) for name in COLUMNS[:5]} | metrics
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
    done = records[(records["preset"] == preset) & records["complete"].astype(bool)]
    repeated = done[done.duplicated(["variant", "seed"], keep=False)]
    if len(repeated):
        raise ValueError(f"one seed measured twice, keep one: {', '.join(repeated['run'])}")
    if len(done[["data", "n_clips"]].drop_duplicates()) > 1:
        raise ValueError(
            f"the runs of preset {preset!r} were tested on different clips, so they make no table: "
            + ", ".join(f"{r.run} ({r.n_clips} of {r.data})" for r in done.itertuples())
        )
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


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """What the paper concludes from Table 2, and whether our rows agree.

    Args:
        table: from table2.

    Returns:
        rows, what is compared, the difference in top-1 (ours, its sd over seeds, the paper's), and
        whether ours has the paper's sign: yes, no, or missing.
    """
    by_row, lines = table.set_index("row"), []
    for (better, other), what in COMPARISONS.items():
        ours, theirs = (
            by_row.loc[better, name] - by_row.loc[other, name] for name in ("top1", "paper_top1")
        )
        sd = (by_row.loc[better, "sd"] ** 2 + by_row.loc[other, "sd"] ** 2) ** 0.5
        holds = None if pd.isna(ours) else "yes" if ours * theirs > 0 else "no"
        line = {"rows": f"{better} - {other}", "what": what, "ours": ours, "sd": sd}
        lines.append(line | {"paper": theirs, "holds": holds})
    return pd.DataFrame(lines)


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


def command(preset: str, variant: str = "a0", seed: int = 0, csv: str = "") -> str:
    """The shell command that makes a run; or that its preset is yet to come."""
    if preset not in PRESETS:
        return f"(needs a preset {preset})"
    if preset == "synthetic" and not csv:
        return "make reproduce"
    row = SAME_RUN.get(variant, variant)
    run = f"{Path(csv).stem or preset}-{row}-{seed}"
    values = {"preset": preset, "variant": row, "recipe": next(iter(PRESETS[preset].recipes))}
    values |= {"seed": seed} | ({"csv": csv, "name": run} if csv else {})
    words = " ".join(f"-p {name} {value}" for name, value in values.items())
    notebook = "notebooks/02_train.ipynb"
    return f"python -m s2dlib.run {notebook} results/runs/{run}/02_train.ipynb {words}"


def load_run(run_dir: str | Path) -> tuple[S2DNet, dict[str, Any]]:
    """The trained model of a run, ready to evaluate, and the run's config.json."""
    config = _read(Path(run_dir) / "config.json")
    weights = Path(run_dir) / WEIGHTS
    if not config or not weights.is_file():
        raise FileNotFoundError(
            f"{run_dir}: expected config.json and {WEIGHTS}, which a training leaves there and git "
            "does not keep; train the run again with the command in its config.json"
        )
    model = build_model(ModelConfig(**config["model"]))
    model.load_state_dict(load_file(weights))
    return model.eval(), config


def truth_in_clips(dataset: VideoDataset) -> pd.DataFrame | None:
    """Where the detail of each synthetic test clip is; None for videos that do not say.

    The CSV counts in frames and pixels of the video as written; here frame and pixel r of the clip,
    which is cut out of the middle, span r to r + 1.

    Returns:
        t and duration in raw frames of the clip, y and x in raw pixels.
    """
    if not {"t", "duration", "y", "x"} <= set(dataset.table.columns):
        return None
    config = dataset.config
    truth = dataset.table[["t", "duration", "y", "x"]].astype(float)
    start, scale = choose_frames(N_FRAMES, config)[0], config.short_side / SIDE
    truth["t"] = (truth["t"] - start) / config.frame_stride + 0.5
    truth["duration"] /= config.frame_stride
    corner = (config.short_side - config.crop) // 2
    truth[["y", "x"]] = (truth[["y", "x"]] + 0.5) * scale - corner
    return truth


@torch.no_grad()
def where_it_looks(model: S2DNet, dataset: VideoDataset, batch_size: int = 32) -> pd.DataFrame:
    """What the full model does with each test clip: its verdicts, and where it looks.

    Returns:
        A row a clip: label, snet and s2dnet (the classes they say); looks_t (mu_t T) and delta_t in
        raw frames; looks_y, looks_x, delta_y, delta_x in raw pixels, of the detail frame nearest to
        the true moment (of the middle one where it is not known); and truth_in_clips, where known.
    """
    if model.snet is None or model.dnet is None:
        raise ValueError(
            "expected SNet and DNet: rows a1 and a2 of Table 2 look nowhere by themselves"
        )
    truth, rows = truth_in_clips(dataset), []
    for batch in DataLoader(dataset, batch_size, collate_fn=collate):
        out = model(batch["frames"], batch["n_frames"])
        theta, n, (H, W) = out.theta, batch["n_frames"], batch["frames"].shape[-2:]
        p_t = grid_centres(theta.mu_t, theta.delta_t, model.config.detail_size[0], n)  # (B, T_D)
        moment = theta.mu_t * n  # (B,)
        row = {
            "label": batch["label"],
            "snet": out.logits.argmax(1),
            "s2dnet": out.scores.argmax(1),
        }
        row |= {"looks_t": moment}
        row |= {"delta_t": theta.delta_t}
        if truth is not None:
            moment = torch.tensor(truth["t"].to_numpy()[batch["index"]])  # (B,)
        z = (p_t - moment[:, None]).abs().argmin(dim=1, keepdim=True)  # (B, 1)
        space = {"looks_y": theta.mu_y * H, "looks_x": theta.mu_x * W}
        space |= {"delta_y": theta.delta_y, "delta_x": theta.delta_x}
        row |= {name: values.gather(1, z)[:, 0] for name, values in space.items()}
        rows.append(pd.DataFrame({name: values.numpy() for name, values in row.items()}))
    table = pd.concat(rows, ignore_index=True)
    return table if truth is None else table.join(truth)


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
    """The commit of the code, with + where the tree differs from it (results/ aside)."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if not (root / ".git").exists():
        return "unknown (no git checkout)"
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
