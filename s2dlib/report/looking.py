"""Where a trained model looks, and what that is worth: theta exchanged at test time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from torch import Tensor

from s2dlib.config import DataConfig, TrainConfig
from s2dlib.data.dataset import TRUTH, VideoDataset
from s2dlib.data.loader import Batch, load_batches
from s2dlib.model import Output, S2DNet
from s2dlib.report.records import load_run
from s2dlib.sampler import Extent, Theta, check_clips, frozen_theta, grid_centres
from s2dlib.training.evaluation import batch_sums, evaluate, theta_at_test
from s2dlib.training.windows import distance_to_truth, nearest_detail_frame


@torch.no_grad()
def sampling_locations(
    model: S2DNet,
    dataset: VideoDataset,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> pd.DataFrame:
    """The full model's predictions for each test clip, and where it looks.

    Returns:
        A row a clip: label, snet and s2dnet (predicted classes); confidence (SNet's largest
        probability); looks_t (mu_t T) and delta_t in raw frames; looks_y, looks_x, delta_y, delta_x
        in raw pixels, of the detail frame nearest to the true moment (of the middle one where it is
        not known); and, where the truth is known, TRUTH, distance_to_truth, and nearest_t, from the
        true moment to the detail frame nearest to it (raw frames).
    """
    if model.snet is None or model.dnet is None:
        raise ValueError(
            "expected SNet and DNet: rows a1 and a2 of Table 2 look nowhere by themselves"
        )
    model.to(device).eval()
    batches = load_batches(dataset, batch_size, workers, device=device)
    return pd.concat([_locations(model, batch) for batch in batches], ignore_index=True)


def _locations(model: S2DNet, batch: Batch) -> pd.DataFrame:
    """sampling_locations of one batch."""
    out, (H, W) = model(batch["frames"], batch["n_frames"]), batch["frames"].shape[-2:]
    theta, size = out.theta.map(torch.Tensor.cpu), model.config.detail_size
    n, truth = batch["n_frames"].cpu(), batch["truth"].cpu() if "truth" in batch else None
    looks_t, known = theta.mu_t * n, {}  # (B,)
    moment = looks_t if truth is None else truth[:, 0]
    z = nearest_detail_frame(theta, moment, n, size[0])  # (B, 1)
    if truth is not None:
        p_t = grid_centres(theta.mu_t, theta.delta_t, size[0], n)  # (B, T_D)
        known = {
            **dict(zip(TRUTH, truth.unbind(1), strict=False)),  # the first two, or all
            **distance_to_truth(theta, truth, Extent(n, H, W), size),
            "nearest_t": (p_t.gather(1, z)[:, 0] - moment).abs(),
        }
    columns = {
        "label": batch["label"],
        "snet": out.logits.argmax(1),
        "confidence": out.logits.float().softmax(1).amax(1),
        "s2dnet": out.scores.argmax(1),
        "looks_t": looks_t,
        "delta_t": theta.delta_t,
        **known,
        "looks_y": (theta.mu_y * H).gather(1, z)[:, 0],
        "looks_x": (theta.mu_x * W).gather(1, z)[:, 0],
        "delta_y": theta.delta_y.gather(1, z)[:, 0],
        "delta_x": theta.delta_x.gather(1, z)[:, 0],
    }
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def sampling_locations_of_run(
    run_dir: str | Path, csv: str = "", split: str = "test"
) -> pd.DataFrame:
    """sampling_locations of a run's model on a split of its data set, or of another CSV.

    Also right (percent: 100 or 0), variant, seed, and n_frames of the clips.
    """
    model, config = load_run(run_dir)
    data = DataConfig(**config["data"])
    data = replace(data, csv=csv or data.csv, cache=None if csv else data.cache, test_crops=1)
    dataset = VideoDataset(data, split, train=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = max((r.get("workers", 0) for r in config.get("recipes", {}).values()), default=0)
    clips = sampling_locations(model, dataset, device=device, workers=workers)
    return clips.assign(
        right=100.0 * (clips["label"] == clips["s2dnet"]),
        variant=config["variant"],
        seed=config["seed"],
        n_frames=data.n_frames,
    )


def top1_by_thirds(clips: pd.DataFrame, column: str) -> pd.DataFrame:
    """Top-1 in thirds of the clips by a number of their detail: its range, theta, seed, top1.

    clips: rows of sampling_locations_of_run, with a column theta (words).
    """
    edges = clips[column].quantile([0, 1 / 3, 2 / 3, 1]).to_list()
    words = [f"{low:.0f}-{high:.0f}" for low, high in pairwise(edges)]
    third = pd.cut(clips[column], edges, labels=words, include_lowest=True)
    means = clips.groupby([third, "theta", "seed"], observed=True)["right"].mean()
    return means.rename("top1").reset_index()


def metrics_of(
    model: S2DNet, dataset: VideoDataset, config: TrainConfig, device: str = "cpu"
) -> dict[str, float]:
    """The test metrics of a record: those of evaluate and, where theta is learned, of controls.

    The clips are read twice: the thetas of all are known only when all have been seen. config gives
    batch size, workers, precision, and where DNet looks.
    """
    size, workers, amp = config.batch_size, config.workers, config.amp
    run = partial(
        evaluate, model, dataset, batch_size=size, workers=workers, device=device, amp=amp
    )
    look = theta_at_test(model, config)
    if model.snet is None or model.snet.theta_head is None:
        return run(theta=look)
    own: list[tuple[Tensor, Theta]] = []

    def keep_theta(out: Output, batch: Batch) -> None:
        own.append((batch["index"], cast(Theta, out.theta)))

    metrics = run(theta=look, on_batch=keep_theta if look is None else None)
    if look is not None:  # its own thetas are still to be seen
        run(on_batch=keep_theta)
    return metrics | controls(model, dataset, own, config, device)


@torch.no_grad()
def controls(
    model: S2DNet,
    dataset: VideoDataset,
    own: Sequence[tuple[Tensor, Theta]],
    config: TrainConfig,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Top-1 of a trained model when its theta is exchanged at test time, all else kept.

    What theta is worth: a model that owes its accuracy to where it looks loses it with the mean
    theta of all clips, with another clip's, and with the uniform grid; the truth tells how much
    better it could look. Each clip is read once, and sampled at all of these thetas.

    Args:
        own: of each batch of these clips, their indices and the model's own theta.
        config: batch size, workers, precision.

    Returns:
        Percent: top1_mean, top1_shuffled, top1_uniform, and, where the truth is known, top1_truth
        (centres on the detail, as far as they are known, all else the model's own).
    """
    device, n = torch.device(device), 0
    model.to(device).eval()
    exchanged = _exchanged_thetas(model, dataset, own)
    hits = {name: torch.zeros((), dtype=torch.float64, device=device) for name in exchanged}
    for batch in load_batches(dataset, config.batch_size, config.workers, device=device):
        frames, n_frames = batch["frames"], check_clips(batch["frames"], batch["n_frames"])
        n += len(frames)
        amp = config.amp and device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            glance = model.glance(frames, n_frames)
            for name, theta in exchanged.items():
                out = model.look_closely(glance, frames, n_frames, theta(batch))
                hits[name] += batch_sums(out, batch["label"], dataset.n_crops)["top1"]
    return {f"top1_{name}": value.item() / n for name, value in hits.items()}


