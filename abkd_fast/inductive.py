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
from abkd_fast.graph import CSRGraph


@dataclass(frozen=True, eq=False, repr=False)
class TrainingPart(GraphData):
    """What a training step sees of other data: it needs no validation and no test rows."""

    _filled = ("train",)


@dataclass(frozen=True, eq=False, repr=False)
class InductiveData(GraphData):
    """A graph of which training sees only the part among the training nodes."""

    @cached_property
    def training(self) -> GraphData:
        """The subgraph that the training nodes induce, all its nodes in the training mask."""
        return node_subgraph(self, self.train_mask.nonzero().flatten())

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(f"inductive {super()._fingerprint}".encode()).hexdigest()


def node_subgraph(data: GraphData, nodes: Tensor) -> TrainingPart:
    """The graph among ``nodes``, renumbered in their order, as data for training alone.

    Args:
        data: node-level data.
        nodes: [n] int64, each node once.

    Raises:
        ValueError: a node is outside the graph or listed twice.
    """
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= data.num_nodes):
        raise ValueError(
            f"nodes must lie in [0, N={data.num_nodes}), got values from {int(nodes.min())} to "
            f"{int(nodes.max())}"
        )
    if nodes.unique().numel() != nodes.numel():
        raise ValueError("nodes must list every node once, got a node twice")
    x, graph = select_rows(data, nodes)
    return TrainingPart(
        x=x,
        graph=graph,
        y=data.y[nodes],
        train_mask=data.train_mask[nodes],
        val_mask=data.val_mask[nodes],
        test_mask=data.test_mask[nodes],
        name=data.name,
        synthetic=data.synthetic,
        task=data.task,
    )


def select_rows(data: GraphData, nodes: Tensor) -> tuple[Tensor | CSRGraph, CSRGraph]:
    """Features of distinct nodes, and the graph among them, in their order."""
    place = torch.full((data.num_nodes,), -1, dtype=torch.int64, device=nodes.device)
    place[nodes] = torch.arange(nodes.numel(), device=nodes.device)
    x = _rows(data.x, place, nodes.numel()) if isinstance(data.x, CSRGraph) else data.x[nodes]
    return x, _rows(data.graph, place, nodes.numel(), place)


def _rows(
    matrix: CSRGraph, place: Tensor, count: int, column_place: Tensor | None = None
) -> CSRGraph:
    """Rows (and columns) of a matrix moved to their places; those at -1 are left out."""
    row, col = place[matrix.row()], matrix.col.long()
    if column_place is not None:
        col = column_place[col]
    keep = (row >= 0) & (col >= 0)
    value = None if matrix.value is None else matrix.value[keep]
    sizes = (matrix.num_src if column_place is None else count, count)
    return CSRGraph.from_edge_index(torch.stack([col[keep], row[keep]]), sizes, value)


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
