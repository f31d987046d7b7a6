"""A training step that several processes make together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.optim import Optimizer

from abkd_fast._seeds import SeedBuffer, drawing_from
from abkd_fast._step import Scalars, Step
from abkd_fast.capture import Capture
from abkd_fast.distributed.exchange import all_sum
from abkd_fast.distributed.world import World


@dataclass(kw_only=True)
class SharedCapture(Capture):
    """A capture of some of a step's nodes, whose ``means`` are over those of all ranks.

    Attributes:
        world: the processes.
        weight: the rows' share of the step's nodes.
    """

    world: World
    weight: float

    @property
    def means(self) -> list[Tensor]:
        """Mean over the nodes of all ranks of every state, each [d_j]; differentiable once."""
        own = torch.cat([self.weight * mean for mean in super().means])
        return list(all_sum(own, self.world).split(self.widths))


@dataclass
class SharedStep(Step):
    """Step on the nodes of one rank; its loss and gradients are the sums over all ranks.

    The caller scales ``label_weight`` and ``objective_weight`` so that the sum is the loss.

    Attributes:
        world: the processes.
    """

    world: World = field(kw_only=True)

    def run(self) -> dict[str, float]:
        """Make a step; returns the scalars of all ranks together, and the learning rate."""
        with _drawing_of(self.world):
            return super().run()

    def _losses(self, check: object) -> tuple[Tensor, Scalars]:
        """This rank's part of the loss, and the scalars of all."""
        loss, own = super()._losses(lambda _: None)  # all ranks check, when they know the sums
        weights = [1.0 if name in ("loss", "ce") else self.objective_weight for name in own]
        parts = [w * value.reshape(-1) for w, value in zip(weights, own.values(), strict=True)]
        terms = [] if self.objective is None else self.objective.terms()
        maps = [term for term in terms if term.dissimilarity is not None]
        parts += [self.objective_weight * term.dissimilarity.reshape(-1) for term in maps]  # type: ignore[union-attr]
        total = self.world.sum_(torch.cat([part.detach().double() for part in parts]))
        summed = total.split([part.numel() for part in parts])
        for term, value in zip(maps, summed[len(own) :], strict=True):
            assert term.dissimilarity is not None
            term.dissimilarity = value.view_as(term.dissimilarity).to(term.dissimilarity)
        return loss, {name: value[0] for name, value in zip(own, summed, strict=False)}

    def _backward(self, loss: Tensor) -> None:
        """Leave the sums over ranks with the parameters."""
        loss.backward()
        sum_gradients(self.trained.optimizer, self.world)


def shared(step: Step, world: World) -> SharedStep:
    """The same step, as one of several."""
    return SharedStep(**{f.name: getattr(step, f.name) for f in fields(Step)}, world=world)


def shared_capture(capture: Capture, world: World, weight: float, share: float) -> SharedCapture:
    """The same capture of one rank; ``share`` of all nodes are in the step."""
    own = {f.name: getattr(capture, f.name) for f in fields(Capture)}
    return SharedCapture(**own | {"share": share}, world=world, weight=weight)


def sum_gradients(optimizer: Optimizer, world: World) -> None:
    """Sum the gradients of all parameters over ranks, in one message a dtype.

    A parameter without a gradient counts 0.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for dtype in sorted({p.dtype for p in parameters}, key=str):
        chosen = [p for p in parameters if p.dtype == dtype]
        for p in chosen:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = world.sum_(torch.cat([p.grad.reshape(-1) for p in chosen]))
        for p, grad in zip(chosen, flat.split([p.numel() for p in chosen]), strict=True):
            assert p.grad is not None
            p.grad.copy_(grad.view_as(p))


class _RankSeeds(SeedBuffer):
    """Seeds of dropout that differ between ranks, from generators that do not."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def take(self) -> Tensor:
        """The next seed [] int64."""
        return super().take() ^ (self.rank << 40)


@contextmanager
def _drawing_of(world: World) -> Iterator[None]:
    with drawing_from(_RankSeeds(world.rank)):
        yield
