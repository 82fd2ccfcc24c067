"""A run's record: written, read, and how it came about.

A run's folder holds config.json, written before the first step (training/run_config.py),
history.csv and metrics.json. The last is written last: where it is, the run is complete.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

from s2dlib.config import CONFIG_FILE, METRICS_FILE
from s2dlib.model import S2DNet
from s2dlib.presets import PRESETS, SAME_RUN
from s2dlib.training.checkpoints import only_writer, write_history
from s2dlib.training.run_config import Values, begin_run, read_json, write_json

PACKAGES = ("torch", "torchvision", "numpy", "av", "s2dlib")
SETTING = ["run", "preset", "variant", "seed", "recipe", "test_split"]
COLUMNS = [*SETTING, "data", "device", "complete"]
METRICS = ["top1", "top5", "snet_top1", "gmacs", "n_clips"]  # always there, NaN where not measured


def provenance(command: str | None, device: torch.device | str, seed: int, data: str) -> Values:
    """How a record came about, enough to repeat it.

    Args:
        command: the shell command; None: the one of s2d run or of a script that runs this.
        data: the data set's name or its CSV.
    """
    by_hand = Path(sys.argv[0]).stem == "ipykernel_launcher"
    started = "by hand in JupyterLab" if by_hand else shlex.join(["python", *sys.argv])
    device, installed = torch.device(device), {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return {
        "command": command or os.environ.get("S2D_COMMAND") or started,
        "commit": _commit(Path(__file__).resolve().parents[2]),
        "versions": installed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "data": data,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def begin_record(run_dir: str | Path, config: Values) -> None:
    """Write config.json before a training: describe_run of what fit is to be given, and any more.

    Raises:
        ValueError: checkpoints there are of another run; the folder stays as it is.
        RuntimeError: another process is writing this run.
    """
    with only_writer(Path(run_dir)):
        begin_run(Path(run_dir), config)


def write_record(
    run_dir: str | Path, config: Values, metrics: Values, history: list[dict[str, float]]
) -> None:
    """Write config.json, history.csv and, last, metrics.json; a kill leaves no half record."""
    run_dir = Path(run_dir)
    (run_dir / METRICS_FILE).unlink(missing_ok=True)  # an older run's: not complete until below
    begin_record(run_dir, config)
    write_history(run_dir, history)
    write_json(run_dir / METRICS_FILE, metrics)


def read_records(runs_dir: str | Path) -> pd.DataFrame:
    """A row a run, unfinished ones too: COLUMNS, METRICS, and all else that its metrics hold."""
    if not (runs_dir := Path(runs_dir)).is_dir():
        raise FileNotFoundError(f"{runs_dir}: expected the folder of runs; make reproduce fills it")
    rows = []
    for folder in sorted(p for p in runs_dir.iterdir() if p.is_dir()):
        config, metrics = read_json(folder / CONFIG_FILE), read_json(folder / METRICS_FILE)
        if metrics and not config:
            raise ValueError(f"{folder}: metrics.json without config.json; run it again")
        source = config.get("provenance", {})
        row = {
            **{name: config.get(name) for name in SETTING},
            **metrics,
            **{"run": folder.name, "complete": bool(metrics)},
            **{name: source.get(name) for name in ("data", "device")},
        }
        rows.append({k: v for k, v in row.items() if not isinstance(v, dict | list)})
    table, names = pd.DataFrame(rows), [*COLUMNS, *METRICS]
    return table.reindex(columns=names + [c for c in table.columns if c not in names])


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
    row, own_stem = SAME_RUN.get(variant, variant), Path(PRESETS[preset].data.csv).stem
    stem = Path(csv).stem.removesuffix(".checked") if csv else own_stem
    run = f"{preset if stem == own_stem else stem}-{row}-{seed}"
    values = {
        "preset": preset,
        "variant": row,
        "recipe": next(iter(PRESETS[preset].recipes)),
        "seed": str(seed),
        "csv": csv,
        "name": "" if stem == own_stem else run,
        "test_split": "" if "test" in splits else "val",
        "val_split": "" if "val" in splits else "test",
    }
    words = " ".join(f"-p {name} {shlex.quote(value)}" for name, value in values.items() if value)
    executed = shlex.quote(f"reproduced/runs/{run}/02_train.ipynb")
    return f"s2d run notebooks/02_train.ipynb {executed} {words}"


def load_run(run_dir: str | Path) -> tuple[S2DNet, Values]:
    """The trained model of a run, or a shared one, ready to evaluate, and its config.json."""
    model = S2DNet.from_pretrained(run_dir)
    return model, model.record


def _commit(root: Path) -> str:
    """The code's commit, + where the tree differs (results/ aside); S2D_COMMIT where it is set.

    A copy on a machine without a network may lie in a checkout of another commit, or in none.
    """
    if named := os.environ.get("S2D_COMMIT"):
        return named

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


def _cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*\S)", info.read_text(), re.M) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
