"""Where a trained model looks, and what that is worth: theta exchanged at test time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from s2dlib.config import DataConfig, TrainConfig
from s2dlib.data.dataset import TRUTH, VideoDataset
from s2dlib.data.loader import load_batches
from s2dlib.model import Output, S2DNet
from s2dlib.report.records import best_device, load_run, workers_of
from s2dlib.sampler import Extent, Theta, check_clips, frozen_theta, grid_centres
from s2dlib.training.evaluation import batch_sums, evaluate, theta_at_test
from s2dlib.training.windows import distance_to_truth, nearest_detail_frame


@torch.no_grad()
def where_it_looks(
    model: S2DNet,
    dataset: VideoDataset,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> pd.DataFrame:
    """What the full model does with each test clip: its verdicts, and where it looks.

    Returns:
        A row a clip: label, snet and s2dnet (the classes they say); confidence (SNet's largest
        probability); looks_t (mu_t T) and delta_t in raw frames; looks_y, looks_x, delta_y, delta_x
        in raw pixels, of the detail frame nearest to the true moment (of the middle one where it is
        not known); and, where the truth is known, t, duration, size, y, x of the detail,
        sampler.distance_to_truth, and nearest_t, from the true moment to the detail frame nearest
        to it (raw frames).
    """
    if model.snet is None or model.dnet is None:
        raise ValueError(
            "expected SNet and DNet: rows a1 and a2 of Table 2 look nowhere by themselves"
        )
    model, rows, size = model.to(device).eval(), [], model.config.detail_size
    for batch in load_batches(dataset, batch_size, workers, device=device):
        out = model(batch["frames"], batch["n_frames"])
        theta, extent = out.theta.map(torch.Tensor.cpu), batch["frames"].shape[-2:]
        batch = {name: value.cpu() for name, value in batch.items() if name != "frames"}
        moment = theta.mu_t * batch["n_frames"]  # (B,)
        row = {"label": batch["label"], "snet": out.logits.argmax(1).cpu()}
        row |= {"confidence": out.logits.float().softmax(1).amax(1).cpu()}
        row |= {"s2dnet": out.scores.argmax(1).cpu(), "looks_t": moment, "delta_t": theta.delta_t}
        if "truth" in batch:
            moment = batch["truth"][:, 0]
            row |= dict(zip(TRUTH, batch["truth"].unbind(1), strict=True))
            row |= distance_to_truth(
                theta, batch["truth"], Extent(batch["n_frames"], *extent), size
            )
        z = nearest_detail_frame(theta, moment, batch["n_frames"], size[0])  # (B, 1)
        if "truth" in batch:
            p_t = grid_centres(theta.mu_t, theta.delta_t, size[0], batch["n_frames"])  # (B, T_D)
            row |= {"nearest_t": (p_t.gather(1, z)[:, 0] - moment).abs()}
        space = {"looks_y": theta.mu_y * extent[0], "looks_x": theta.mu_x * extent[1]}
        space |= {"delta_y": theta.delta_y, "delta_x": theta.delta_x}
        row |= {name: values.gather(1, z)[:, 0] for name, values in space.items()}
        rows.append(pd.DataFrame({name: values.numpy() for name, values in row.items()}))
    return pd.concat(rows, ignore_index=True)


def looks_of(run_dir: str | Path, csv: str = "", split: str = "test") -> pd.DataFrame:
    """where_it_looks of a run's model on a split of its data set, or of another CSV.

    Returns:
        Also variant, seed, n_frames of the clips, and right (percent: 100 or 0).
    """
    model, config = load_run(run_dir)
    data = DataConfig(**config["data"])
    data = replace(data, csv=csv or data.csv, cache=None if csv else data.cache, test_crops=1)
    dataset, device = VideoDataset(data, split, train=False), best_device()
    looks = where_it_looks(model, dataset, device=device, workers=workers_of(config))
    right = 100.0 * (looks["label"] == looks["s2dnet"])
    known = {"variant": config["variant"], "seed": config["seed"], "n_frames": data.n_frames}
    return looks.assign(right=right, **known)


def by_thirds(clips: pd.DataFrame, column: str) -> pd.DataFrame:
    """Top-1 in thirds of the clips by a number of their detail, a row a theta and seed.

    Args:
        clips: rows of looks_of, with a column theta (words).

    Returns:
        the column (words, a range), theta, seed, top1.
    """
    edges = clips[column].quantile([0, 1 / 3, 2 / 3, 1]).to_list()
    words = [f"{low:.0f}-{high:.0f}" for low, high in pairwise(edges)]
    third = pd.cut(clips[column], edges, labels=words, include_lowest=True)
    means = clips.groupby([third, "theta", "seed"], observed=True)["right"].mean()
    return means.rename("top1").reset_index()


class SeenThetas:
    """Each clip's own theta, kept while a model is evaluated: evaluate(on_batch=seen.add)."""

    def __init__(self) -> None:
        self.indices: list[Tensor] = []
        self.thetas: list[Theta] = []

    def add(self, out: Output, batch: dict[str, Tensor]) -> None:
        """Keep a batch's theta, and which clips these are."""
        self.indices.append(batch["index"])
        self.thetas.append(out.theta.map(torch.Tensor.detach))

    def all(self) -> Theta:
        """Of all clips, in the order in which they came. (n,) or (n, T_D) each"""
        names = vars(self.thetas[0])
        return Theta(**{k: torch.cat([vars(t)[k] for t in self.thetas]) for k in names})

    def rows(self, n_clips: int) -> Tensor:
        """The row of `all` of each clip by its index; 0 for one that could not be read. (n,)"""
        indices = torch.cat(self.indices)
        rows = indices.new_zeros(n_clips)
        rows[indices] = torch.arange(len(indices), device=indices.device)
        return rows


