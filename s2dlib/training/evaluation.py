"""Accuracy of a model over a split, and the sums that it is made of (Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from s2dlib.config import ThetaSource
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import Batch, load_batches
from s2dlib.losses import detail_loss, synopsis_loss, topk_hits
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import Extent
from s2dlib.training.distributed import all_gather, all_reduce, rank_and_world_size, shard
from s2dlib.training.windows import distance_to_truth, theta_from_source


class Means:
    """Means over clips, and standard deviations of some, summed in float64 as they come."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, n: int, sums: dict[str, Tensor]) -> None:
        """Count n more clips. sums: over these, whose mean is asked. () each

        After name_mean may come name_square, the sum of squares: the deviation is asked, too.
        """
        self.n += n
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def all_reduce(self) -> dict[str, float]:
        """Over all processes: the mean of each sum; of squares name_std in their place.

        Raises:
            ValueError: no clip was counted.
        """
        n, found = sum(all_gather(self.n)), dict[str, float]()
        if n == 0:
            raise ValueError("no clips to evaluate: the split is empty")
        for name, value in all_reduce(self.sums).items():
            stem = name.removesuffix("_square")
            if stem == name:
                found[name] = value / n
            else:
                variance = value / n - found[f"{stem}_mean"] ** 2
                found[f"{stem}_std"] = math.sqrt(max(0.0, variance))
        return found


def theta_moments(out: Output) -> dict[str, Tensor]:
    """Sums over the clips, for Means: theta's six, each clip's mean over its detail frames. () each

    None of a network alone, which has no theta.
    """
    sums: dict[str, Tensor] = {}
    for name, value in ({} if out.theta is None else vars(out.theta)).items():
        mean = value.detach().double().view(len(value), -1).mean(1)  # (B,)
        sums |= {f"{name}_mean": mean.sum(), f"{name}_square": (mean**2).sum()}
    return sums


def theta_shares(out: Output, batch: Batch) -> dict[str, Tensor]:
    """Sums over the clips of what the strides leave, in percent. () each; none without theta.

    delta_t_low and so on: strides within 5 % of one frame or pixel, as far as DNet can zoom in;
    delta_t_full: within 5 % of covering the whole axis, or beyond.
    """
    if out.theta is None or out.detail_volume is None:
        return {}
    sums: dict[str, Tensor] = {}
    n_frames = batch["n_frames"].double()[:, None]  # (B, 1)
    lengths = (n_frames, *batch["frames"].shape[-2:])
    for axis, length, n_out in zip("tyx", lengths, out.detail_volume.shape[-3:], strict=True):
        delta = getattr(out.theta, f"delta_{axis}").detach().double()
        delta = delta.view(len(delta), -1)  # (B, 1) or (B, T_D)
        sums[f"delta_{axis}_low"] = 100 * (delta <= 1.05).double().mean(1).sum()
        sums[f"delta_{axis}_full"] = 100 * (delta >= 0.95 * length / n_out).double().mean(1).sum()
    return sums


def truth_statistics(out: Output, batch: Batch) -> dict[str, Tensor]:
    """Sums over the clips of distance_to_truth; none where the truth is not known. () each."""
    if out.theta is None or out.detail_volume is None or "truth" not in batch:
        return {}
    theta = out.theta.map(lambda v: v.detach().float())
    extent = Extent.of(batch["frames"], batch["n_frames"])
    T_D, H_D, W_D = out.detail_volume.shape[-3:]
    far = distance_to_truth(theta, batch["truth"], extent, (T_D, H_D, W_D))
    return {k: v.double().sum() for k, v in far.items()}


@torch.no_grad()
def evaluate(
    model: S2DNet,
    dataset: VideoDataset,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device = "cpu",
    amp: bool = True,
    theta_source: ThetaSource = "model",
    on_batch: Callable[[Output, Batch], None] | None = None,
) -> dict[str, float]:
    """Accuracy over a split, one clip a video (Sec. 4.1).

    A video's scores are the mean over its crops, whose number the data set tells; losses and theta
    are means over all crops.

    Args:
        batch_size: crops at a time.
        workers: processes that read the clips.
        amp: bfloat16 autocast, on CUDA only.
        theta_source: where DNet looks, as in training; at random it is where the model says.
        on_batch: is handed what the model says of each batch, and the batch.

    Returns:
        top1, top5, snet_top1, snet_top5 (percent; SNet's where there is one), loss_s, loss_d,
        n_clips, n_failed (unreadable, left out of all averages), mean and standard deviation over
        clips of each parameter of theta, theta_shares, and, where the clips' truth is known, the
        mean of each of windows.distance_to_truth. Several processes share the clips.
    """
    device = torch.device(device)
    was_training = model.training
    model.to(device).eval()
    n_videos = max(1, batch_size // dataset.n_crops)
    mine = shard(range(len(dataset)), *rank_and_world_size())
    steps = [mine[i : i + n_videos] for i in range(0, len(mine), n_videos)]
    means = Means()
    for batch in load_batches(dataset, workers=workers, steps=steps, device=device):
        own = model.dnet is None or theta_source == "random"
        theta = None if own else theta_from_source(model, batch, theta_source)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            out = model(batch["frames"], batch["n_frames"], theta)
        sums = batch_sums(out, batch["label"], dataset.n_crops) | theta_shares(out, batch)
        sums |= truth_statistics(out, batch) | theta_moments(out)
        means.add(len(batch["label"]), sums)
        if on_batch is not None:
            on_batch(out, batch)
    model.train(was_training)
    found = means.all_reduce()
    n_clips = sum(all_gather(means.n)) // dataset.n_crops
    return {"n_clips": n_clips, "n_failed": n_failed(dataset)} | found


def batch_sums(out: Output, labels: Tensor, n_crops: int = 1) -> dict[str, Tensor]:
    """Hits (in percent) and losses of a batch, summed over its clips. labels: (B,). () each.

    In float64: sums go on over an epoch, and a bfloat16 one stops growing at 256 times what is
    added. The n_crops clips of a video, which stand together, all count what their mean scores say.
    """
    scores = {"": out.scores}
    if out.logits is not None:
        scores["snet_"] = out.logits.float().softmax(dim=1)  # p. (B, N)
    sums: dict[str, Tensor] = {}
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
    return len({path for failed in all_gather(dataset.failed) for path in failed})
