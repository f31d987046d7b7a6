"""TypedArrays: a graph of several node and edge types as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abkd_fast.data.adjacency import Array, both_directions

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
