"""One training loop for every row and recipe: fit, evaluate, resume.

What a kill may cost is the current epoch: after each, weights, optimizer and history are written to
a new folder, which becomes visible by one rename. Every random choice derives from (seed, epoch),
so a resumed run repeats what the uninterrupted one would have done.
"""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from s2dlib.config import TrainConfig
from s2dlib.data import VideoDataset, load_batches
from s2dlib.losses import detail_loss, s2d_loss, synopsis_loss
from s2dlib.metrics import topk_hits
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import Theta, distance_to_truth, random_theta, true_theta

log = logging.getLogger(__name__)
CHECKPOINTS, WEIGHTS, STATE = "checkpoints", "model.safetensors", "state.pt"


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


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed Python, numpy and torch (all devices) from (seed, epoch)."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Factor of the peak rate at a step: linear warm-up, then a cosine down to final_lr."""
    warmup = max(1, round(config.warmup_epochs * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: S2DNet, config: TrainConfig) -> torch.optim.Optimizer:
    """Groups with their own rates: all else, f_theta, and its zooms, which may wait.

    Each holds `peak`, the rate at the top, and `wait`, the epochs before which its rate is 0.
    """
    head = None if model.snet is None else model.snet.theta_head
    zooms = [] if head is None else head.branches.zooms()
    parts = [
        {"params": [], "peak": config.lr, "wait": 0},
        {"params": [], "peak": config.lr_theta, "wait": 0},
        {"params": zooms, "peak": config.lr_theta, "wait": config.hold_zoom},
    ]
    theta, apart = {id(p) for p in (() if head is None else head.parameters())}, set(map(id, zooms))
    for p in model.parameters():
        if id(p) not in apart:
            parts[id(p) in theta]["params"].append(p)
    groups = [group | {"lr": group["peak"]} for group in parts if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The clips of each step of an epoch, in an order drawn from (seed, epoch).

    An incomplete batch is left out, unless it is the only one: batch norm on a few clips misleads.
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    size = min(batch_size, n)
    return [order[i : i + size] for i in range(0, n - size + 1, size)]


def theta_to_use(model: S2DNet, batch: dict[str, Tensor], how: str) -> Theta | None:
    """Where DNet shall look (config.THETAS), on the CPU; None: where the model says.

    Raises:
        ValueError: the truth is asked for, of clips that have none.
    """
    n, size = (batch["n_frames"], *batch["frames"].shape[-2:]), model.config.detail_size
    if how == "random":
        return random_theta(*n, size)
    if how == "frozen":
        return model.frozen_theta(*n)
    if how == "truth":
        if "truth" not in batch:
            raise ValueError("theta='truth': expected synthetic clips; these have no truth")
        return true_theta(batch["truth"], *n, size)
    return None


def theta_statistics(out: Output, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the clips of theta and its square by parameter, and of distance_to_truth. () each.

    Empty without theta, and without the distances where the clips' truth is not known.
    """
    if out.theta is None:
        return {}
    values = {k: v.double().flatten(1).mean(1) for k, v in vars_of(out).items()}  # (B,) each
    sums = {f"{k}_{p}": (v**p).sum() for k, v in values.items() for p in (1, 2)}
    if "truth" in batch:
        theta = out.theta.map(lambda v: v.float().cpu())
        extent = (batch["n_frames"], *batch["frames"].shape[-2:])
        far = distance_to_truth(theta, batch["truth"], *extent, out.detail_volume.shape[-3:])
        sums |= {k: v.sum() for k, v in far.items()}
    return sums


def vars_of(out: Output) -> dict[str, Tensor]:
    """Theta's six parameters by name, each with a leading axis of clips. (B, 1) or (B, T_D)"""
    return {k: v.view(len(v), -1) for k, v in vars(out.theta).items()}


def theta_at_test(
    model: S2DNet, config: TrainConfig
) -> Callable[[dict[str, Tensor]], Theta | None]:
    """Where DNet looks when it is evaluated: as in training, but never at random."""
    how = "model" if config.theta == "random" else config.theta
    return lambda batch: theta_to_use(model, batch, how)


@torch.no_grad()
def evaluate(
    model: S2DNet,
    dataset: VideoDataset,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device = "cpu",
    amp: bool = True,
    theta: Callable[[dict[str, Tensor]], Theta | None] | None = None,
) -> dict[str, float]:
    """Accuracy over a split, one clip a video (Sec. 4.1).

    A video's scores are the mean over its crops, whose number the data set tells; losses and theta
    are means over all crops.

    Args:
        batch_size: crops at a time.
        theta: gives, for a batch, where DNet looks in place of the model's own theta.

    Returns:
        top1, top5, snet_top1, snet_top5 (percent; SNet's where there is one), loss_s, loss_d,
        n_clips, n_failed (unreadable, left out of all averages), mean and standard deviation over
        clips of each parameter of theta, and, where the clips' truth is known, the mean of each of
        sampler.distance_to_truth.
    """
    device = torch.device(device)
    was_training = model.training
    model.to(device).eval()
    sums: dict[str, Tensor] = {}
    n = 0
    for batch in load_batches(dataset, batch_size, workers):
        labels = batch["label"].to(device)
        look = theta(batch) if theta is not None and model.dnet is not None else None
        look = look if look is None else look.map(lambda v: v.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            out = model(batch["frames"].to(device), batch["n_frames"], look)
        parts = batch_sums(out, labels, dataset.n_crops) | theta_statistics(out, batch)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value
        n += len(labels)
    model.train(was_training)
    if n == 0:
        raise ValueError("no clips to evaluate: the split is empty")
    means = {name: value.item() / n for name, value in sums.items()}
    result = {"n_clips": n // dataset.n_crops, "n_failed": len(dataset.failed)}
    for name, mean in means.items():
        if name.endswith("_2"):
            variance = mean - means[name[:-2] + "_1"] ** 2
            result[f"{name[:-2]}_std"] = math.sqrt(max(0.0, variance))
        else:
            result[f"{name[:-2]}_mean" if name.endswith("_1") else name] = mean
    return result


def batch_sums(out: Output, labels: Tensor, n_crops: int = 1) -> dict[str, Tensor]:
    """Hits (in percent) and losses of a batch, summed over its clips. labels: (B,). () each.

    The n_crops clips of a video, which stand together, all count what their mean scores say.
    """
    scores = {"": out.scores}
    if out.logits is not None:
        scores["snet_"] = out.logits.float().softmax(dim=1)  # p. (B, N)
    sums = {}
    for name, score in scores.items():
        score = score.unflatten(0, (-1, n_crops)).mean(dim=1)  # (B / n_crops, N)
        score = score.repeat_interleave(n_crops, dim=0)  # (B, N)
        sums |= {f"{name}top{k}": 100.0 * topk_hits(score, labels, k).sum() for k in (1, 5)}
    if out.logits is not None:
        sums["loss_s"] = synopsis_loss(out, labels) * len(labels)
    if out.detail_logits is not None:
        sums["loss_d"] = detail_loss(out, labels) * len(labels)
    return sums


def train_epoch(
    model: S2DNet,
    dataset: VideoDataset,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """One pass over the training clips.

    Returns:
        loss, loss_s, loss_d and top1 (percent), means over the clips seen, the last rate, and
        n_failed, clips that could not be read and whose place others took.

    Raises:
        FloatingPointError: a gradient is not finite; names the step, the rates and the clips.
    """
    seed_everything(seed, epoch)
    dataset.set_epoch(epoch)
    steps = batches(len(dataset), config.batch_size, seed, epoch)
    loader = load_batches(dataset, workers=config.workers, steps=steps)
    model.train()
    sums: dict[str, Tensor] = {}
    n, factor = 0, 0.0
    # By hand a bar; under papermill, where bars are saved as widget states, the log line only.
    quiet = "S2D_COMMAND" in os.environ
    bar = tqdm(loader, f"epoch {epoch + 1}", total=len(steps), leave=False, disable=quiet)
    for step, batch in enumerate(bar):
        factor = learning_rate(epoch * len(steps) + step, len(steps), config)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor * (epoch >= group["wait"])
        frames, labels = batch["frames"].to(device), batch["label"].to(device)
        theta = theta_to_use(model, batch, config.theta)
        theta = theta if theta is None else theta.map(lambda v: v.to(device))
        with torch.autocast(
            device.type, torch.bfloat16, enabled=config.amp and device.type == "cuda"
        ):
            out = model(frames, batch["n_frames"], theta)
        loss = s2d_loss(out, labels, config.alpha, config.masked, config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        if not norm.isfinite():
            paths = [dataset.table["path"][i] for i in batch["index"].tolist()]
            raise FloatingPointError(
                f"epoch {epoch + 1}, step {step + 1}: loss {loss.item()}, gradient norm "
                f"{norm.item()}; the checkpoint of the epoch before is kept; try a lower lr than "
                f"{config.lr} (lr_theta {config.lr_theta}); the clips were {paths}"
            )
        optimizer.step()
        with torch.no_grad():
            parts = batch_sums(out, labels) | {"loss": loss.detach() * len(labels)}
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value
        n += len(labels)
    means = {name: float(value) / n for name, value in sums.items()}
    return {"lr": config.lr * factor, **means, "n_failed": len(dataset.failed)}


def fit(
    model: S2DNet,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: TrainConfig,
    *,
    run_dir: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[dict[str, float]]:
    """Train; or, if run_dir holds a checkpoint of the same run, go on from it.

    Args:
        model: trained in place.
        train_set, val_set: clips to learn from, and to evaluate on every `eval_every` epochs.
        run_dir: gets history.csv and checkpoints/ after each epoch, model.safetensors at the end.
        seed: of the order of the clips, their crops, dropout.

    Returns:
        The history, a row an epoch.

    Raises:
        ValueError: the checkpoint there is of another run, or a batch would hold a single clip.
        FloatingPointError: a gradient is not finite.
    """
    if min(len(train_set), config.batch_size) < 2:
        raise ValueError(
            f"batch norm needs 2 clips a batch or more, got {len(train_set)} training clips and "
            f"batch_size={config.batch_size}"
        )
    run_dir, device = Path(run_dir), torch.device(device)
    model.to(device)
    optimizer = make_optimizer(model, config)
    identity = {"model": asdict(model.config), "train": asdict(config), "seed": seed}
    identity = json.loads(json.dumps(identity | {"clips": len(train_set)}))
    with only_writer(run_dir):
        history = load_checkpoint(run_dir, model, optimizer, identity)
        for epoch in range(len(history), config.epochs):
            start = time.perf_counter()
            trained = train_epoch(model, train_set, optimizer, config, epoch, seed, device)
            row = {"epoch": epoch + 1, "lr": trained.pop("lr")}
            row |= {f"train_{name}": value for name, value in trained.items()}
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                how = {"batch_size": config.batch_size, "workers": config.workers}
                how |= {"theta": theta_at_test(model, config)}
                measured = evaluate(model, val_set, **how, device=device, amp=config.amp)
                row |= {f"val_{name}": value for name, value in measured.items()}
            row["seconds"] = time.perf_counter() - start
            history.append(row)
            save_checkpoint(run_dir, model, optimizer, identity, history)
            write_history(run_dir, history)
            log.info(
                f"epoch {epoch + 1}/{config.epochs}  loss {row['train_loss']:.3f}  "
                f"train top-1 {row['train_top1']:.1f}  "
                f"val top-1 {row.get('val_top1', math.nan):.1f}  {row['seconds']:.0f} s"
            )
        write_history(run_dir, history)  # a kill may have come between a checkpoint and its history
        os.replace(write_weights(model, run_dir / f"{WEIGHTS}.part"), run_dir / WEIGHTS)
    return history


def write_history(run_dir: Path, history: list[dict[str, float]]) -> None:
    """Write history.csv, a row an epoch; columns in the order in which they first came."""
    partial = run_dir / "history.csv.part"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in history for name in row))
        writer.writeheader()
        writer.writerows(history)
    os.replace(partial, run_dir / "history.csv")


def write_weights(model: nn.Module, path: Path) -> Path:
    """Write the weights as safetensors. Returns the path."""
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, path)
    return path


def save_checkpoint(
    run_dir: Path,
    model: S2DNet,
    optimizer: torch.optim.Optimizer,
    identity: dict,
    history: list[dict[str, float]],
) -> None:
    """Write one folder a checkpoint, made visible by a rename; then drop the older ones."""
    folder = run_dir / CHECKPOINTS
    target, partial = folder / f"epoch-{len(history):04d}", folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_weights(model, partial / WEIGHTS)
    state = {"optimizer": optimizer.state_dict(), "identity": identity, "history": history}
    torch.save(state, partial / STATE)
    os.replace(partial, target)
    for old in sorted(folder.glob("epoch-*"))[:-1]:
        shutil.rmtree(old)


def load_checkpoint(
    run_dir: Path, model: S2DNet, optimizer: torch.optim.Optimizer, identity: dict
) -> list[dict[str, float]]:
    """Take up the newest checkpoint of a run's folder, if it has one.

    Returns:
        Its history; empty if there is none.

    Raises:
        ValueError: it belongs to another model, training, seed or number of clips.
    """
    found = sorted((run_dir / CHECKPOINTS).glob("epoch-*"))
    if not found:
        return []
    state = torch.load(found[-1] / STATE, map_location="cpu", weights_only=True)
    if state["identity"] != identity:
        differ = {
            part: (state["identity"][part], identity[part])
            for part in identity
            if state["identity"][part] != identity[part]
        }
        raise ValueError(
            f"{found[-1]}: a checkpoint of another run, which differs in (there, here) {differ}; "
            f"choose another run folder, or remove this one to start anew"
        )
    model.load_state_dict(load_file(found[-1] / WEIGHTS))
    optimizer.load_state_dict(state["optimizer"])
    log.info("resumed after epoch %d from %s", len(state["history"]), found[-1])
    return state["history"]
