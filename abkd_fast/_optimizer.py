"""Adam and its schedule, as a TrainConfig asks for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from abkd_fast.config import TrainConfig


def make_optimizer(
    config: TrainConfig, student: nn.Module, objective: nn.Module | None
) -> Optimizer:
    """Fused Adam: the student's layers under ``convs.``, its others, and the objective's maps."""
    convs: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        (convs if "convs." in name else rest).append(parameter)
    conv_decay = config.conv_weight_decay
    conv_decay = config.weight_decay if conv_decay is None else conv_decay
    groups: list[dict[str, Any]] = [
        {"params": rest, "weight_decay": config.weight_decay},
        {"params": convs, "weight_decay": conv_decay},
    ]
    if objective is not None:
        trained = [p for p in objective.parameters() if p.requires_grad]
        lr = config.lr if config.objective_lr is None else config.objective_lr
        groups.append({"params": trained, "weight_decay": 0.0, "lr": lr})
    groups = [group for group in groups if group["params"]]
    return torch.optim.Adam(groups, lr=config.lr, fused=True)


def make_scheduler(config: TrainConfig, optimizer: Optimizer) -> LRScheduler | None:
    """One cycle that peaks at each group's own rate, or None for a constant rate."""
    if config.schedule != "onecycle":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=max(config.epochs, 2),
        cycle_momentum=config.cycle_momentum,
    )
