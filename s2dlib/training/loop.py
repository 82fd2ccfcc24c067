"""One training loop for every row and recipe: fit, resume.

Every random choice derives from (seed, epoch), and what has been drawn since is in the checkpoint,
so that a run that was killed and resumed is, bit for bit on a CPU, the run that was not.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
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
from s2dlib.training.distributed import all_gather, rank_and_world_size, shard, wrap_ddp
from s2dlib.training.evaluation import (
    Means,
    batch_sums,
    evaluate,
    n_failed,
    theta_at_test,
    theta_means,
    theta_shares,
)
from s2dlib.training.optim import (
    epoch_batches,
    learning_rate,
    make_optimizer,
    seed_everything,
    set_learning_rates,
)
from s2dlib.training.windows import theta_from_source

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


log = logging.getLogger(__name__)
# Fields that a run may change when it goes on: it learns the same.
FREE_ON_RESUME = ("workers", "checkpoint_steps", "keep_every")


@dataclass
class TrainState:
    """A training under way.

    Attributes:
        net: what a step calls: the model, or DDP around it.
        save: called with where an epoch stands, every checkpoint_steps; None: nobody asks.
        begun: what `save` was given in the epoch that is to go on; None: it starts anew.
    """

    model: S2DNet
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    seed: int = 0
    device: torch.device = torch.device("cpu")
    net: nn.Module | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    save: Callable[[dict[str, Any] | None], None] | None = None
    begun: dict[str, Any] | None = None


def train_epoch(state: TrainState, dataset: VideoDataset, epoch: int) -> dict[str, float]:
    """One pass over the training clips, or what is left of one.

    Returns:
        Means over the clips seen: loss, loss_s, loss_d, top1 (percent), theta's; the last rate;
        seconds; n_failed, clips that could not be read and whose place others took.

    Raises:
        FloatingPointError: loss or gradient is not finite; names the step, rates, theta and clips.
    """
    start, config = time.perf_counter(), state.config
    seed_everything(state.seed, epoch)
    dataset.set_epoch(epoch)
    steps = epoch_batches(len(dataset), config.batch_size, state.seed, epoch)
    begun = state.begun or {"step": 0, "ranks": [], "seconds": 0.0}
    batches = load_steps(state, dataset, steps[begun["step"] :])
    means = resume_epoch(state, dataset, begun)  # after the loader, which draws a number
    state.model.train()
    factor = 0.0
    for step in progress_bar(range(begun["step"], len(steps)), epoch):
        factor = learning_rate(epoch * len(steps) + step, len(steps), config)
        set_learning_rates(state.optimizer, factor, epoch)
        out, loss = forward_backward(state, batches, len(steps[step]), means)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_grad_norm)
        if not (norm.isfinite() & loss.isfinite()):  # the one moment at which the CPU waits
            clips = dataset.table["path"][steps[step]].tolist()
            where = f"epoch {epoch + 1}, step {step + 1}: loss {loss.item() / len(clips)}"
            raise not_finite(where, norm, config, out, clips)
        state.optimizer.step()
        if state.save and step + 1 < len(steps) and is_due(step + 1, config.checkpoint_steps):
            seconds = begun["seconds"] + time.perf_counter() - start
            state.save(
                {"step": step + 1, "seconds": seconds, "ranks": gather_ranks(state, dataset, means)}
            )
    state.begun = None
    return {
        "lr": config.lr * config.rate_scale * factor,
        "seconds": begun["seconds"] + time.perf_counter() - start,
        **means.all_reduce(),
        "n_failed": n_failed(dataset),
    }


def load_steps(
    state: TrainState, dataset: VideoDataset, steps: list[list[int]]
) -> Iterator[dict[str, Tensor]]:
    """This process's part of every step, in accumulate batches one after the other."""
    rank, world_size = rank_and_world_size()
    n = state.config.accumulate
    mine = [shard(shard(clips, i, n), rank, world_size) for clips in steps for i in range(n)]
    batches = load_batches(dataset, workers=state.config.workers, steps=mine, device=state.device)
    torch.empty((), dtype=torch.int64).random_()  # older versions drew it; their records repeat
    return batches


def resume_epoch(state: TrainState, dataset: VideoDataset, begun: dict[str, Any]) -> Means:
    """What an epoch has counted so far; generators and unreadable clips as they were.

    Another number of processes takes over what the earlier ones had counted.
    """
    means = Means()
    rank, world_size = rank_and_world_size()
    for before in begun["ranks"][rank::world_size]:
        set_random_state(before["random"], state.device)
        means.add_state(before["means"], state.device)
        dataset.failed |= before["failed"]
    return means


def gather_ranks(state: TrainState, dataset: VideoDataset, means: Means) -> list[dict[str, Any]]:
    """What each process needs to go on within an epoch."""
    mine = {"random": random_state(state.device), "means": means.state()}
    return all_gather(mine | {"failed": dataset.failed})


