"""Adam and its schedule, as a TrainConfig asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from abkd_fast.config import TrainConfig


def make_optimizer(
    config: TrainConfig, student: nn.Module, objective: nn.Module | None
) -> Optimizer:
    """Fused Adam: the student's layers under ``convs.``, its others, and the objective's maps.

    On a GPU the learning rates are tensors, which a captured step reads anew at every replay.
    """
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
    on_gpu = groups[0]["params"][0].is_cuda
    if on_gpu:
        keep_rates_on_device(groups, config.lr)
    return torch.optim.Adam(groups, lr=config.lr, fused=True, capturable=on_gpu)


def keep_rates_on_device(groups: list[dict[str, Any]], lr: float) -> None:
    """Make the learning rate of every group a tensor beside its parameters."""
    for group in groups:
        device = group["params"][0].device
        # Fused Adam reads float32 on a GPU, and the number itself on the CPU.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        group["lr"] = torch.tensor(group.get("lr", lr), dtype=dtype, device=device)


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state; learning rates that are tensors stay where a captured step reads them."""
    kept = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, (lr, capturable) in zip(optimizer.param_groups, kept, strict=True):
        group["capturable"] = capturable
        if isinstance(lr, Tensor):
            group["lr"] = lr.fill_(group["lr"])


def make_scheduler(config: TrainConfig, optimizer: Optimizer) -> LRScheduler | None:
    """One cycle that peaks at each group's own rate, or None for a constant rate."""
    if config.schedule != "onecycle":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],
        total_steps=max(config.epochs, 2),
        cycle_momentum=config.cycle_momentum,
    )
