"""What each step of a training is given: its clips, its rates, its random numbers."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import nn

from s2dlib.config import TrainConfig
from s2dlib.model import S2DNet
from s2dlib.training.distributed import rank_and_world_size


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed Python, numpy and torch (all devices) from (seed, epoch), each process differently."""
    sequence = np.random.SeedSequence((seed, epoch, rank_and_world_size()[0]))
    mixed = int(sequence.generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Factor of the peak rate at a step: linear warm-up, then a cosine down to final_lr."""
    warmup = max(1, round(config.warmup_epochs * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, epoch: int) -> None:
    """Set each group's rate to a factor of its peak; 0 in the epochs that it waits."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor * (epoch >= group["wait"])


def make_optimizer(model: S2DNet, config: TrainConfig) -> torch.optim.Optimizer:
    """Groups with their own rates: all else, f_theta, and its zooms, which may wait.

    Each holds `peak`, the rate at the top, and `wait`, the epochs before which its rate is 0. All
    else falls apart further where linear layers or biases have rates of their own.
    """
    head = model.snet and model.snet.theta_head
    theta = set(head.parameters()) if head else set()
    zooms = set(head.branches.zooms()) if head else set()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    fully_connected = {p for layer in linear for p in layer.parameters(recurse=False)}
    biases = {m.bias for m in (*linear, *convolutions) if m.bias is not None}  # not batch norm's

    glance: set[nn.Parameter] = set()
    if model.dnet is not None and model.snet is not None:
        glance = {*model.snet.backbone.parameters(), *model.snet.classifier.parameters()}

    def peak(p: nn.Parameter) -> float:
        if p in theta:
            return config.lr_theta * config.rate_scale
        factor = config.lr_fc if p in fully_connected else 1.0
        factor *= config.lr_snet if p in glance else 1.0
        return config.lr * (factor * (config.lr_bias if p in biases else 1.0)) * config.rate_scale

    parts: dict[tuple[int, float], list[nn.Parameter]] = {}  # by kind and rate
    for p in model.parameters():
        parts.setdefault(((p in theta) + (p in zooms), peak(p)), []).append(p)
    groups = [
        {"params": parts[kind, rate], "lr": rate, "peak": rate}
        | {"wait": config.hold_zoom if kind == 2 else 0}
        for kind, rate in sorted(parts)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The clips of each step of an epoch, in an order drawn from (seed, epoch).

    An incomplete batch is left out, unless it is the only one: batch norm on a few clips misleads.
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    size = min(batch_size, n)
    return [order[i : i + size] for i in range(0, n - size + 1, size)]
