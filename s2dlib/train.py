"""One training loop for every row and recipe: fit, evaluate, resume.

Every random choice derives from (seed, epoch), and what has been drawn since is in the checkpoint,
so that a run that was killed and resumed is, bit for bit, the run that was not.

    python -m s2dlib.train JOB.json   # one process of several, as parallel.launch starts them
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from s2dlib.checkpoints import (
    WEIGHTS,
    load_checkpoint,
    newest_checkpoint,
    only_writer,
    random_state,
    save_checkpoint,
    set_random_state,
    write_history,
    write_weights,
)
from s2dlib.config import DataConfig, ModelConfig, TrainConfig
from s2dlib.data import VideoDataset, load_batches
from s2dlib.losses import detail_loss, s2d_loss, synopsis_loss
from s2dlib.metrics import topk_hits
from s2dlib.model import Output, S2DNet, build_model
from s2dlib.parallel import everyones, launch, place, share, together, total
from s2dlib.sampler import Theta, distance_to_truth, random_theta, true_theta
from s2dlib.schedule import batches, learning_rate, make_optimizer, seed_everything

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


def theta_to_use(model: S2DNet, batch: dict[str, Tensor], how: str) -> Theta | None:
    """Where DNet shall look (config.THETAS), where the batch lies; None: where the model says.

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
    """Sums over the clips of theta and its square by parameter, and of what its strides leave.

    delta_t_low and so on: percent of strides within 5 % of one frame or pixel, as far as DNet can
    zoom in; delta_t_full: within 5 % of covering the whole axis, or beyond. () each; none without
    theta.
    """
    if out.theta is None:
        return {}
    values = {k: v.detach().double() for k, v in vars_of(out).items()}  # (B, 1) or (B, T_D) each
    means = {k: v.mean(1) for k, v in values.items()}  # (B,) each
    sums = {f"{k}_{p}": (v**p).sum() for k, v in means.items() for p in (1, 2)}
    n_frames = batch["n_frames"].to(means["mu_t"])[:, None]  # (B, 1)
    lengths = zip("tyx", (n_frames, *batch["frames"].shape[-2:]), strict=True)
    for (axis, length), n_out in zip(lengths, out.detail_volume.shape[-3:], strict=True):
        delta, full = values[f"delta_{axis}"], length / n_out
        sums[f"delta_{axis}_low"] = 100 * (delta <= 1.05).double().mean(1).sum()
        sums[f"delta_{axis}_full"] = 100 * (delta >= 0.95 * full).double().mean(1).sum()
    return sums


