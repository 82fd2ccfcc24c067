"""A trained model at work: batch norms folded away, clips that SNet alone decides, one video.

Where SNet is sure of an action, DNet has little to add: such a clip may end there, as in the
adaptive methods after the paper (Uni-AdaFocus, Wang et al., TPAMI 2024). One trained model so gives
a whole curve of accuracy against cost. Off unless asked for.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms.v2.functional import rgb_to_grayscale

from s2dlib.config import DataConfig
from s2dlib.data.clips import choose_crops, choose_frames
from s2dlib.data.readers import read_frames
from s2dlib.kernels.band import TAPS, band
from s2dlib.model import Output, S2DNet
from s2dlib.sampler import check_clips, grid_centres, uniform_times


def for_inference(model: S2DNet) -> S2DNet:
    """A copy in evaluation mode whose convolutions have taken in the batch norms after them.

    The same function to rounding, in 7 to 19 % less time on a CPU (benchmarks/models.py). It cannot
    be trained, and its state_dict is no longer the model's.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (name, conv), (after, norm) in zip(children, children[1:], strict=False):
            if not isinstance(conv, nn.Conv2d | nn.Conv3d) or not isinstance(norm, _BatchNorm):
                continue
            folded = fuse_conv_bn_eval(conv, norm)
            if isinstance(conv, nn.Conv2d):
                folded = folded.to(memory_format=torch.channels_last)
            setattr(module, name, folded)
            setattr(module, after, nn.Identity())
    return model


@torch.no_grad()
def predict(
    model: S2DNet, frames: Tensor, n_frames: Tensor | None = None, exit_at: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Scores of clips; those of which SNet is sure skip the sampler and DNet.

    Args:
        model: S2DNet, in evaluation mode.
        frames, n_frames: as of S2DNet.forward.
        exit_at: SNet's largest probability at which a clip ends with its scores; above 1, none.

    Returns:
        scores (B, N): p of the clips that ended, p-hat * s of the others; and which ended (B,).

    Raises:
        ValueError: the model lacks one of the networks.
    """
    if model.snet is None or model.dnet is None:
        raise ValueError("expected SNet and DNet: a single network has nothing to skip")
    n_frames = check_clips(frames, n_frames)
    seen = model.glance(frames, n_frames)
    ended = seen.scores.amax(dim=1) >= exit_at  # (B,)
    if ended.all():
        return seen.scores, ended
    scores, left = seen.scores.clone(), ~ended
    clips = (frames, n_frames) if left.all() else (frames[left], n_frames[left])
    scores[left] = model.look_closely(_some(seen, left), *clips).scores
    return scores, ended


def _some(out: Output, which: Tensor) -> Output:
    """Some clips of an output. which: (B,) bool"""
    picked = {}
    for field in fields(out):
        value = getattr(out, field.name)
        if isinstance(value, Tensor):
            value = value[which]
        elif value is not None:  # theta
            value = value.map(lambda v: v[which])
        picked[field.name] = value
    return Output(**picked)


@torch.no_grad()
def predict_video(
    model: S2DNet, path: str | Path, data: DataConfig, device: str = "cpu"
) -> tuple[Output, int]:
    """One video, of which only the frames that SNet samples and those that theta reaches are kept.

    A folder of frames is read no further. A video file is decoded twice, the second time up to the
    last frame that theta reaches: less memory, and less time where scaling costs more than that.

    Args:
        model: S2DNet, in evaluation mode, on the device.
        path: a video file or a folder of frames.
        data: how clips are chosen and cropped in testing (a centred clip, a centre crop).

    Returns:
        What the model says of the clip (B = 1), and how many of its frames were read.

    Raises:
        ClipError: the video cannot be read, or is too short.
    """
    times: list[int] = []  # of the clip's frames in the video

    def of_snet(n_total: int) -> list[int]:
        times[:] = choose_frames(n_total, data)
        seen = uniform_times(torch.tensor([len(times)]), model.config.synopsis_size[0])
        first[:] = seen.unique().tolist()
        return [times[t] for t in first]

    first: list[int] = []
    read = read_frames(path, of_snet, data.short_side)  # (n, 3, H, W)
    centre = choose_crops(*read.shape[-2:], config=data, n_crops=1)[0]
    C, n_frames = 1 if data.gray else 3, torch.tensor([len(times)], device=device)
    frames = torch.zeros(1, C, len(times), data.crop, data.crop, dtype=torch.uint8, device=device)

    def keep(read: Tensor, at: list[int]) -> None:
        crop = centre.cut(read).to(device)  # (n, 3, crop, crop)
        frames[0, :, at] = (rgb_to_grayscale(crop) if data.gray else crop).transpose(0, 1)

    keep(read, first)
    seen = model.glance(frames, n_frames)
    p_t = grid_centres(seen.theta.mu_t, seen.theta.delta_t, model.config.detail_size[0], n_frames)
    taps = band(p_t, n_frames[:, None]).first[..., None] + torch.arange(TAPS, device=device)
    reached = taps.flatten().clamp(max=len(times) - 1).unique().tolist()
    if more := [t for t in reached if t not in first]:
        keep(read_frames(path, [times[t] for t in more], data.short_side), more)
    return model.look_closely(seen, frames, n_frames), len(first) + len(more)


def exit_curve(clips: pd.DataFrame, cost_snet: float, cost: float) -> pd.DataFrame:
    """Accuracy and mean cost for every threshold that makes a difference on these clips.

    Args:
        clips: a row a clip: label, snet, s2dnet (classes) and confidence.
        cost_snet: multiply-adds of a clip that ends with SNet, its heads included (G).
        cost: of one that does not (G).

    Returns:
        exit_at, share (of clips that skip DNet), gmacs, top1 (percent); exit_at falls.
    """
    clips = clips.sort_values("confidence", ascending=False)
    n, by_snet = len(clips), clips["snet"].eq(clips["label"]).to_numpy()
    by_both = clips["s2dnet"].eq(clips["label"]).to_numpy()
    ended = pd.Series(range(n + 1))  # the first so many of the clips
    hits = [by_both.sum(), *(by_snet.cumsum() + by_both.sum() - by_both.cumsum())]
    curve = pd.DataFrame(
        {
            "exit_at": [2.0, *clips["confidence"]],
            "share": ended / n,
            "gmacs": cost + (cost_snet - cost) * ended / n,
            "top1": [100.0 * hit / n for hit in hits],
        }
    )
    return curve.drop_duplicates("exit_at", keep="last", ignore_index=True)  # ties end together


def exit_for(clips: pd.DataFrame, cost_snet: float, cost: float, budget: float) -> float:
    """The highest threshold with which these clips, of the validation split, keep to a mean cost.

    Args: as of exit_curve; budget: multiply-adds of a clip (G).

    Raises:
        ValueError: SNet alone costs more.
    """
    curve = exit_curve(clips, cost_snet, cost)
    within = curve[curve["gmacs"] <= budget * (1 + 1e-9)]
    if within.empty:
        raise ValueError(f"budget must be at least SNet's own {cost_snet:.4g} G, got {budget}")
    return float(within["exit_at"].iloc[0])