def progress_bar(steps: range, epoch: int) -> tqdm:
    """By hand a bar; under papermill, where bars are saved as widget states, the log line only."""
    quiet = "S2D_COMMAND" in os.environ or rank_and_world_size()[1] > 1
    return tqdm(steps, f"epoch {epoch + 1}", leave=False, disable=quiet)


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps is due; every 0: never."""
    return every > 0 and step % every == 0


def forward_backward(
    state: TrainState, batches: Iterator[dict[str, Tensor]], n_clips: int, means: Means
) -> tuple[Output, Tensor]:
    """Gradients of one step of n_clips. Returns the last output, and the summed loss ()."""
    world_size, accumulate = rank_and_world_size()[1], state.config.accumulate
    state.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64, device=state.device)
    for i in range(accumulate):
        batch = next(batches)
        # A mean over the whole step, though DDP averages over processes, whatever their shares.
        weight = len(batch["label"]) * world_size / n_clips
        last: AbstractContextManager = nullcontext()
        if isinstance(state.net, DistributedDataParallel) and i + 1 < accumulate:
            last = state.net.no_sync()
        with last:
            out, sums = backward(
                state.net or state.model, state.model, batch, state.config, state.device, weight
            )
        loss = loss + sums["loss"]
        means.add(len(batch["label"]), sums, theta_means(out))
    return out, loss


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
        return out, sums | theta_shares(out, batch)


def not_finite(
    where: str, norm: Tensor, config: TrainConfig, out: Output, clips: list[str]
) -> FloatingPointError:
    """The error that stops a training whose loss or gradient is not a number."""
    theta = {} if out.theta is None else vars(out.theta)
    ranges = {name: (v.min().item(), v.max().item()) for name, v in theta.items()}
    return FloatingPointError(
        f"{where}, gradient norm {norm.item()}; the last checkpoint is kept; try a lower lr than "
        f"{config.lr} (lr_theta {config.lr_theta}); theta's least and greatest values were "
        f"{ranges}; the clips were {clips}"
    )


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
    run_dir, device, (rank, world_size) = Path(run_dir), torch.device(device), rank_and_world_size()
    check_batches(len(train_set), config, world_size)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # V and V-hat have one size in all steps
    curves = open_tensorboard(run_dir) if tensorboard and rank == 0 else None
    with only_writer(run_dir) if rank == 0 else nullcontext():
        state = start_or_resume(model, config, run_dir, seed, device, len(train_set))
        for epoch in range(len(state.history), config.epochs):
            with memory_advice(config, world_size):
                row = train_and_evaluate(state, train_set, val_set, epoch)
            state.history.append(row)
            if state.save is not None:
                state.save(None)
            log_epoch(row, config, curves)
        if rank == 0:
            write_history(run_dir, state.history)  # a kill may have come before it was
            write_weights(model, run_dir / WEIGHTS)
    return state.history


def start_or_resume(
    model: S2DNet,
    config: TrainConfig,
    run_dir: Path,
    seed: int,
    device: torch.device,
    n_clips: int,
) -> TrainState:
    """A training from the model as it is, or from the run's newest checkpoint."""
    rank, world_size = rank_and_world_size()
    state = TrainState(model.to(device), make_optimizer(model, config), config, seed, device)
    learned = {k: v for k, v in asdict(config).items() if k not in FREE_ON_RESUME}
    identity = {"model": asdict(model.config), "train": learned, "seed": seed, "clips": n_clips}
    identity = json.loads(json.dumps(identity))
    checkpoint = all_gather(newest_checkpoint(run_dir) if rank == 0 else None)[0]
    if checkpoint is not None:
        state.history, state.begun = load_checkpoint(checkpoint, model, state.optimizer, identity)
    state.net = wrap_ddp(model, device, unused=config.theta_source != "model")

    def save(begun: dict[str, Any] | None) -> None:
        if rank == 0:
            history, keep = state.history, config.keep_every
            save_checkpoint(run_dir, model, state.optimizer, identity, history, begun, keep)
            write_history(run_dir, history)

    state.save, scale = save, config.rate_scale
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
            theta=theta_at_test(state.model, config),
        )
        row |= {f"val_{name}": value for name, value in measured.items()}
    return row | {"seconds": seconds + time.perf_counter() - start}


def log_epoch(row: dict[str, float], config: TrainConfig, curves: SummaryWriter | None) -> None:
    """A line on an epoch and, where they are drawn, the curves a point further."""
    log.info(
        f"epoch {row['epoch']}/{config.epochs}  loss {row['train_loss']:.3f}  "
        f"train top-1 {row['train_top1']:.1f}  "
        f"val top-1 {row.get('val_top1', math.nan):.1f}  {row['seconds']:.0f} s"
    )
    if curves is not None:
        for name, value in row.items():
            curves.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        curves.flush()


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