def metrics_of(
    model: S2DNet, dataset: VideoDataset, config: TrainConfig, device: str = "cpu"
) -> dict[str, float]:
    """What a record says of a trained model: accuracy, and what its theta is worth.

    The clips are read twice: the thetas of all are known only when all have been seen.

    Args:
        dataset: the split to test on.
        config: batch size, workers, precision, and where DNet looks.

    Returns:
        As of train.evaluate and, where the model learns theta, of controls.
    """
    how = {"batch_size": config.batch_size, "workers": config.workers, "device": device}
    how |= {"amp": config.amp}
    learns = model.snet is not None and model.snet.theta_head is not None
    seen, look = SeenThetas(), theta_at_test(model, config)
    keep = seen.add if learns and look is None else None
    metrics = evaluate(model, dataset, theta=look, on_batch=keep, **how)
    if learns and look is not None:  # its own thetas are still to be seen
        evaluate(model, dataset, on_batch=seen.add, **how)
    return metrics | (controls(model, dataset, seen, **how) if learns else {})


@torch.no_grad()
def controls(
    model: S2DNet,
    dataset: VideoDataset,
    seen: SeenThetas,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "cpu",
    amp: bool = True,
) -> dict[str, float]:
    """Top-1 of a trained model when its theta is exchanged at test time, all else kept.

    What theta is worth: a model that owes its accuracy to where it looks loses it with the mean
    theta of all clips, with another clip's, and with the uniform grid; the truth tells how much
    better it could look. Each clip is read once, and sampled at all of these thetas.

    Args:
        seen: the model's own thetas of these clips.
        others: as in train.evaluate.

    Returns:
        Percent: top1_mean, top1_shuffled, top1_uniform, and, where the truth is known, top1_truth
        (centres on the detail, the model's own strides).
    """
    device = torch.device(device)
    model, looks, n = model.to(device).eval(), _exchanged(model, dataset, seen), 0
    sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in looks}
    for batch in load_batches(dataset, batch_size, workers, device=device):
        frames, n_frames = batch["frames"], check_clips(batch["frames"], batch["n_frames"])
        n += len(frames)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            glance = model.glance(frames, n_frames)
            for name, look in looks.items():
                out = model.look_closely(glance, frames, n_frames, look(batch))
                sums[name] += batch_sums(out, batch["label"], dataset.n_crops)["top1"]
    return {f"top1_{name}": value.item() / n for name, value in sums.items()}


def _exchanged(
    model: S2DNet, dataset: VideoDataset, seen: SeenThetas
) -> dict[str, Callable[[dict[str, Tensor]], Theta]]:
    """By name, what gives the clips of a batch another theta than their own."""
    own, rows = seen.all(), seen.rows(len(dataset) * dataset.n_crops)
    mean = own.map(lambda v: v.mean(dim=0, keepdim=True).expand_as(v))
    another = own.map(lambda v: v.roll(dataset.n_crops, dims=0))  # no video keeps its own

    def uniform(batch: dict[str, Tensor]) -> Theta:
        extent = Extent.of(batch["frames"], batch["n_frames"])
        return frozen_theta(extent, model.config.detail_size, "full")

    def true_centres(batch: dict[str, Tensor]) -> Theta:
        theta = own.map(lambda v: v[rows[batch["index"]]])
        t, _, _, y, x = batch["truth"].unbind(1)  # (B,) each
        n, (H, W) = batch["n_frames"], batch["frames"].shape[-2:]
        mu_y, mu_x = (v[:, None].expand_as(theta.mu_y) for v in (y / H, x / W))
        return replace(theta, mu_t=t / n, mu_y=mu_y, mu_x=mu_x)

    looks = {
        "mean": lambda batch: mean.map(lambda v: v[rows[batch["index"]]]),
        "shuffled": lambda batch: another.map(lambda v: v[rows[batch["index"]]]),
        "uniform": uniform,
    }
    return looks | ({"truth": true_centres} if dataset.has_truth else {})
