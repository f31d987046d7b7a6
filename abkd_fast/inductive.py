"""Training on a part of the graph, and predictions on another graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from abkd_fast.capture import call_model
from abkd_fast.data.graph_data import GraphData


@dataclass(frozen=True, eq=False, repr=False)
class InductiveData(GraphData):
    """A graph of which training sees only the part among the training nodes."""

    @cached_property
    def training(self) -> GraphData:
        """The subgraph that the training nodes induce, all its nodes in the training mask."""
        return self.subgraph(self.train_mask.nonzero().flatten())

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(f"inductive {super()._fingerprint}".encode()).hexdigest()


@torch.no_grad()
def predict(
    model: nn.Module, data: GraphData, forward: Callable[..., Tensor] | None = None
) -> Tensor:
    """Class scores of a trained model on data of the same features, in eval mode.

    The data need not be those that the model was trained on: nodes and edges may be new, or gone.

    Args:
        model: any module that returns class scores.
        data: graph and features; labels and masks are not read.
        forward: as in :class:`abkd_fast.Distiller`.

    Returns:
        [N, C], or [G, C] for graph-level data.
    """
    was_training = model.training
    model.eval()
    try:
        return call_model(model, data, forward)
    finally:
        model.train(was_training)
