"""Top-1 and top-5 accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


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


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 in percent. scores: (B, N); labels: (B,)."""
    hits = {f"top{k}": topk_hits(scores, labels, k) for k in (1, 5)}
    return {name: 100.0 * hit.to(torch.float64).mean().item() for name, hit in hits.items()}
