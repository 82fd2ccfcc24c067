"""What is remembered: a run's record, and how it came about.

A run's folder holds config.json, history.csv and metrics.json. The last is written last: where it
is, the run is complete.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from s2dlib.config import CONFIG_FILE, METRICS_FILE
from s2dlib.model import S2DNet
from s2dlib.presets import PRESETS, SAME_RUN

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


def provenance(
    command: str | None, device: torch.device | str, seed: int, data: str
) -> dict[str, Any]:
    """How a record came about, enough to repeat it.

    Args:
        command: the shell command; None: the one of s2d run, if it started this.
        device: where the run computed.
        data: the data set's name or its CSV.
    """
    device = torch.device(device)
    return {
        "command": command or os.environ.get("S2D_COMMAND", "by hand in JupyterLab"),
        "commit": _commit(Path(__file__).resolve().parents[2]),
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
    return f"s2d run {notebook} {executed} {words}"


def load_run(run_dir: str | Path) -> tuple[S2DNet, dict[str, Any]]:
    """The trained model of a run, or a shared one, ready to evaluate, and its config.json."""
    model = S2DNet.from_pretrained(run_dir)
    return model, model.record


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def workers_of(record: dict[str, Any]) -> int:
    """How many processes read the clips of a run, by its record."""
    return max((train.get("workers", 0) for train in record.get("recipes", {}).values()), default=0)


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
