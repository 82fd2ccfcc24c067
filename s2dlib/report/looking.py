"""Where a trained model looks, and what that is worth: theta exchanged at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from torch import Tensor

from s2dlib.config import TrainConfig
from s2dlib.data.dataset import TRUTH, VideoDataset
from s2dlib.data.loader import Batch, load_batches
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import Extent, Theta, check_clips, frozen_theta, grid_centres
from s2dlib.training.evaluation import Means, batch_sums, evaluate
from s2dlib.training.windows import distance_to_truth, nearest_detail_frame, true_theta


@torch.no_grad()
def sampling_locations_of_run(
    run_dir: str | Path, csv: str = "", split: str = "test"
) -> pd.DataFrame:
    """What a run's model predicts for each clip of a split, and where it looks.

    Args:
        csv: of another data set than the run's.

    Returns:
        A row a clip: label, snet and s2dnet (predicted classes); confidence (SNet's largest
        probability); looks_t (mu_t T) and delta_t in raw frames; looks_y, looks_x, delta_y, delta_x
        in raw pixels, of the detail frame nearest to the true moment (of the middle one where it is
        not known); where the truth is known, TRUTH, distance_to_truth, and nearest_t, from the
        true moment to the detail frame nearest to it (raw frames); right (percent: 100 or 0),
        variant, seed, and n_frames of the clips.

    Raises:
        ValueError: the run's model is one network alone.
    """
    model = S2DNet.from_pretrained(run_dir)
    if model.snet is None or model.dnet is None:
        raise ValueError(
            f"{run_dir}: expected SNet and DNet: rows a1 and a2 of Table 2 look nowhere alone"
        )
    data = replace(model.data, test_crops=1)
    data = replace(data, csv=csv, cache=None) if csv else data
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = model.record.get("train", {}).get("workers", 0)
    model.to(device)
    batches = load_batches(VideoDataset(data, split, train=False), 32, workers, device=device)
    clips = pd.concat([_locations(model, batch) for batch in batches], ignore_index=True)
    return clips.assign(
        right=100.0 * (clips["label"] == clips["s2dnet"]),
        variant=model.record["variant"],
        seed=model.record["seed"],
        n_frames=data.n_frames,
    )


def _locations(model: S2DNet, batch: Batch) -> pd.DataFrame:
    """The columns of one batch, up to right."""
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
    space = {"looks_y": theta.mu_y * H, "looks_x": theta.mu_x * W}  # (B, T_D) each
    space |= {"delta_y": theta.delta_y, "delta_x": theta.delta_x}
    columns = {
        "label": batch["label"],
        "snet": out.logits.argmax(1),
        "confidence": out.logits.float().softmax(1).amax(1),
        "s2dnet": out.scores.argmax(1),
        "looks_t": looks_t,
        "delta_t": theta.delta_t,
        **known,
        **{name: values.gather(1, z)[:, 0] for name, values in space.items()},
    }
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


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
    if model.snet is None or model.snet.theta_head is None:
        return run(theta_source=config.theta_source)
    own: list[tuple[Tensor, Theta]] = []

    def keep_theta(out: Output, batch: Batch) -> None:
        own.append((batch["index"], cast(Theta, out.theta)))

    metrics = run(on_batch=keep_theta)
    if config.theta_source not in ("model", "random"):
        metrics = run(theta_source=config.theta_source)
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
    device, means = torch.device(device), Means()
    model.to(device).eval()
    columns = zip(*(vars(theta).values() for _, theta in own), strict=True)
    thetas = Theta(*map(torch.cat, columns))  # of all clips, in the order in which they came
    indices = torch.cat([index for index, _ in own])
    row_of = indices.new_zeros(len(dataset) * dataset.n_crops)  # of clip i; 0: unreadable
    row_of[indices] = torch.arange(len(indices), device=indices.device)
    for batch in load_batches(dataset, config.batch_size, config.workers, device=device):
        frames, n_frames = batch["frames"], check_clips(batch["frames"], batch["n_frames"])
        exchanged = _exchanged_thetas(model, batch, thetas, row_of[batch["index"]], dataset.n_crops)
        amp, hits = config.amp and device.type == "cuda", dict[str, Tensor]()
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            glance = model.glance(frames, n_frames)
            for name, theta in exchanged.items():
                out = model.look_closely(glance, frames, n_frames, theta)
                hits[f"top1_{name}"] = batch_sums(out, batch["label"], dataset.n_crops)["top1"]
        means.add(len(frames), hits)
    return means.all_reduce()


def _exchanged_thetas(
    model: S2DNet, batch: Batch, thetas: Theta, rows: Tensor, n_crops: int
) -> dict[str, Theta]:
    """By name, what the clips of a batch get in place of their own theta.

    Args:
        thetas: the model's own, of all clips.
        rows: of the batch's clips in thetas. (B,)
    """
    own, extent = thetas.map(lambda v: v[rows]), Extent.of(batch["frames"], batch["n_frames"])
    exchanged = {
        "mean": thetas.map(lambda v: v.mean(dim=0, keepdim=True).expand_as(v)[rows]),
        "shuffled": thetas.map(lambda v: v.roll(n_crops, dims=0)[rows]),  # no video keeps its own
        "uniform": frozen_theta(extent, model.config.detail_size, "full"),
    }
    if "truth" in batch:
        true = true_theta(batch["truth"], extent, model.config.detail_size, elsewhere=own)
        exchanged["truth"] = replace(own, mu_t=true.mu_t, mu_y=true.mu_y, mu_x=true.mu_x)
    return exchanged
