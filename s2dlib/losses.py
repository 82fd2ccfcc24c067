"""The losses (Eq. 3, 11, 12). A network alone is trained by its plain cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from s2dlib.model import Output


def synopsis_loss(out: Output, labels: Tensor) -> Tensor:
    """L_s = -log p(y), averaged over the batch (Eq. 3). labels: (B,). Returns ()."""
    return F.cross_entropy(out.logits, labels)


def detail_loss(out: Output, labels: Tensor) -> Tensor:
    """L_d = -s(y) log p-hat(y), averaged over the batch (Eq. 11). labels: (B,). Returns ().

    A video whose true class SNet leaves out of its top k adds nothing.
    """
    loss = F.cross_entropy(out.detail_logits, labels, reduction="none")  # (B,)
    if out.topk_mask is not None:
        loss = loss * out.topk_mask.gather(1, labels[:, None]).squeeze(1)
    return loss.mean()


def s2d_loss(out: Output, labels: Tensor, alpha: float = 0.1) -> Tensor:
    """L = alpha L_s + L_d (Eq. 12); of a network alone, its own loss. labels: (B,). Returns ()."""
    if out.detail_logits is None:
        return synopsis_loss(out, labels)
    if out.logits is None:
        return detail_loss(out, labels)
    return alpha * synopsis_loss(out, labels) + detail_loss(out, labels)
