"""Several processes on one training: who does what, sums and batch norm over all of them.

Each process takes its share of the clips of every step, so that the order of clips and the batch
that a step sees do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_gather(value: Any) -> list[Any]:  # noqa: ANN401
    """The values of all processes, by rank; any that pickle takes."""
    values = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def shard(items: Sequence, rank: int, world_size: int) -> Sequence:
    """One of world_size contiguous parts whose lengths differ by one at most."""
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def all_reduce(sums: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Sum over ranks, by name; a process that had no clips may lack names."""
    parts = all_gather({name: float(value) for name, value in sums.items()})
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the clips of all processes, on any device; SyncBatchNorm is for GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:  # the base class asks for it
        pass

    def forward(self, input: Tensor) -> Tensor:
        """input: (B, C, ...). Returns the same shape."""
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn import functional as F  # with gradients, which add up in turn

        x = input.transpose(0, 1).flatten(1)  # (C, B ...)
        sums = F.all_reduce(torch.cat((x.sum(1), x.new_tensor([x.shape[1]]))))  # (C + 1,)
        n, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()  # (), (C,)
        variance = F.all_reduce((x - mean[:, None]).square().sum(1)) / n  # (C,)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        shape = (1, -1, *[1] * (input.ndim - 2))
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)  # (C,)
        out = (input - mean.view(shape)) * scale.view(shape)
        return out if self.bias is None else out + self.bias.view(shape)


def wrap_ddp(model: nn.Module, device: torch.device, unused: bool) -> nn.Module:
    """The model as a step calls it: alone itself, else its gradients averaged over processes.

    Batch norm then sees the clips of all of them, as it would in one process (SyncBatchNorm on
    GPUs). The model is changed in place, names and weights stay. unused: some parameters may get no
    gradient (theta is given).
    """
    if rank_and_world_size()[1] == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = GlobalBatchNorm
    return DistributedDataParallel(model, find_unused_parameters=unused)
