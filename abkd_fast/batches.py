"""Mini-batches of nodes: sampled neighbourhoods, or clusters of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.ops import sample_neighbors
from abkd_fast.reorder import partition


@dataclass(frozen=True)
class Batch:
    """Nodes to run a model on, of which the first ``batch_size`` count in losses.

    Attributes:
        data: their features and labels over the edges of the batch.
        nodes: [n] int64, which nodes of the whole graph they are.
        batch_size: how many count; the others are neighbours.
    """

    data: GraphData
    nodes: Tensor
    batch_size: int


class NeighborBatches:
    """Batches of seed nodes with sampled neighbourhoods (GraphSAGE; see ops.sample_neighbors).

    Models normalise the sampled edges, as PyG's do: degrees are those in the batch.

    Args:
        data: the whole graph.
        num_neighbors: limit of every hop, as many as the model has layers; -1 takes all edges.
        batch_size: number of seed nodes a batch; the last batch of an epoch may have fewer.
        nodes: [M] int64, the seed nodes of an epoch; None = all nodes, as distillation wants it.
        replace: draw edges with replacement.
        seed: of the order of the nodes and of the draws.
    """

    def __init__(
        self,
        data: GraphData,
        num_neighbors: Sequence[int],
        batch_size: int = 1024,
        *,
        nodes: Tensor | None = None,
        replace: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.data, self.num_neighbors = data, list(num_neighbors)
        self.batch_size, self.replace, self.seed = batch_size, replace, seed
        self.nodes = torch.arange(data.num_nodes) if nodes is None else nodes
        if self.nodes.numel() == 0:
            raise ValueError("nodes must hold at least one seed node, got none")
        self.num_items, self.per_batch = self.nodes.numel(), batch_size

    def __len__(self) -> int:
        """Number of batches an epoch."""
        return -(-self.nodes.numel() // self.batch_size)

    @cached_property
    def train_share(self) -> float:
        """Share of the nodes of an epoch that are training nodes."""
        return _train_share(self.data, self.nodes)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch; they depend on ``seed`` and ``number`` alone."""
        order = shuffled(self.num_items, self.seed, number)
        for i, chosen in enumerate(order.split(self.per_batch)):
            yield self.batch(chosen, number * len(self) + i)

    def batch(self, chosen: Tensor, step: int) -> Batch:
        """The batch of the seed nodes ``nodes[chosen]``, whose draws depend on ``step``."""
        seeds = self.nodes[chosen].to(self.data.graph.device)
        sample = sample_neighbors(
            self.data.graph,
            seeds,
            self.num_neighbors,
            replace=self.replace,
            seed=self.seed,
            step=step,
        )
        data = self.data.rows(sample.n_id, sample.graph)
        return Batch(data, sample.n_id, sample.batch_size)

    def __repr__(self) -> str:
        """Settings."""
        return (
            f"NeighborBatches(num_neighbors={self.num_neighbors}, batch_size={self.batch_size}, "
            f"nodes={self.nodes.numel()}, replace={self.replace}, seed={self.seed})"
        )


