"""One training loop for every row and recipe: fit, resume.

Every random choice derives from (seed, epoch), and what has been drawn since is in the checkpoint,
so that a run that was killed and resumed is, bit for bit, the run that was not.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from s2dlib.config import WEIGHTS, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import load_batches
from s2dlib.losses import s2d_loss
from s2dlib.model import Output, S2DNet
from s2dlib.training.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    only_writer,
    random_state,
    save_checkpoint,
    set_random_state,
    write_history,
    write_weights,
)
from s2dlib.training.distributed import everyones, place, share, together, total
from s2dlib.training.evaluation import (
    add,
    averages,
    batch_sums,
    evaluate,
    n_failed,
    theta_at_test,
    theta_statistics,
    vars_of,
)
from s2dlib.training.optim import batches, learning_rate, make_optimizer, seed_everything
from s2dlib.training.windows import theta_from_source

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


log = logging.getLogger(__name__)


def train_epoch(
    model: S2DNet,
    dataset: VideoDataset,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    seed: int,
    device: torch.device,
    *,
    net: nn.Module | None = None,
    begun: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """One pass over the training clips, or what is left of one.

    Args:
        net: what a step calls (parallel.together); None: the model.
        begun: what `save` was given in this epoch, to go on from there.
        save: called every checkpoint_steps with where the epoch stands.

    Returns:
        Means over the clips seen: loss, loss_s, loss_d, top1 (percent), theta_statistics; the last
        rate; seconds; n_failed, clips that could not be read and whose place others took.

    Raises:
        FloatingPointError: loss or gradient is not finite; names the step, rates, theta and clips.
    """
    start, (rank, world) = time.perf_counter(), place()
    seed_everything(seed, epoch)
    dataset.set_epoch(epoch)
    steps = batches(len(dataset), config.batch_size, seed, epoch)
    first = begun["step"] if begun else 0
    parts = [
        share(share(clips, i, config.accumulate), rank, world)
        for clips in steps[first:]
        for i in range(config.accumulate)
    ]
    loader = load_batches(dataset, workers=config.workers, steps=parts, device=device)
    torch.empty((), dtype=torch.int64).random_()  # older versions drew it; their records repeat
    sums: dict[str, Tensor] = {}
    n, factor, elapsed = 0, 0.0, 0.0
    # Those who went before; another number of processes takes over what these had counted.
    for before in begun["ranks"][rank::world] if begun else ():
        set_random_state(before["random"], device)  # after the loader, which draws a number
        add(sums, {name: value.to(device) for name, value in before["sums"].items()})
        n, elapsed = n + before["n"], begun["seconds"]
        dataset.failed |= before["failed"]
    model.train()
    # By hand a bar; under papermill, where bars are saved as widget states, the log line only.
    quiet = "S2D_COMMAND" in os.environ or world > 1
    numbers = range(first, len(steps))
    for step in tqdm(numbers, f"epoch {epoch + 1}", leave=False, disable=quiet):
        factor = learning_rate(epoch * len(steps) + step, len(steps), config)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor * (epoch >= group["wait"])
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for i in range(config.accumulate):
            batch = next(loader)
            # A mean over the whole step, though DDP averages over processes, whatever their shares.
            weight = len(batch["label"]) * world / len(steps[step])
            wait = world > 1 and i + 1 < config.accumulate
            with net.no_sync() if wait else nullcontext():
                out, part = backward(net or model, model, batch, config, device, weight)
            loss, n = loss + part["loss"], n + len(batch["label"])
            add(sums, part)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        if not (norm.isfinite() & loss.isfinite()):  # the one moment at which the CPU waits
            theta = {k: (v.min().item(), v.max().item()) for k, v in vars_of(out).items()}
            raise FloatingPointError(
                f"epoch {epoch + 1}, step {step + 1}: loss {loss.item() / len(steps[step])}, "
                f"gradient norm {norm.item()}; the last checkpoint is kept; try a lower lr than "
                f"{config.lr} (lr_theta {config.lr_theta}); theta's least and greatest values were "
                f"{theta}; the clips were {dataset.table['path'][steps[step]].tolist()}"
            )
        optimizer.step()
        left = len(steps) - step - 1
        if save and left and config.checkpoint_steps and (step + 1) % config.checkpoint_steps == 0:
            mine = {"random": random_state(device), "n": n}
            mine |= {"sums": {name: value.cpu() for name, value in sums.items()}}
            mine |= {"failed": dataset.failed}
            seconds = elapsed + time.perf_counter() - start
            save({"step": step + 1, "ranks": everyones(mine), "seconds": seconds})
    means = averages(total(sums), sum(everyones(n)))
    seconds = elapsed + time.perf_counter() - start
    means["n_failed"] = n_failed(dataset)
    return {"lr": config.lr * config.rate_scale * factor, "seconds": seconds} | means


def backward(
    net: nn.Module,
    model: S2DNet,
    batch: dict[str, Tensor],
    config: TrainConfig,
    device: torch.device,
    weight: float,
) -> tuple[Output, dict[str, Tensor]]:
    """Add the gradients of a batch's loss, times weight. Returns output, and sums over clips.

    The batch lies on the device, and nothing here makes the CPU wait for it.
    """
    labels, theta = batch["label"], theta_from_source(model, batch, config.theta_source)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and device.type == "cuda"):
        out = net(batch["frames"], batch["n_frames"], theta)
    loss = s2d_loss(out, labels, config.alpha, config.masked, config.label_smoothing)
    (loss * weight).backward()
    with torch.no_grad():
        sums = batch_sums(out, labels) | {"loss": loss.detach().double() * len(labels)}
        return out, sums | theta_statistics(out, batch)


@contextmanager
def memory_advice(config: TrainConfig, n_processes: int) -> Iterator[None]:
    """Say what to try where memory runs out, on a GPU or a CPU."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if (
            not known
            and "not enough memory" not in str(error)
            and "allocate memory" not in str(error)
        ):
            raise
        at_once = -(-config.batch_size // (config.accumulate * n_processes))
        raise RuntimeError(
            f"out of memory with {at_once} clips at once (batch_size={config.batch_size}, "
            f"accumulate={config.accumulate}, {n_processes} processes): try "
            f"batch_size={max(2, config.batch_size // 2)}, or accumulate={2 * config.accumulate}, "
            "which keeps the step and halves what is in memory; the last checkpoint is kept "
            f"({error})"
        ) from error


# What a run may change when it goes on: it learns the same.
HOW = ("workers", "checkpoint_steps", "keep_every")


def fit(
    model: S2DNet,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: TrainConfig,
    *,
    run_dir: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    tensorboard: bool = False,
) -> list[dict[str, float]]:
    """Train; or, if run_dir holds a checkpoint of the same run, go on from it.

    Args:
        model: trained in place.
        train_set, val_set: clips to learn from, and to evaluate on every `eval_every` epochs.
        run_dir: gets history.csv and checkpoints/ (checkpoints.py), model.safetensors at the end.
        seed: of the order of the clips, their crops, dropout.
        tensorboard: write the history there, too: run_dir/tensorboard.

    Returns:
        The history, a row an epoch.

    Raises:
        ValueError: the checkpoint there is of another run, or a batch would hold a single clip.
        FloatingPointError: a loss or a gradient is not finite.
        OSError: a checkpoint cannot be written; the ones before are good.
        RuntimeError: memory ran out, or another process is writing this run.
    """
    run_dir, device, (rank, world) = Path(run_dir), torch.device(device), place()
    check_batches(len(train_set), config, world)
    curves = open_tensorboard(run_dir) if tensorboard and rank == 0 else None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # V and V-hat have one size in all steps
    model.to(device)
    optimizer = make_optimizer(model, config)
    train = {name: value for name, value in asdict(config).items() if name not in HOW}
    identity = {"model": asdict(model.config), "train": train, "seed": seed}
    identity = json.loads(json.dumps(identity | {"clips": len(train_set)}))
    with only_writer(run_dir) if rank == 0 else nullcontext():
        path = everyones(newest_checkpoint(run_dir) if rank == 0 else None)[0]
        history, begun = [], None
        if path is not None:
            history, begun = load_checkpoint(path, model, optimizer, identity)
        net = together(model, device, unused=config.theta_source != "model")
        scale = config.rate_scale
        log.info(
            f"{config.batch_size} clips a step in {world} x {config.accumulate} parts; peak lr "
            f"{config.lr * scale:.3g} (linear layers x{config.lr_fc:g}, biases x{config.lr_bias:g})"
            f", f_theta {config.lr_theta * scale:.3g}"
        )

        def save(begun: dict[str, Any] | None = None) -> None:
            if rank == 0:
                save_checkpoint(
                    run_dir, model, optimizer, identity, history, begun, config.keep_every
                )
                write_history(run_dir, history)

        for epoch in range(len(history), config.epochs):
            with memory_advice(config, world):
                how = {"net": net, "begun": begun, "save": save}
                trained = train_epoch(
                    model, train_set, optimizer, config, epoch, seed, device, **how
                )
                start, seconds, begun = time.perf_counter(), trained.pop("seconds"), None
                row = {"epoch": epoch + 1, "lr": trained.pop("lr")}
                row |= {f"train_{name}": value for name, value in trained.items()}
                if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                    how = {"batch_size": config.batch_size, "workers": config.workers}
                    how |= {"theta": theta_at_test(model, config)}
                    measured = evaluate(model, val_set, **how, device=device, amp=config.amp)
                    row |= {f"val_{name}": value for name, value in measured.items()}
            row["seconds"] = seconds + time.perf_counter() - start
            history.append(row)
            save()
            log.info(
                f"epoch {epoch + 1}/{config.epochs}  loss {row['train_loss']:.3f}  "
                f"train top-1 {row['train_top1']:.1f}  "
                f"val top-1 {row.get('val_top1', math.nan):.1f}  {row['seconds']:.0f} s"
            )
            if curves is not None:
                for name, value in row.items():
                    curves.add_scalar(name.replace("_", "/", 1), value, epoch + 1)
                curves.flush()
        if rank == 0:
            write_history(run_dir, history)  # a kill may have come between a checkpoint and it
            write_weights(model, run_dir / WEIGHTS)
    return history


def check_batches(n_clips: int, config: TrainConfig, n_processes: int) -> None:
    """Refuse batches of which a process would get too little for batch norm (ValueError)."""
    if min(n_clips, config.batch_size) // config.accumulate < max(2, n_processes):
        raise ValueError(
            f"batch norm needs 2 clips a batch or more, and each process one: got {n_clips} "
            f"training clips and batch_size={config.batch_size}, in accumulate={config.accumulate} "
            f"parts over {n_processes} processes"
        )


def open_tensorboard(run_dir: Path) -> SummaryWriter:
    """A writer to run_dir/tensorboard; a run that goes on adds a file with its later epochs.

    Raises:
        ImportError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        how = "pip install s2dlib[tensorboard]"
        raise ImportError(f"tensorboard=True needs TensorBoard: {how}") from error
    return SummaryWriter(str(run_dir / "tensorboard"))