def _exchanged_thetas(
    model: S2DNet, dataset: VideoDataset, seen: Sequence[tuple[Tensor, Theta]]
) -> dict[str, Callable[[Batch], Theta]]:
    """By name, what gives the clips of a batch another theta than their own."""
    columns = zip(*(vars(theta).values() for _, theta in seen), strict=True)
    own = Theta(*map(torch.cat, columns))  # of all clips, in the order in which they came
    mean = own.map(lambda v: v.mean(dim=0, keepdim=True).expand_as(v))
    another = own.map(lambda v: v.roll(dataset.n_crops, dims=0))  # no video keeps its own
    indices = torch.cat([index for index, _ in seen])
    row_of = indices.new_zeros(len(dataset) * dataset.n_crops)  # of clip i in own; 0: unreadable
    row_of[indices] = torch.arange(len(indices), device=indices.device)

    def of_batch(thetas: Theta, batch: Batch) -> Theta:
        return thetas.map(lambda v: v[row_of[batch["index"]]])

    def uniform(batch: Batch) -> Theta:
        extent = Extent.of(batch["frames"], batch["n_frames"])
        return frozen_theta(extent, model.config.detail_size, "full")

    def true_centres(batch: Batch) -> Theta:
        theta, (H, W) = of_batch(own, batch), batch["frames"].shape[-2:]
        t, truth = batch["truth"][:, 0], batch["truth"]  # (B,), (B, 2 or 5)
        theta = replace(theta, mu_t=t / batch["n_frames"])
        if truth.shape[1] == 2:
            return theta
        y, x = truth[:, 3:].unbind(1)  # (B,) each
        mu_y, mu_x = (v[:, None].expand_as(theta.mu_y) for v in (y / H, x / W))
        return replace(theta, mu_y=mu_y, mu_x=mu_x)

    exchanged: dict[str, Callable[[Batch], Theta]] = {
        "mean": partial(of_batch, mean),
        "shuffled": partial(of_batch, another),
        "uniform": uniform,
        "truth": true_centres,
    }
    return {k: v for k, v in exchanged.items() if k != "truth" or dataset.has_truth}
