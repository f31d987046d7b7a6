"""GraphLevelData: many graphs side by side in one block-diagonal CSR, a label for each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from abkd_fast._checks import INDICES, check_tensor
from abkd_fast._csr import check_pointers, tensor_bytes
from abkd_fast.data.graph_data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.subgraph import induced_subgraph, select_rows


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GraphLevelData(GraphData):
    """A graph-classification data set: G graphs in one block-diagonal graph of N nodes.

    Labels and masks have a row for every graph, and so have class scores; hidden states have one
    for every node. Training steps, and with them the teacher's states, run on the training graphs
    alone (:attr:`training`).

    Args:
        graph_ptr: [G + 1] int32/int64; graph g has the nodes graph_ptr[g] .. graph_ptr[g + 1] - 1.

    Raises:
        ValueError: names the part; an edge leads from one graph to another.
    """

    graph_ptr: Tensor

    _rows = "graph"

    def __post_init__(self) -> None:
        check_tensor("graph_ptr", self.graph_ptr, dim=1, dtypes=INDICES)
        if self.graph_ptr.numel() < 2:
            raise ValueError("graph_ptr must hold G + 1 entries, G > 0, got none")
        try:
            check_pointers(self.graph_ptr, self.graph.num_dst)
        except ValueError as error:
            raise ValueError(
                f"graph_ptr must be pointers to the nodes of graphs: {error}"
            ) from None
        super().__post_init__()
        crossing = self.batch[self.graph.row()] != self.batch[self.graph.col.long()]
        if bool(crossing.any()):
            edge = int(crossing.nonzero()[0])
            raise ValueError(
                f"graph must be block-diagonal, got edge {edge} from one graph to another"
            )

    @property
    def num_rows(self) -> int:
        """G."""
        return self.graph_ptr.numel() - 1

    @cached_property
    def batch(self) -> Tensor:
        """[N] int64 graph of every node, PyG's ``batch``."""
        graphs = torch.arange(self.num_rows, device=self.graph_ptr.device)
        return graphs.repeat_interleave(self.graph_ptr.diff().long(), output_size=self.num_nodes)

    @cached_property
    def training(self) -> GraphData:
        """The training graphs."""
        return self.subset(self.train_mask.nonzero().flatten())

    def inductive(self) -> GraphData:
        """These data: training sees the training graphs only anyway."""
        return self

    def subset(self, graphs: Tensor) -> GraphLevelData:
        """A batch of some graphs, in the order given, as data for training alone.

        Args:
            graphs: [B] int64, each graph once.

        Raises:
            ValueError: there is no such graph, or one is listed twice.
        """
        if graphs.numel() and (int(graphs.min()) < 0 or int(graphs.max()) >= self.num_rows):
            raise ValueError(
                f"graphs must lie in [0, G={self.num_rows}), got values from {int(graphs.min())} "
                f"to {int(graphs.max())}"
            )
        if graphs.unique().numel() != graphs.numel():
            raise ValueError("graphs must list every graph once, got one twice")
        sizes = self.graph_ptr.diff().long()[graphs]
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        start = (self.graph_ptr[:-1].long()[graphs] - ptr[:-1]).repeat_interleave(sizes)
        nodes = torch.arange(int(ptr[-1]), device=ptr.device) + start
        assert self.x is not None  # without relations there are features
        x = select_rows(self.x, nodes) if isinstance(self.x, CSRGraph) else self.x[nodes]
        graph = induced_subgraph(self.graph, nodes)
        return GraphBatch(
            x=x,
            graph=graph,
            y=self.y[graphs],
            train_mask=self.train_mask[graphs],
            val_mask=self.val_mask[graphs],
            test_mask=self.test_mask[graphs],
            name=self.name,
            synthetic=self.synthetic,
            task=self.task,
            graph_ptr=ptr,
        )

    def to(self, device: torch.device | str) -> GraphData:
        """The same data on another device."""
        parts = ("x", "graph", "y", "train_mask", "val_mask", "test_mask", "graph_ptr")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(super()._fingerprint.encode())
        digest.update(tensor_bytes(self.graph_ptr.long()))
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Sizes and split."""
        return f"{super().__repr__()[:-1]}, num_graphs={self.num_rows})"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GraphBatch(GraphLevelData):
    """Some graphs of a data set; needs no validation and no test graphs, and may lack training."""

    _filled = ()

    @property
    def training(self) -> GraphData:
        """These graphs."""
        return self


def block_diagonal(
    source: Tensor, target: Tensor, num_edges: Tensor, num_nodes: Tensor
) -> CSRGraph:
    """The graph of many edge lists, each numbered within its graph, one after the other.

    Args:
        source: [E] int64.
        target: [E] int64.
        num_edges: [G] int64.
        num_nodes: [G] int64.

    Raises:
        ValueError: an end that is not a node of its graph.
    """
    graph = torch.arange(num_nodes.numel()).repeat_interleave(num_edges)
    for name, end in (("source", source), ("target", target)):
        bad = ((end < 0) | (end >= num_nodes[graph])).nonzero()
        if len(bad):
            edge = int(bad[0])
            raise ValueError(
                f"{name} must be a node of its graph, got {int(end[edge])} in edge {edge}, whose "
                f"graph has {int(num_nodes[graph[edge]])} nodes"
            )
    first = (num_nodes.cumsum(0) - num_nodes)[graph]
    edge_index = torch.stack([source + first, target + first])
    return CSRGraph.from_edge_index(edge_index, int(num_nodes.sum()))
