"""Accuracy of a model over a split, and the sums that it is made of (Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from s2dlib.config import TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import load_batches
from s2dlib.losses import detail_loss, synopsis_loss, topk_hits
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import Extent, Theta
from s2dlib.training.distributed import everyones, place, share, total
from s2dlib.training.windows import distance_to_truth, theta_from_source


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
    extent = Extent.of(batch["frames"], batch["n_frames"])
    far = distance_to_truth(theta, batch["truth"], extent, out.detail_volume.shape[-3:])
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
    if config.theta_source in ("model", "random"):
        return None
    return lambda batch: theta_from_source(model, batch, config.theta_source)


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


def n_failed(dataset: VideoDataset) -> int:
    """Videos that no process could read since the batches were asked for."""
    return len({path for failed in everyones(dataset.failed) for path in failed})


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add to sums by name, in place."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value
