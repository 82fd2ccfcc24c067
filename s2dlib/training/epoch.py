"""One pass over the training clips: steps, and what goes on within an epoch.

Every random choice derives from (seed, epoch), and what has been drawn since is in the checkpoint,
so that a run that was killed and resumed is, bit for bit on a CPU, the run that was not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from s2dlib.config import TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import Batch, load_batches
from s2dlib.losses import s2d_loss
from s2dlib.model import Output, S2DNet
from s2dlib.training.checkpoints import random_state, set_random_state
from s2dlib.training.distributed import all_gather, rank_and_world_size, shard
from s2dlib.training.evaluation import Means, batch_sums, n_failed, theta_moments, theta_shares
from s2dlib.training.optim import epoch_batches, learning_rate, seed_everything, set_learning_rates
from s2dlib.training.windows import theta_from_source


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


def load_steps(state: TrainState, dataset: VideoDataset, steps: list[list[int]]) -> Iterator[Batch]:
    """This process's part of every step, in accumulate batches one after the other."""
    rank, world_size = rank_and_world_size()
    n = state.config.accumulate
    mine = [shard(shard(clips, i, n), rank, world_size) for clips in steps for i in range(n)]
    return load_batches(dataset, workers=state.config.workers, steps=mine, device=state.device)


def resume_epoch(state: TrainState, dataset: VideoDataset, begun: dict[str, Any]) -> Means:
    """What an epoch has counted so far; generators and unreadable clips as they were.

    Another number of processes takes over what the earlier ones had counted.
    """
    means = Means()
    rank, world_size = rank_and_world_size()
    for before in begun["ranks"][rank::world_size]:
        set_random_state(before["random"], state.device)
        n, sums = before["means"]
        means.add(n, {name: value.to(state.device) for name, value in sums.items()})
        dataset.failed |= before["failed"]
    return means


def gather_ranks(state: TrainState, dataset: VideoDataset, means: Means) -> list[dict[str, Any]]:
    """What each process needs to go on within an epoch."""
    sums = {name: value.cpu() for name, value in means.sums.items()}
    mine = {"random": random_state(state.device), "means": (means.n, sums)}
    return all_gather(mine | {"failed": dataset.failed})


def progress_bar(steps: range, epoch: int) -> tqdm:
    """By hand a bar; under papermill, where bars are saved as widget states, the log line only."""
    quiet = "S2D_COMMAND" in os.environ or rank_and_world_size()[1] > 1
    return tqdm(steps, f"epoch {epoch + 1}", leave=False, disable=quiet)


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps is due; every 0: never."""
    return every > 0 and step % every == 0


def forward_backward(
    state: TrainState, batches: Iterator[Batch], n_clips: int, means: Means
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
            out, sums = backward(state, batch, weight)
        loss = loss + sums["loss"]
        means.add(len(batch["label"]), sums)
    return out, loss


def backward(state: TrainState, batch: Batch, weight: float) -> tuple[Output, dict[str, Tensor]]:
    """Add the gradients of a batch's loss, times weight. Returns output, and sums over clips.

    The batch lies on the device, and nothing here makes the CPU wait for it.
    """
    labels, config, kind = batch["label"], state.config, state.device.type
    theta = theta_from_source(state.model, batch, config.theta_source)
    with torch.autocast(kind, torch.bfloat16, enabled=config.amp and kind == "cuda"):
        out = (state.net or state.model)(batch["frames"], batch["n_frames"], theta)
    loss = s2d_loss(out, labels, config.alpha, config.masked, config.label_smoothing)
    (loss * weight).backward()
    with torch.no_grad():
        sums = batch_sums(out, labels) | {"loss": loss.detach().double() * len(labels)}
        return out, sums | theta_shares(out, batch) | theta_moments(out)


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