class ClusterBatches:
    """Batches of METIS clusters with the edges inside a batch (Chiang et al., Cluster-GCN, 2019).

    Args:
        data: the whole graph.
        num_parts: number of clusters.
        parts_per_batch: clusters drawn together; edges between them are kept.
        seed: of the order of the clusters.
    """

    def __init__(
        self, data: GraphData, num_parts: int, parts_per_batch: int = 1, *, seed: int = 0
    ) -> None:
        if not 1 <= parts_per_batch <= num_parts:
            raise ValueError(
                f"parts_per_batch must be in [1, num_parts={num_parts}], got {parts_per_batch}"
            )
        self.data, self.num_parts = data, num_parts
        self.parts_per_batch, self.seed = parts_per_batch, seed
        part = partition(data.graph, num_parts)
        sizes = torch.bincount(part, minlength=num_parts).tolist()
        self._parts = [nodes for nodes in part.argsort(stable=True).split(sizes) if len(nodes)]
        self.num_items, self.per_batch = len(self._parts), parts_per_batch
        self.nodes = slice(None)

    def __len__(self) -> int:
        """Number of batches an epoch."""
        return -(-len(self._parts) // self.parts_per_batch)

    @cached_property
    def train_share(self) -> float:
        """Share of the nodes of an epoch that are training nodes."""
        return _train_share(self.data, self.nodes)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch; they depend on ``seed`` and ``number`` alone."""
        order = shuffled(self.num_items, self.seed, number)
        for i, chosen in enumerate(order.split(self.per_batch)):
            yield self.batch(chosen, number * len(self) + i)

    def batch(self, chosen: Tensor, step: int) -> Batch:
        """The batch of the clusters ``chosen``; nothing is drawn."""
        del step
        nodes = torch.cat([self._parts[i] for i in chosen.tolist()]).sort().values
        return Batch(self.data.subgraph(nodes), nodes, nodes.numel())

    def __repr__(self) -> str:
        """Settings."""
        return (
            f"ClusterBatches(num_parts={self.num_parts}, parts_per_batch={self.parts_per_batch}, "
            f"seed={self.seed})"
        )


class LoaderBatches:
    """The batches of a PyG loader, such as NeighborLoader, whose seed nodes come first.

    PyG's sampling needs pyg-lib or torch-sparse. A run resumed from a checkpoint draws other
    batches than one that was not interrupted, because the loader keeps its own random state.

    Args:
        data: the graph the loader samples from.
        loader: yields ``torch_geometric.data.Data`` with ``n_id``, ``edge_index`` and, where
            other nodes than seeds are in a batch, ``batch_size``.
        nodes: [M] int64, the seed nodes of an epoch; None = all nodes.
    """

    def __init__(self, data: GraphData, loader: Any, nodes: Tensor | None = None) -> None:
        self.data, self.loader = data, loader
        self.nodes = torch.arange(data.num_nodes) if nodes is None else nodes

    def __len__(self) -> int:
        """Number of batches an epoch."""
        return len(self.loader)

    @cached_property
    def train_share(self) -> float:
        """Share of the nodes of an epoch that are training nodes."""
        return _train_share(self.data, self.nodes)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The loader's next pass; it alone decides what depends on ``number``."""
        del number
        for part in self.loader:
            weight = getattr(part, "edge_weight", None)
            graph = CSRGraph.from_edge_index(part.edge_index, part.n_id.numel(), weight)
            size = getattr(part, "batch_size", part.n_id.numel())
            yield Batch(self.data.rows(part.n_id, graph), part.n_id, size)

    def __repr__(self) -> str:
        """Settings."""
        return f"LoaderBatches({self.loader!r})"


Batches = NeighborBatches | ClusterBatches | LoaderBatches


@dataclass(frozen=True)
class BatchConfig:
    """Mini-batches; without a size or clusters a step is over the whole graph."""

    size: int | None = None
    """Seed nodes a batch, with sampled neighbourhoods; None = no sampling."""
    num_neighbors: tuple[int, ...] = (15, 10)
    """Edges sampled a node, hop by hop, as many hops as the model has layers; -1 = all."""
    clusters: int | None = None
    """Clusters that METIS splits the graph into, for batches of clusters instead."""
    clusters_per_batch: int = 1
    """Clusters a batch; edges between them are kept."""

    def __post_init__(self) -> None:
        if self.size is not None and self.clusters is not None:
            raise ValueError(
                f"batches must have a size or clusters, got both: {self.size} and {self.clusters}"
            )

    def build(self, data: GraphData, seed: int, labels_only: bool) -> Batches | None:
        """Batches of ``data``, of its training nodes where nothing else has a loss."""
        if self.clusters is not None:
            return ClusterBatches(data, self.clusters, self.clusters_per_batch, seed=seed)
        if self.size is None:
            return None
        nodes = data.train_mask.nonzero().flatten() if labels_only else None
        return NeighborBatches(data, self.num_neighbors, self.size, nodes=nodes, seed=seed)


def _train_share(data: GraphData, nodes: Tensor | slice) -> float:
    share = float(data.train_mask[nodes].double().mean())
    if share == 0.0:
        raise ValueError("nodes of an epoch must hold training nodes, got none")
    return share


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's items."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator)
