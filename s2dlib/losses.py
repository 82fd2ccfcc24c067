"""The losses (Eq. 3, 11, 12). A network alone is trained by its plain cross entropy.

They are computed in float32 at least: logits come in bfloat16 from autocast, which has no number
between 2 and 2.016, and loses every loss below a 256th of a sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2dlib.model import Output


def synopsis_loss(out: Output, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """L_s = -log p(y), averaged over the batch (Eq. 3). labels: (B,). Returns ()."""
    return F.cross_entropy(_full(out.logits), labels, label_smoothing=label_smoothing)


def detail_loss(
    out: Output, labels: Tensor, masked: bool = True, label_smoothing: float = 0.0
) -> Tensor:
    """L_d = -s(y) log p-hat(y), averaged over the batch (Eq. 11). labels: (B,). Returns ().

    A video whose true class SNet leaves out of its top k adds nothing; not `masked` (as in the
    authors' release), it counts like any other.
    """
    loss = F.cross_entropy(
        _full(out.detail_logits), labels, reduction="none", label_smoothing=label_smoothing
    )  # (B,)
    if masked and out.topk_mask is not None:
        loss = loss * out.topk_mask.gather(1, labels[:, None]).squeeze(1)
    return loss.mean()


def s2d_loss(
    out: Output,
    labels: Tensor,
    alpha: float = 0.1,
    masked: bool = True,
    label_smoothing: float = 0.0,
) -> Tensor:
    """L = alpha L_s + L_d (Eq. 12); of a network alone, its own loss. labels: (B,). Returns ()."""
    if out.detail_logits is None:
        return synopsis_loss(out, labels, label_smoothing)
    loss_d = detail_loss(out, labels, masked, label_smoothing)
    if out.logits is None:
        return loss_d
    return alpha * synopsis_loss(out, labels, label_smoothing) + loss_d


def _full(logits: Tensor | None) -> Tensor:
    """In float32, or float64 where they are. (B, N) -> (B, N)"""
    if logits is None:
        raise ValueError("expected logits of both networks; the model lacks the one of this loss")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def topk_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Which clips have their class among the k highest scores.

    A class of score zero is no candidate: S2DNet gives zero to all but SNet's top k (Sec. 3.2), so
    that its top-5 with k = 5 is SNet's.

    Args:
        scores: (B, N)
        labels: (B,)

    Returns:
        (B,) bool
    """
    top = scores.topk(min(k, scores.shape[1]), dim=1)
    return ((top.indices == labels[:, None]) & (top.values > 0)).any(dim=1)
