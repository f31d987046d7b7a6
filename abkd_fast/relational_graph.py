"""RelationalGraph: typed nodes and several relations between them, for R-GCN."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from abkd_fast._checks import INDICES, check_tensor
from abkd_fast._csr import check_count, check_range, outside_inference, pointers, tensor_bytes
from abkd_fast._relation_stack import Stack, stack_edges
from abkd_fast.graph import CSRGraph

Relation = tuple[str, str, str]


class RelationalGraph:
    """R relations between N typed nodes; an edge goes from a source to a destination.

    Types follow each other: the nodes of the first type are 0 .. n_0 - 1, those of the second
    come next, and so on; features [N, F] are in this order. The first type is the target of
    classification by convention. Graphs are immutable and checked once, on construction; the
    edges are kept by destination and by source, for the forward and the backward.

    Build one with :meth:`from_relations`, :meth:`from_edge_type` or :meth:`from_hetero_data`.
    """

    def __init__(
        self,
        num_nodes: Mapping[str, int],
        relations: tuple[Relation, ...],
        stacks: tuple[Stack, Stack],
        num_src: int,
    ) -> None:
        """Internal: takes checked parts. Use a ``from_*`` method."""
        self.num_nodes = dict(num_nodes)
        self.relations = relations
        self.num_src = num_src
        self.num_dst = sum(self.num_nodes.values())
        self.stack, self.stack_t = stacks
        ends = stacks[0].ptr[torch.tensor(stacks[0].pairs, device=stacks[0].ptr.device)]
        self.num_edges_of = tuple(ends.diff().tolist())
        self._mean_weights: dict[torch.dtype, Tensor] = {}
        self._lookup: dict[torch.dtype | None, CSRGraph] = {}
        self._bases: dict[torch.dtype | None, CSRGraph] = {}

    # -- construction ---------------------------------------------------------------------

    @classmethod
    def from_relations(
        cls, num_nodes: Mapping[str, int], edges: Mapping[Relation, Tensor | CSRGraph]
    ) -> RelationalGraph:
        """Build from one edge list or CSRGraph a relation.

        Args:
            num_nodes: node type -> count, the target of classification first.
            edges: (source type, name, destination type) -> edge_index [2, E_r] (source row
                first) numbered within the types, or an unweighted CSRGraph.

        Raises:
            ValueError: names the relation, the expectation and the value found.
        """
        sizes = {kind: check_count(f"num_nodes[{kind!r}]", n) for kind, n in num_nodes.items()}
        if not sizes:
            raise ValueError("num_nodes must hold at least one node type, got none")
        first = dict(zip(sizes, _starts(sizes), strict=True))
        parts = []
        for relation, given in edges.items():
            source_type, target_type = _ends(relation, sizes)
            name = f"edges[{relation}]"
            source, target = _edge_list(name, given)
            check_range(f"{name} sources", source, sizes[source_type], f"{source_type} nodes")
            check_range(f"{name} targets", target, sizes[target_type], f"{target_type} nodes")
            parts.append((source + first[source_type], target + first[target_type]))
        total = sum(sizes.values())
        return cls(sizes, tuple(edges), stack_edges(parts, total, total), total)

    @classmethod
    def from_edge_type(
        cls,
        edge_index: Tensor,
        edge_type: Tensor,
        num_nodes: int | tuple[int, int],
        num_relations: int | None = None,
    ) -> RelationalGraph:
        """Build from what PyG's RGCNConv takes: nodes of one type "node", relations "0", "1", ...

        Args:
            edge_index: [2, E] int32/int64; ``edge_index[0]`` = source.
            edge_type: [E] int32/int64 relation of every edge.
            num_nodes: N, or (sources, destinations), which are then numbered apart.
            num_relations: R; default: the largest edge type + 1.
        """
        check_tensor("edge_type", edge_type, dim=1, dtypes=INDICES, device=edge_index.device)
        source, target = _edge_list("edge_index", edge_index)
        if edge_type.numel() != source.numel():
            raise ValueError(f"edge_type must be [E={source.numel()}], got [{edge_type.numel()}]")
        if num_relations is None:
            num_relations = int(edge_type.max()) + 1 if edge_type.numel() else 0
        check_range("edge_type", edge_type, check_count("num_relations", num_relations), "R")
        sizes = num_nodes if isinstance(num_nodes, tuple) else (num_nodes, num_nodes)
        num_src, num_dst = (check_count("num_nodes", size) for size in sizes)
        check_range("edge_index[0]", source, num_src, "num_nodes")
        check_range("edge_index[1]", target, num_dst, "num_nodes")
        order = torch.argsort(edge_type, stable=True)
        counts = torch.bincount(edge_type, minlength=num_relations).tolist()
        groups = zip(source[order].split(counts), target[order].split(counts), strict=True)
        names = tuple(("node", str(r), "node") for r in range(num_relations))
        return cls({"node": num_dst}, names, stack_edges(list(groups), num_dst, num_src), num_src)

    @classmethod
    def from_hetero_data(cls, data: Any, target: str | None = None) -> RelationalGraph:
        """Build from a ``torch_geometric.data.HeteroData`` with ``edge_index`` a relation.

        ``target`` is the node type that comes first; None keeps the order of ``data``.
        """
        kinds = list(data.node_types)
        if target is not None and target not in kinds:
            raise ValueError(f"target must be one of {', '.join(kinds)}, got {target!r}")
        kinds.sort(key=lambda kind: kind != target)
        counts = {kind: data[kind].num_nodes for kind in kinds}
        return cls.from_relations(counts, {r: data[r].edge_index for r in data.edge_types})

    # -- parts ----------------------------------------------------------------------------

    @property
    def num_relations(self) -> int:
        """R."""
        return len(self.relations)

    @property
    def num_edges(self) -> int:
        """Edges of all relations together."""
        return self.stack.col.numel()

    @property
    def device(self) -> torch.device:
        """Device of all arrays."""
        return self.stack.col.device

    @property
    def node_types(self) -> tuple[str, ...]:
        """Names of the node types, in the order of their nodes."""
        return tuple(self.num_nodes)

    def start(self, node_type: str) -> int:
        """Number of the first node of a type."""
        if node_type not in self.num_nodes:
            known = ", ".join(self.num_nodes)
            raise ValueError(f"node_type must be one of {known}, got {node_type!r}")
        return _starts(self.num_nodes)[self.node_types.index(node_type)]

    def relation(self, relation: Relation) -> CSRGraph:
        """One relation as a rectangular CSRGraph [destinations, sources], built anew."""
        if relation not in self.relations:
            known = ", ".join(str(r) for r in self.relations)
            raise ValueError(f"relation must be one of {known}, got {relation}")
        edge_index = self._edges(self.relations.index(relation))
        sizes = (self.num_src, self.num_dst)
        if self.num_src == self.num_dst:
            source, _, target = relation
            edge_index = edge_index - torch.tensor(
                [[self.start(source)], [self.start(target)]], device=self.device
            )
            sizes = (self.num_nodes[source], self.num_nodes[target])
        return CSRGraph.from_edge_index(edge_index, sizes)

    def with_reverse(self) -> RelationalGraph:
        """Add to every relation (a, name, b) its reverse (b, "rev_name", a)."""
        if self.num_src != self.num_dst:
            raise ValueError(
                f"with_reverse() needs one numbering of the nodes, got {self.num_src} sources "
                f"and {self.num_dst} destinations"
            )
        reverse = tuple((b, f"rev_{name}", a) for a, name, b in self.relations)
        both = set(reverse) & set(self.relations)
        if both:
            raise ValueError(f"relations must not have reverses yet, got {sorted(both)[0]}")
        edges = [self._edges(r) for r in range(self.num_relations)]
        parts = [(e[0], e[1]) for e in edges] + [(e[1], e[0]) for e in edges]
        stacks = stack_edges(parts, self.num_dst, self.num_src)
        return RelationalGraph(self.num_nodes, self.relations + reverse, stacks, self.num_src)

    def homogeneous(self) -> tuple[Tensor, Tensor]:
        """(edge_index [2, E], edge_type [E]) over all nodes, as PyG's RGCNConv takes them."""
        none = torch.zeros(2, 0, dtype=torch.int64, device=self.device)
        index = torch.cat([none, *map(self._edges, range(self.num_relations))], dim=1)
        counts = torch.tensor(self.num_edges_of, dtype=torch.int64)
        return index, torch.arange(self.num_relations).repeat_interleave(counts).to(self.device)

    def to(self, device: torch.device | str) -> RelationalGraph:
        """The same graph on another device."""
        if torch.device(device) == self.device:
            return self
        stacks = (self.stack.to(device), self.stack_t.to(device))
        return RelationalGraph(self.num_nodes, self.relations, stacks, self.num_src)

    def fingerprint(self) -> str:
        """SHA-256 over types, relations and edges: equal graphs have equal fingerprints."""
        about = (self.num_nodes, self.relations, self.num_src, self.num_edges_of)
        digest = hashlib.sha256(repr(about).encode())
        for part in self.stack.tensors()[:3]:
            digest.update(tensor_bytes(part.long()))
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Counts of nodes, relations and edges."""
        nodes = ", ".join(f"{kind}={count:,}" for kind, count in self.num_nodes.items())
        return (
            f"RelationalGraph({nodes}, num_relations={self.num_relations}, "
            f"num_edges={self.num_edges:,}, {self.device})"
        )

    # -- for the ops ----------------------------------------------------------------------

    @outside_inference
    def mean_weights(self, dtype: torch.dtype) -> Tensor:
        """[E] 1 / (edges of its pair) for every edge of ``stack_t``; kept."""
        if dtype not in self._mean_weights:
            inverse = self.stack.degree().to(dtype).reciprocal()
            pairs = torch.tensor(self.stack.pairs[:-1], dtype=torch.int64, device=self.device)
            counts = torch.tensor(self.num_edges_of, dtype=torch.int64, device=self.device)
            base = pairs.repeat_interleave(counts)
            self._mean_weights[dtype] = inverse[base + self.stack_t.local]
        return self._mean_weights[dtype]

    @outside_inference
    def lookup(self, mean: torch.dtype | None) -> CSRGraph:
        """[num_dst, R * num_src]: the product with all W_r below each other; kept.

        ``mean`` is the dtype of the weights that make means; None leaves them out: sums.
        """
        if mean not in self._lookup:
            pair = self.stack.edge_pair()
            counts = torch.tensor(self.num_edges_of, dtype=torch.int64, device=self.device)
            relation = torch.arange(self.num_relations, device=self.device)
            col = self.stack.col + self.num_src * relation.repeat_interleave(counts)
            row = self.stack.row[pair].long()
            order = torch.argsort(row, stable=True)
            weight = None
            if mean is not None:
                weight = self.stack.degree().to(mean).reciprocal()[pair][order]
            rowptr = pointers(row, self.num_dst, torch.int64)
            self._lookup[mean] = CSRGraph.from_csr(
                rowptr, col[order], weight, self.num_relations * self.num_src
            )
        return self._lookup[mean]

    @outside_inference
    def lookup_bases(self, mean: torch.dtype | None) -> CSRGraph:
        """[num_dst, num_src]: the edges of :meth:`lookup` in its order, relations forgotten."""
        if mean not in self._bases:
            stacked = self.lookup(mean)
            col = stacked.col.long() % self.num_src
            self._bases[mean] = CSRGraph.from_csr(stacked.rowptr, col, None, self.num_src)
        return self._bases[mean]

    def _edges(self, r: int) -> Tensor:
        """[2, E_r] int64 (source, destination) of relation r, numbered over all nodes."""
        first, stop = self.stack.pairs[r], self.stack.pairs[r + 1]
        ptr = self.stack.ptr[first : stop + 1].long()
        target = self.stack.row[first:stop].long().repeat_interleave(ptr.diff())
        before = sum(self.num_edges_of[:r])
        source = self.stack.col[before : before + self.num_edges_of[r]].long()
        return torch.stack([source, target])


def _starts(sizes: Mapping[str, int]) -> list[int]:
    starts, total = [], 0
    for size in sizes.values():
        starts.append(total)
        total += size
    return starts


def _ends(relation: Any, sizes: Mapping[str, int]) -> tuple[str, str]:
    if not isinstance(relation, tuple) or len(relation) != 3:
        raise ValueError(
            f"keys of edges must be (source type, name, destination type), got {relation!r}"
        )
    for kind in (relation[0], relation[2]):
        if kind not in sizes:
            raise ValueError(
                f"edges[{relation}] must join types of num_nodes ({', '.join(sizes)}), got {kind!r}"
            )
    return relation[0], relation[2]


def _edge_list(name: str, given: Tensor | CSRGraph) -> tuple[Tensor, Tensor]:
    if isinstance(given, CSRGraph):
        if given.value is not None:
            raise ValueError(f"{name} must be unweighted, got {given}; drop the weights")
        given = given.to_edge_index()[0]
    check_tensor(name, given, dim=2, dtypes=INDICES)
    if given.size(0) != 2:
        raise ValueError(f"{name} must be [2, E], got {list(given.shape)}; pass it transposed")
    return given[0].long(), given[1].long()
