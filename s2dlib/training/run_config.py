"""A run's config.json: all that the run depends on, written before its first step.

The processes of a run, a resumed run and whoever shows it read it there; an entry is stored nowhere
else.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2dlib.config import CONFIG_FILE, METRICS_FILE, WEIGHTS, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.files import write_atomic
from s2dlib.model import S2DNet
from s2dlib.training.checkpoints import list_checkpoints

Values = dict[str, Any]  # of a JSON object
# Fields that a run may change when it goes on: it learns the same.
FREE_ON_RESUME = (
    *("workers", "checkpoint_steps", "keep_every"),
    *("csv", "cache", "timeout", "test_crops"),
)


def describe_run(
    model: S2DNet, train_set: VideoDataset, val_set: VideoDataset, config: TrainConfig, seed: int
) -> Values:
    """The entries of config.json that fit knows, enough to build model and data sets again.

    val_data holds the fields in which the validation clips' configuration is not `data`.
    """
    data = asdict(train_set.config)
    return {
        "seed": seed,
        "model": asdict(model.config),
        "data": data,
        "train": asdict(config),
        "train_split": train_set.table["split"][0],
        "data_seed": train_set.seed,
        "n_train": len(train_set),
        "val_split": val_set.table["split"][0],
        "val_data": {k: v for k, v in asdict(val_set.config).items() if v != data[k]},
        "classes": train_set.classes,
    }


def begin_run(run_dir: Path, config: Values) -> None:
    """Write a run's config.json, or merge into that of the run that goes on.

    Entries that only the file has stay, if the run is the same. Where the file changes, the older
    metrics.json goes: it is not of this run. Only the writer of the run (checkpoints.only_writer)
    may call this.

    Raises:
        ValueError: there are weights of another model, training, data or seed; all stays.
    """
    there: Values = read_json(run_dir / CONFIG_FILE)
    config = json.loads(json.dumps(config))  # lists for tuples, as in the file
    before, now = _learned(there), _learned(config)
    names = [name for name in before | now if before.get(name) != now.get(name)]
    weights = [p for p in (run_dir / WEIGHTS, *list_checkpoints(run_dir)) if p.exists()]
    if names and weights:
        differ = {name: (before.get(name), now.get(name)) for name in names}
        why = f"which differs in (there, here) {differ}"
        if "train" not in there:
            why = f"of which {CONFIG_FILE} does not tell the training"
        raise ValueError(
            f"{weights[-1]}: weights of another run, {why}; "
            f"choose another run folder, or remove this one to start anew"
        )
    merged = config if names else there | config
    if merged != there:
        (run_dir / METRICS_FILE).unlink(missing_ok=True)
        write_json(run_dir / CONFIG_FILE, merged)


def read_json(path: Path) -> Values:
    """A JSON object; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        advice = "delete the folder and run it again"
        raise ValueError(f"{path}: not JSON ({error}); {advice}") from error
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: expected a JSON object with entries, got {value!r:.40}")
    return value


def write_json(path: str | Path, values: Values) -> None:
    """Write a JSON object, whole or not at all."""
    write_atomic(path, json.dumps(values, indent=1) + "\n", durable=True)


def _learned(config: Values) -> Values:
    """What decides what a run learns, by name."""
    found = {k: config.get(k) for k in ("seed", "train_split", "data_seed", "n_train")}
    for part in ("model", "data", "train"):
        fields = config.get(part, {}).items()
        found |= {f"{part}.{name}": v for name, v in fields if name not in FREE_ON_RESUME}
    return found