def truth_statistics(out: Output, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the clips of distance_to_truth; none where the truth is not known. () each."""
    if out.theta is None or "truth" not in batch:
        return {}
    theta = out.theta.map(lambda v: v.detach().float())
    extent = (batch["n_frames"], *batch["frames"].shape[-2:])
    far = distance_to_truth(theta, batch["truth"], *extent, out.detail_volume.shape[-3:])
    return {k: v.double().sum() for k, v in far.items()}


def vars_of(out: Output) -> dict[str, Tensor]:
    """Theta's six parameters by name, each with a leading axis of clips. (B, 1) or (B, T_D)

    None of a network alone, which has no theta.
    """
    return {} if out.theta is None else {k: v.view(len(v), -1) for k, v in vars(out.theta).items()}


def theta_at_test(
    model: S2DNet, config: TrainConfig
) -> Callable[[dict[str, Tensor]], Theta | None] | None:
    """Where DNet looks when it is evaluated: as in training, but never at random.

    None: where the model says.
    """
    if config.theta in ("model", "random"):
        return None
    return lambda batch: theta_to_use(model, batch, config.theta)


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
    on_batch: Callable[[Output, dict[str, Tensor]], None] | None = None,
) -> dict[str, float]:
    """Accuracy over a split, one clip a video (Sec. 4.1).

    A video's scores are the mean over its crops, whose number the data set tells; losses and theta
    are means over all crops.

    Args:
        batch_size: crops at a time.
        workers: processes that read the clips.
        amp: bfloat16 autocast, on CUDA only.
        theta: gives, for a batch, where DNet looks in place of the model's own theta.
        on_batch: is handed what the model says of each batch, and the batch.

    Returns:
        top1, top5, snet_top1, snet_top5 (percent; SNet's where there is one), loss_s, loss_d,
        n_clips, n_failed (unreadable, left out of all averages), mean and standard deviation over
        clips of each parameter of theta, the shares of theta_statistics, and, where the clips'
        truth is known, the mean of each of sampler.distance_to_truth. Several processes share the
        clips, each clip in one of them.
    """
    device = torch.device(device)
    was_training = model.training
    model.to(device).eval()
    n_videos, mine = max(1, batch_size // dataset.n_crops), share(range(len(dataset)), *place())
    steps = [mine[i : i + n_videos] for i in range(0, len(mine), n_videos)]
    sums: dict[str, Tensor] = {}
    n = 0
    for batch in load_batches(dataset, workers=workers, steps=steps, device=device):
        look = theta(batch) if theta is not None and model.dnet is not None else None
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            out = model(batch["frames"], batch["n_frames"], look)
        add(sums, batch_sums(out, batch["label"], dataset.n_crops) | theta_statistics(out, batch))
        add(sums, truth_statistics(out, batch))
        n += len(batch["label"])
        if on_batch is not None:
            on_batch(out, batch)
    model.train(was_training)
    n = sum(everyones(n))
    if n == 0:
        raise ValueError("no clips to evaluate: the split is empty")
    result = {"n_clips": n // dataset.n_crops, "n_failed": n_failed(dataset)}
    return result | averages(total(sums), n)


def averages(sums: dict[str, float], n: int) -> dict[str, float]:
    """Sums over n clips as means; of a value (_1) and its square (_2), mean and deviation."""
    means, result = {name: value / n for name, value in sums.items()}, {}
    for name, mean in means.items():
        if name.endswith("_2"):
            variance = mean - means[name[:-2] + "_1"] ** 2
            result[f"{name[:-2]}_std"] = math.sqrt(max(0.0, variance))
        else:
            result[f"{name[:-2]}_mean" if name.endswith("_1") else name] = mean
    return result


def batch_sums(out: Output, labels: Tensor, n_crops: int = 1) -> dict[str, Tensor]:
    """Hits (in percent) and losses of a batch, summed over its clips. labels: (B,). () each.

    In float64: sums go on over an epoch, and a bfloat16 one stops growing at 256 times what is
    added. The n_crops clips of a video, which stand together, all count what their mean scores say.
    """
    scores = {"": out.scores}
    if out.logits is not None:
        scores["snet_"] = out.logits.float().softmax(dim=1)  # p. (B, N)
    sums = {}
    for name, score in scores.items():
        score = score.unflatten(0, (-1, n_crops)).mean(dim=1)  # (B / n_crops, N)
        score = score.repeat_interleave(n_crops, dim=0)  # (B, N)
        hits = {k: topk_hits(score, labels, k).double().sum() for k in (1, 5)}
        sums |= {f"{name}top{k}": 100.0 * hit for k, hit in hits.items()}
    if out.logits is not None:
        sums["loss_s"] = synopsis_loss(out, labels).double() * len(labels)
    if out.detail_logits is not None:
        sums["loss_d"] = detail_loss(out, labels).double() * len(labels)
    return sums


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


def n_failed(dataset: VideoDataset) -> int:
    """Videos that no process could read since the batches were asked for."""
    return len({path for failed in everyones(dataset.failed) for path in failed})


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
    labels, theta = batch["label"], theta_to_use(model, batch, config.theta)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and device.type == "cuda"):
        out = net(batch["frames"], batch["n_frames"], theta)
    loss = s2d_loss(out, labels, config.alpha, config.masked, config.label_smoothing)
    (loss * weight).backward()
    with torch.no_grad():
        sums = batch_sums(out, labels) | {"loss": loss.detach().double() * len(labels)}
        return out, sums | theta_statistics(out, batch)


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add to sums by name, in place."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value


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
    processes: int = 1,
    tensorboard: bool = False,
) -> list[dict[str, float]]:
    """Train; or, if run_dir holds a checkpoint of the same run, go on from it.

    Args:
        model: trained in place.
        train_set, val_set: clips to learn from, and to evaluate on every `eval_every` epochs.
        run_dir: gets history.csv and checkpoints/ (checkpoints.py), model.safetensors at the end.
        seed: of the order of the clips, their crops, dropout.
        processes: more than one are started by torchrun, on as many GPUs, or on the CPU.
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
    n_processes = max(processes, world)
    if min(len(train_set), config.batch_size) // config.accumulate < max(2, n_processes):
        raise ValueError(
            f"batch norm needs 2 clips a batch or more, and each process one: got {len(train_set)} "
            f"training clips and batch_size={config.batch_size}, in accumulate={config.accumulate} "
            f"parts over {n_processes} processes"
        )
    if processes > world:
        return fit_in_processes(
            model, train_set, val_set, config, run_dir, seed, device, processes, tensorboard
        )
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
        net = together(model, device, unused=config.theta != "model")
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


def fit_in_processes(
    model: S2DNet,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: TrainConfig,
    run_dir: Path,
    seed: int,
    device: torch.device,
    processes: int,
    tensorboard: bool,
) -> list[dict[str, float]]:
    """fit, in processes started by torchrun; arguments as there. The model gets the weights."""
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"processes={processes}: expected at most one a GPU, of {torch.cuda.device_count()}"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    start = write_weights(model, run_dir / "start.safetensors")
    job = {"model": asdict(model.config), "train": asdict(config), "seed": seed}
    job |= {"data": asdict(train_set.config), "data_seed": train_set.seed}
    job |= {"train_split": train_set.table["split"][0], "val_split": val_set.table["split"][0]}
    job |= {"val_data": asdict(val_set.config), "start": str(start), "run_dir": str(run_dir)}
    job |= {"device": device.type, "tensorboard": tensorboard}
    launch(job, run_dir, processes)
    model.load_state_dict(load_file(run_dir / WEIGHTS))
    with (run_dir / "history.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def main() -> None:
    """Train what a job describes, as one of the processes that torchrun started, or alone."""
    parser = argparse.ArgumentParser(prog="python -m s2dlib.train", description=__doc__)
    parser.add_argument(
        "job", type=Path, help="launch.json of a run, as fit(processes=2) leaves it"
    )
    job = json.loads(parser.parse_args().job.read_text())
    device = torch.device(job["device"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    level = logging.INFO if place()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stdout, format="%(message)s")
    try:
        model = build_model(ModelConfig(**job["model"]))
        model.load_state_dict(load_file(job["start"]))
        data, val_data = DataConfig(**job["data"]), DataConfig(**job["val_data"])
        train_set = VideoDataset(data, job["train_split"], train=True, seed=job["data_seed"])
        val_set = VideoDataset(val_data, job["val_split"], train=False)
        how = {"run_dir": job["run_dir"], "seed": job["seed"], "device": device}
        config = TrainConfig(**job["train"])
        fit(model, train_set, val_set, config, **how, tensorboard=job["tensorboard"])
    except (ValueError, RuntimeError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
