"""Accuracy of a model over a split, and the sums that it is made of (Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s2dlib.config import TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import Batch, load_batches
from s2dlib.losses import detail_loss, synopsis_loss, topk_hits
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import Extent, Theta
from s2dlib.training.distributed import all_gather, all_reduce, rank_and_world_size, shard
from s2dlib.training.windows import distance_to_truth, theta_from_source


class Means:
    """Means and standard deviations over clips, summed in float64 as they come."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}  # sum and sum of squares, where both are asked. (2,)

    def add(self, n: int, sums: dict[str, Tensor], values: dict[str, Tensor] | None = None) -> None:
        """Count n more clips.

        Args:
            sums: over these clips, whose mean is asked. () each
            values: of each clip, whose mean and deviation are asked. (n,) each
        """
        self.n += n
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value
        for name, value in (values or {}).items():
            moments = torch.stack((value.sum(), (value**2).sum()))
            self.moments[name] = self.moments.get(name, 0) + moments

    def state(self) -> dict[str, Any]:
        """What add_state takes, on the CPU: for a checkpoint."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        moments = {name: value.cpu() for name, value in self.moments.items()}
        return {"n": self.n, "sums": sums, "moments": moments}

    def add_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Count what another had counted by its state()."""
        self.n += state["n"]
        for mine, theirs in ((self.sums, state["sums"]), (self.moments, state["moments"])):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0) + value.to(device)

    def all_reduce(self) -> dict[str, float]:
        """Over all processes: the mean of each sum; of values name_mean and name_std.

        Raises:
            ValueError: no clip was counted.
        """
        n, sums = sum(all_gather(self.n)), all_reduce(self.sums)
        if n == 0:
            raise ValueError("no clips to evaluate: the split is empty")
        first = all_reduce({name: value[0] for name, value in self.moments.items()})
        second = all_reduce({name: value[1] for name, value in self.moments.items()})
        found = {name: value / n for name, value in sums.items()}
        for name, value in first.items():
            found[f"{name}_mean"] = mean = value / n
            found[f"{name}_std"] = math.sqrt(max(0.0, second[name] / n - mean**2))
        return found


def theta_means(out: Output) -> dict[str, Tensor]:
    """Theta's six parameters, each clip's mean over its detail frames. (B,) each, float64

    None of a network alone, which has no theta.
    """
    if out.theta is None:
        return {}
    return {k: v.detach().double().view(len(v), -1).mean(1) for k, v in vars(out.theta).items()}


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


def theta_at_test(model: S2DNet, config: TrainConfig) -> Callable[[Batch], Theta | None] | None:
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
    theta: Callable[[Batch], Theta | None] | None = None,
    on_batch: Callable[[Output, Batch], None] | None = None,
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
        clips of each parameter of theta, theta_shares, and, where the clips'
        truth is known, the mean of each of windows.distance_to_truth. Several processes share the
        clips, each clip in one of them.
    """
    device = torch.device(device)
    was_training = model.training
    model.to(device).eval()
    n_videos = max(1, batch_size // dataset.n_crops)
    mine = shard(range(len(dataset)), *rank_and_world_size())
    steps = [mine[i : i + n_videos] for i in range(0, len(mine), n_videos)]
    means = Means()
    for batch in load_batches(dataset, workers=workers, steps=steps, device=device):
        look = theta(batch) if theta is not None and model.dnet is not None else None
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            out = model(batch["frames"], batch["n_frames"], look)
        sums = batch_sums(out, batch["label"], dataset.n_crops) | theta_shares(out, batch)
        sums |= truth_statistics(out, batch)
        means.add(len(batch["label"]), sums, theta_means(out))
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
