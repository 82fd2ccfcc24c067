"""What a run leaves on disk while it is trained, so that a kill at any moment costs little.

A checkpoint is a folder under checkpoints/: weights, training state, and the SHA-256 of both. It is
written beside its place, flushed to the disk, and becomes visible by one rename. epoch-0003 was
made after three epochs, epoch-0003-step-000500 at step 500 of the fourth.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from s2dlib.config import WEIGHTS
from s2dlib.data.files import fsync_folder, write_atomic

log = logging.getLogger(__name__)
CHECKPOINTS, STATE, SUMS = "checkpoints", "state.pt", "sha256.json"
BEST = "best"  # a link to the checkpoint of the best val_top1 so far


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder; a process that died, however it died, holds it no longer.

    Raises:
        RuntimeError: another process is writing this run.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "run.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"{run_dir}: another process is writing this run; wait for it, or end it"
            ) from error
        yield


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator, in types that torch.load takes with weights_only."""
    numpy: Any = np.random.get_state()
    name, keys, *rest = numpy
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    state["numpy"] = (name, keys.tolist(), *rest)
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every global generator back to where random_state found it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, whole or not at all."""
    write_atomic(path, _weights(model), durable=True)


def write_history(run_dir: Path, history: list[dict[str, float]]) -> None:
    """Write history.csv, a row an epoch; columns in the order in which they first came."""
    import pandas as pd

    table = pd.DataFrame(history).to_csv(index=False)
    write_atomic(run_dir / "history.csv", table, durable=True)


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The rows of history.csv, each with what was measured in its epoch; none where it is not."""
    import pandas as pd

    if not (run_dir / "history.csv").exists():
        return []
    rows = pd.read_csv(run_dir / "history.csv").to_dict("records")
    return [{str(k): v for k, v in row.items() if pd.notna(v)} for row in rows]


def save_checkpoint(
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
    begun: dict[str, Any] | None = None,
    keep_every: int = 0,
) -> None:
    """Write a checkpoint; then drop all but the last two, the best and those of every n-th epoch.

    Args:
        history: rows of the whole epochs.
        begun: where an epoch stands that is not over (epoch.train_epoch); None: after an epoch.
        keep_every: n; 0: none but the last two and the best.

    Raises:
        OSError: it cannot be written; the checkpoints before it are as they were.
    """
    folder = run_dir / CHECKPOINTS
    step = "" if begun is None else f"-step-{begun['step']:06d}"
    target, partial = folder / f"epoch-{len(history):04d}{step}", folder / "partial"
    state = {"optimizer": optimizer.state_dict(), "history": history, "begun": begun}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = {WEIGHTS: _weights(model), STATE: buffer.getvalue()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, data in (files | {SUMS: json.dumps(sums).encode()}).items():
            write_atomic(partial / name, data, durable=True)
        fsync_folder(partial)
        os.replace(partial, target)
        fsync_folder(folder)
        best = _link_best(folder, history)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = [path.name for path in list_checkpoints(run_dir)]
        raise OSError(
            f"{target}: cannot write this checkpoint ({error}); "
            f"{f'{kept[-1]} is good' if kept else 'there is none before it'}: make room, or make "
            "the folder writable, and start the same command again to go on from there"
        ) from error
    for old in list_checkpoints(run_dir)[:-2]:
        epoch, whole = int(old.name.split("-")[1]), "step" not in old.name
        if old.name != best and not (whole and keep_every and epoch % keep_every == 0):
            shutil.rmtree(old)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints, oldest first: epoch-0003 sorts before its own steps, and these before 0004."""
    return sorted((run_dir / CHECKPOINTS).glob("epoch-*"))


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are said and renamed. None: there is none.

    Raises:
        RuntimeError: there are checkpoints, and all are damaged.
    """
    damaged = {}
    for path in reversed(list_checkpoints(run_dir)):
        if damage := _damage(path):
            damaged[path] = damage
            continue
        for other, damage in damaged.items():
            aside = other.with_name(f"damaged-{other.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(other, aside)
            log.warning("%s is damaged (%s), now %s; used: %s", other, damage, aside.name, path)
        return path
    if damaged:
        raise RuntimeError(
            f"{run_dir / CHECKPOINTS}: no whole checkpoint ({damaged}); check the disk, and remove "
            "the run's folder to start anew"
        )
    return None


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, float]], dict[str, Any] | None]:
    """Take up a checkpoint of this run, as begin_run has made sure.

    Returns:
        The history of the whole epochs, and where the next one stands if it is begun.
    """
    state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    model.load_state_dict(load_file(path / WEIGHTS))
    optimizer.load_state_dict(state["optimizer"])
    step = "" if state["begun"] is None else f" and {state['begun']['step']} steps"
    log.info("resumed after %d epochs%s from %s", len(state["history"]), step, path)
    return state["history"], state["begun"]


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing is."""
    try:
        sums = json.loads((path / SUMS).read_text())
        for name in (WEIGHTS, STATE):
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sums[name]:
                    return f"{name} is not what was written"
    except (FileNotFoundError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _link_best(folder: Path, history: list[dict[str, float]]) -> str | None:
    """Let `best` point at the epoch of the best validation, if it is there. Returns its name."""
    scores = {row["epoch"]: row["val_top1"] for row in history if "val_top1" in row}
    if not scores:
        return None
    name, partial = f"epoch-{max(scores, key=scores.__getitem__):04d}", folder / f"{BEST}.part"
    if (folder / name).is_dir():
        partial.unlink(missing_ok=True)
        partial.symlink_to(name)
        os.replace(partial, folder / BEST)
    return name


def _weights(model: nn.Module) -> bytes:
    return save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
