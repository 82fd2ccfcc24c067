"""One training loop for every row and recipe: fit, evaluate now and then, resume."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from s2dlib.config import WEIGHTS, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.model import S2DNet
from s2dlib.training.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    only_writer,
    save_checkpoint,
    write_history,
    write_weights,
)
from s2dlib.training.distributed import all_gather, rank_and_world_size, wrap_ddp
from s2dlib.training.epoch import TrainState, is_due, train_epoch
from s2dlib.training.evaluation import evaluate
from s2dlib.training.optim import make_optimizer
from s2dlib.training.run_config import begin_run, describe_run

log = logging.getLogger(__name__)
Watcher = Callable[[list[dict[str, float]]], None]  # is shown a history


def fit(
    model: S2DNet,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: TrainConfig,
    *,
    run_dir: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    watchers: Sequence[Watcher] = (),
) -> list[dict[str, float]]:
    """Train; or, if run_dir holds a checkpoint of the same run, go on from it.

    Args:
        model: trained in place.
        train_set, val_set: clips to learn from, and to evaluate on every `eval_every` epochs.
        run_dir: gets config.json first, history.csv and checkpoints/ as it goes, then the weights.
        seed: of the order of the clips, their crops, dropout.
        watchers: called with the history before the first epoch and after each (report.watchers).

    Returns:
        The history, a row an epoch.

    Raises:
        ValueError: the checkpoint there is of another run, or a batch would hold a single clip.
        FloatingPointError: a loss or a gradient is not finite.
        OSError: a checkpoint cannot be written; the ones before are good.
        RuntimeError: memory ran out, or another process is writing this run.
    """
    run_dir, device, (rank, world_size) = Path(run_dir), torch.device(device), rank_and_world_size()
    check_batches(len(train_set), config, world_size)
    with only_writer(run_dir) if rank == 0 else nullcontext():
        if rank == 0:
            begin_run(run_dir, describe_run(model, train_set, val_set, config, seed))
        state = start_or_resume(model, config, run_dir, seed, device)
        show(watchers, state.history)
        for epoch in range(len(state.history), config.epochs):
            with memory_advice(config, world_size):
                state.history.append(train_and_evaluate(state, train_set, val_set, epoch))
            if state.save is not None:
                state.save(None)
            log_epoch(state.history[-1], config)
            show(watchers, state.history)
        train_set.loader = val_set.loader = None  # their workers end
        if rank == 0:
            write_history(run_dir, state.history)  # a kill may have come before it was
            write_weights(model, run_dir / WEIGHTS)
    return state.history


def start_or_resume(
    model: S2DNet, config: TrainConfig, run_dir: Path, seed: int, device: torch.device
) -> TrainState:
    """A training from the model as it is, or from the run's newest checkpoint."""
    rank, world_size = rank_and_world_size()
    state = TrainState(model.to(device), make_optimizer(model, config), config, seed, device)
    checkpoint = all_gather(newest_checkpoint(run_dir) if rank == 0 else None)[0]
    if checkpoint is not None:
        state.history, state.begun = load_checkpoint(checkpoint, model, state.optimizer)
    state.net = wrap_ddp(model, device, unused=config.theta_source != "model")

    def save(begun: dict[str, Any] | None) -> None:
        if rank == 0:
            rows, keep_every = state.history, config.keep_every
            save_checkpoint(run_dir, model, state.optimizer, rows, begun, keep_every)
            write_history(run_dir, rows)

    state.save = save
    scale = config.rate_scale
    log.info(
        f"{config.batch_size} clips a step in {world_size} x {config.accumulate} parts; peak lr "
        f"{config.lr * scale:.3g} (linear layers x{config.lr_fc:g}, biases x{config.lr_bias:g})"
        f", f_theta {config.lr_theta * scale:.3g}"
    )
    return state


def train_and_evaluate(
    state: TrainState, train_set: VideoDataset, val_set: VideoDataset, epoch: int
) -> dict[str, float]:
    """A row of the history: an epoch, and the evaluation after it where one is due."""
    config = state.config
    trained = train_epoch(state, train_set, epoch)
    start, seconds = time.perf_counter(), trained.pop("seconds")
    row = {"epoch": epoch + 1, "lr": trained.pop("lr")}
    row |= {f"train_{name}": value for name, value in trained.items()}
    if is_due(epoch + 1, config.eval_every) or epoch + 1 == config.epochs:
        measured = evaluate(
            state.model,
            val_set,
            batch_size=config.batch_size,
            workers=config.workers,
            device=state.device,
            amp=config.amp,
            theta_source=config.theta_source,
        )
        row |= {f"val_{name}": value for name, value in measured.items()}
    return row | {"seconds": seconds + time.perf_counter() - start}


def show(watchers: Sequence[Watcher], history: list[dict[str, float]]) -> None:
    """Call each of the watchers with the history."""
    for watch in watchers:
        watch(history)


def log_epoch(row: dict[str, float], config: TrainConfig) -> None:
    """A line on an epoch."""
    log.info(
        f"epoch {row['epoch']}/{config.epochs}  loss {row['train_loss']:.3f}  "
        f"train top-1 {row['train_top1']:.1f}  "
        f"val top-1 {row.get('val_top1', math.nan):.1f}  {row['seconds']:.0f} s"
    )


@contextmanager
def memory_advice(config: TrainConfig, n_processes: int) -> Iterator[None]:
    """Say what to try where memory runs out, on a GPU or a CPU."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not re.search("not enough memory|allocate memory", str(error)):
            raise
        at_once = -(-config.batch_size // (config.accumulate * n_processes))
        raise RuntimeError(
            f"out of memory with {at_once} clips at once (batch_size={config.batch_size}, "
            f"accumulate={config.accumulate}, {n_processes} processes): try "
            f"batch_size={max(2, config.batch_size // 2)}, or accumulate={2 * config.accumulate}, "
            "which keeps the step and halves what is in memory; the last checkpoint is kept "
            f"({error})"
        ) from error


def check_batches(n_clips: int, config: TrainConfig, n_processes: int) -> None:
    """Refuse batches of which a process would get too little for batch norm (ValueError)."""
    if min(n_clips, config.batch_size) // config.accumulate < max(2, n_processes):
        raise ValueError(
            f"batch norm needs 2 clips a batch or more, and each process one: got {n_clips} "
            f"training clips and batch_size={config.batch_size}, in accumulate={config.accumulate} "
            f"parts over {n_processes} processes"
        )
