"""The Detail Network: V-hat, m -> e-hat -> p-hat (Sec. 3.2, Eq. 8-10, Fig. 3c)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2dlib.backbones.base import Backbone

FUSED_STAGES = ("res3", "res4")  # Sec. 3.2


class LateralFusion(nn.Module):
    """f_u: a 1x1x1 convolution with BN and ReLU over [e-hat, E(m)] (Eq. 9).

    E(m) is constant over time and space, so W [e-hat, E(m)] = W_e e-hat + W_m m, whose second term
    is computed once a clip: the same function for fewer multiply-adds (docs/decisions.md, D7). It
    starts as the identity with a little of m, so that a trained backbone is not disturbed.
    """

    def __init__(self, channels: int, context_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels + context_dim, channels, 1, bias=False)
        self.bn = nn.BatchNorm3d(channels)
        with torch.no_grad():
            self.conv.weight.normal_(std=0.02)
            self.conv.weight[:, :channels, 0, 0, 0] += torch.eye(channels)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """features: e-hat (B, C, T_D, h, w); context: m (B, C_m). Returns (B, C, T_D, h, w)."""
        C = features.shape[1]
        W_e, W_m = self.conv.weight[:, :, 0, 0, 0].split((C, context.shape[1]), dim=1)
        fused = F.linear(features.permute(0, 2, 3, 4, 1), W_e)  # conv3d takes a slow path on CPUs
        fused = fused + F.linear(context, W_m, self.conv.bias)[:, None, None, None]
        return self.bn(fused.permute(0, 4, 1, 2, 3)).relu()


class DNet(nn.Module):
    """Details: features of the sampled volume, fused with the context, and the verdict (Sec. 3.2).

    `context_dim` 0 is DNet alone (row a2): no fusion, a classifier of e-hat only (Sec. 4.3).
    """

    def __init__(
        self, backbone: Backbone, n_classes: int, context_dim: int, fuse: bool, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = backbone  # f_d
        fused = FUSED_STAGES if fuse and context_dim else ()
        self.fusions = nn.ModuleDict(
            {name: LateralFusion(backbone.channels[name], context_dim) for name in fused}
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.pooled_channels + context_dim, n_classes)  # h_d

    def forward(self, volume: Tensor, context: Tensor | None = None) -> Tensor:
        """Eq. 8-10.

        Args:
            volume: V-hat, normalised. (B, 3, T_D, H_D, W_D)
            context: m. (B, C_m)

        Returns:
            Logits, whose softmax is p-hat. (B, N)
        """
        features = volume
        for name, stage in self.backbone.stages.items():
            features = stage(features)  # Eq. 8
            if name in self.fusions:
                features = self.fusions[name](features, context)  # Eq. 9
        pooled = self.backbone.neck(features.mean((2, 3, 4)))  # GAP(e-hat) (B, C_D)
        pooled = self.dropout(pooled)
        if context is not None:
            pooled = torch.cat((pooled, context), dim=1)
        return self.classifier(pooled)  # Eq. 10
