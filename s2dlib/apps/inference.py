"""A trained model at work: batch norms folded away, and what early exits would give.

Where SNet is sure of an action, DNet has little to add: such a clip may end there, as in the
adaptive methods after the paper (Uni-AdaFocus, Wang et al., TPAMI 2024). One trained model so gives
a whole curve of accuracy against cost.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2dlib.model import S2DNet

if TYPE_CHECKING:
    import pandas as pd


def for_inference(model: S2DNet) -> S2DNet:
    """A copy in evaluation mode whose convolutions have taken in the batch norms after them.

    The same function to rounding, in 7 to 19 % less time on a CPU (benchmarks/models.py). It cannot
    be trained, and its state_dict is no longer the model's.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for (name, conv), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, _BatchNorm):
                folded = fuse_conv_bn_eval(conv, norm)
                if isinstance(conv, nn.Conv2d):
                    folded = folded.to(memory_format=torch.channels_last)
                setattr(module, name, folded)
                setattr(module, after, nn.Identity())
    return model


def exit_curve(clips: pd.DataFrame, cost_snet: float, cost: float) -> pd.DataFrame:
    """Accuracy and mean cost for every threshold that makes a difference on these clips.

    Args:
        clips: a row a clip: label, snet, s2dnet (classes) and confidence.
        cost_snet: multiply-adds of a clip that ends with SNet, its heads included (G).
        cost: of one that does not (G).

    Returns:
        exit_at, share (of clips that skip DNet), gmacs, top1 (percent); exit_at falls.
    """
    import pandas as pd

    clips = clips.sort_values("confidence", ascending=False)
    n, by_both = len(clips), clips["s2dnet"] == clips["label"]
    gained = (clips["snet"] == clips["label"]).astype(int) - by_both  # hits, where a clip ends
    ended = pd.Series(range(n + 1))  # the first so many of the clips
    hits = [by_both.sum(), *(by_both.sum() + gained.cumsum())]
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
