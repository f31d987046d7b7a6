"""TypedArrays: a graph of several node and edge types as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abkd_fast.data.adjacency import Array, both_directions
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.splits import masks_from_nodes
from abkd_fast.graph import CSRGraph
from abkd_fast.relational_graph import RelationalGraph

Relation = tuple[str, str, str]


@dataclass(frozen=True)
class TypedArrays:
    """A graph of several node types and relations, in PyG's and OGB's terms.

    Attributes:
        name: shown in tables.
        num_nodes: {node type: count}.
        edge_index: {(source type, relation, target type): [2, E]}, source then target.
        x: {node type: features [N, F]}; a type that is not there has none.
        y: {node type: labels [N, tasks]}.
        split: {node type: {"train", "val", "test": nodes}}.
        extra: {(what, node type or relation): array}, such as ("node_year", "paper").
        synthetic: whether the data were generated, not measured.
        about: where the data come from: sizes and checksums of the files read.
    """

    name: str
    num_nodes: dict[str, int]
    edge_index: dict[Relation, Array]
    x: dict[str, Array]
    y: dict[str, Array]
    split: dict[str, dict[str, Array]]
    extra: dict[tuple[str, Any], Array] = field(default_factory=dict)
    synthetic: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def num_edges(self) -> int:
        """Edges of all relations."""
        return sum(edges.shape[1] for edges in self.edge_index.values())

    def with_reverses(self) -> TypedArrays:
        """The same data with a relation ``rev_NAME`` beside each between two types.

        Relations within a type (``cites``) become symmetric instead, repeated edges merged: the
        practice of OGB's and PyG's examples, in which OGBN-Mag has 7 relations.
        """
        both: dict[Relation, Array] = {}
        for (source, name, target), edges in self.edge_index.items():
            if source == target:
                both[source, name, target] = both_directions(edges, self.num_nodes[source])
            else:
                both[source, name, target] = edges
                both[target, f"rev_{name}", source] = edges[::-1]
        return replace(self, edge_index=both)

    def relations(self) -> tuple[dict[str, int], dict[Relation, Tensor]]:
        """(nodes by type, edges [2, E] by relation) as ``RelationalGraph.from_relations`` takes.

        Types with labels come first.
        """
        order = sorted(self.num_nodes, key=lambda kind: (kind not in self.y, kind))
        nodes = {kind: self.num_nodes[kind] for kind in order}
        edges = {key: np.array(ends, order="C") for key, ends in self.edge_index.items()}
        return nodes, {key: torch.from_numpy(ends) for key, ends in edges.items()}

    def graph_data(self) -> GraphData:
        """Data for :class:`abkd_fast.Distiller`: the labelled type's nodes amid all relations.

        Types without features are for the model to embed. ``graph`` holds the edges of the first
        relation within the labelled type; without such a relation it has none.

        Raises:
            ValueError: not exactly one type has labels, one per node, and a split.
        """
        nodes, edges = self.relations()
        target = next(iter(nodes))
        label = self.y.get(target)
        if [*self.y] != [target] or label is None or label.shape[1] != 1:
            found = {kind: list(y.shape) for kind, y in self.y.items()}
            raise ValueError(f"y must be [N, 1] labels of one node type, got {found}")
        if target not in self.split:
            raise ValueError(f"split must hold {target!r}, got {', '.join(self.split) or 'none'}")
        within = next((e for (a, _, b), e in edges.items() if a == b == target), None)
        if within is None:
            within = torch.zeros(2, 0, dtype=torch.int64)
        x = {kind: torch.from_numpy(np.asarray(value)) for kind, value in self.x.items()}
        return GraphData(
            x.pop(target, None),
            CSRGraph.from_edge_index(within, nodes[target]),
            torch.from_numpy(np.array(label[:, 0], dtype=np.int64)),
            *masks_from_nodes(nodes[target], **self.split[target]),
            name=self.name,
            synthetic=self.synthetic,
            relations=RelationalGraph.from_relations(nodes, edges),
            other_x=x,
        )
