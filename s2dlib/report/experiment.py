"""One run of 02_train: its configuration, and its record, begun and completed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from s2dlib.config import CONFIG_FILE, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.model import S2DNet
from s2dlib.presets import PRESETS, Preset
from s2dlib.report import looking, records
from s2dlib.training.initialise import with_networks_of
from s2dlib.training.run_config import Values, describe_run, read_json
from s2dlib.training.trials import override


def configure(
    preset: str,
    recipe: str,
    changes: Mapping[str, Any],
    *,
    csv: str = "",
    start: S2DNet | None = None,
    smoke: bool = False,
) -> Preset:
    """A preset with one recipe, and what a run of 02_train changes about it.

    Args:
        changes: field -> value, of model, data or training.
        csv: of another data set than the preset's.
        start: a trained model, whose networks and clips take the place of the preset's.
        smoke: eight clips a split and one epoch, to see that everything runs.

    Raises:
        ValueError: no such recipe, or no such field.
    """
    base = PRESETS[preset]
    base = with_networks_of(base, start.config, start.data) if start else base
    few = {"epochs": 1, "n_clips": 8, "batch_size": 4} if smoke else {}
    setting = override(base, recipe, {**changes, **few})
    top = Path("..")  # of notebooks/: the repository, where the preset's own paths start
    cache = setting.data.cache and str(top / setting.data.cache)
    data = replace(setting.data, csv=csv or str(top / setting.data.csv), cache=cache)
    return replace(setting, data=data)


def begin(
    run_dir: str | Path,
    model: S2DNet,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: TrainConfig,
    *,
    seed: int,
    device: str,
    processes: int,
    setting: Values,
) -> None:
    """Write config.json before the first step: all that the run depends on, and how it came about.

    Args:
        model, train_set, val_set, config, seed, device: as fit is to be given them.
        setting: preset, variant, recipe and test_split, by name.

    Raises:
        ValueError, RuntimeError: as begin_record.
    """
    source = records.provenance(None, device, seed, Path(train_set.config.csv).stem)
    record = setting | describe_run(model, train_set, val_set, config, seed)
    records.begin_record(run_dir, record | {"provenance": source | {"processes": processes}})


def complete(
    run_dir: str | Path,
    model: S2DNet,
    test_set: VideoDataset,
    config: TrainConfig,
    history: list[dict[str, float]],
    parts: pd.DataFrame,
    device: str = "cpu",
) -> dict[str, float]:
    """Evaluate a trained model on the test clips, and write that with its cost to the run's record.

    Args:
        parts: cost.count of the model.

    Returns:
        What metrics.json, written last, holds: looking.metrics_of, gmacs, mparams, n_crops,
        val_top1 (percent, of the last epoch), seconds_train.
    """
    metrics = looking.metrics_of(model, test_set, config, device)
    metrics |= parts[["gmacs", "mparams"]].sum().to_dict()
    metrics |= {"n_crops": test_set.n_crops, "val_top1": history[-1]["val_top1"]}
    metrics |= {"seconds_train": sum(row["seconds"] for row in history)}
    records.write_record(run_dir, read_json(Path(run_dir) / CONFIG_FILE), metrics, history)
    return metrics
