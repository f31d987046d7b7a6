"""Rows and sums that cross process boundaries, with their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from abkd_fast.distributed.world import World


@dataclass(frozen=True)
class Exchange:
    """Which rows a rank sends to the others, and how many it gets from each.

    Attributes:
        world: the processes.
        send: [sum(sent)] int64, own rows in the order of the ranks they go to.
        sent: how many rows go to each rank; those for one rank are distinct.
        received: how many rows come from each rank.
    """

    world: World
    send: Tensor
    sent: list[int]
    received: list[int]

    def with_halo(self, x: Tensor) -> Tensor:
        """x [n, d] above the rows [h, d] that others own; differentiable once."""
        return _WithHalo.apply(x, self)


class _WithHalo(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Exchange) -> Tensor:
        ctx.plan, ctx.rows = plan, x.size(0)
        halo = plan.world.exchange(x[plan.send], plan.sent, plan.received)
        return torch.cat([x, halo])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        plan: Exchange = ctx.plan
        parts = plan.world.exchange(dout[ctx.rows :], plan.received, plan.sent).split(plan.sent)
        dx = dout[: ctx.rows].clone()
        for rows, part in zip(plan.send.split(plan.sent), parts, strict=True):
            dx.index_add_(0, rows, part)  # rank by rank: distinct rows, so a fixed order of sums
        return dx, None


def all_sum(x: Tensor, world: World) -> Tensor:
    """Sum over ranks, differentiable once: every rank's loss counts in the gradient."""
    return _AllSum.apply(x, world)


class _AllSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum_(x.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum_(dout.clone()), None
