"""A backbone: named stages, (B, C, T, H, W) in and out, and a neck for what it pools.

SNet runs them all (f_s, Eq. 1); DNet walks them and fuses m after res3 and res4 (f_d, Eq. 8-9).
Nothing rewires a network in place.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class Backbone(nn.Module):
    """Stages by name, in order, and a neck; `channels` says what each stage gives.

    The neck is what some networks have between the pooling and the classifier (X3D), of
    `pooled_channels`; the others have none.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        channels: dict[str, int],
        neck: nn.Module | None = None,
        pooled_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.neck = nn.Identity() if neck is None else neck
        self.channels = channels
        self.out_channels = list(channels.values())[-1]
        self.pooled_channels = pooled_channels or self.out_channels

    def forward(self, video: Tensor) -> Tensor:
        """video: (B, 3, T, H, W). Returns the features of the last stage. (B, C, T, h, w)"""
        for stage in self.stages.values():
            video = stage(video)
        return video
