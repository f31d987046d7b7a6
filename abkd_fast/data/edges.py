"""Graphs from edge lists as files store them: one direction or both, repeated, with self-loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from abkd_fast.graph import CSRGraph


def graph_from_edges(
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    num_nodes: int,
    weight: np.ndarray[Any, Any] | None = None,
    *,
    undirected: bool = False,
    self_loops: bool = True,
) -> CSRGraph:
    """A CSRGraph of edges source -> target (row = target).

    Args:
        source: [E] integers in [0, num_nodes).
        target: [E] integers in [0, num_nodes).
        num_nodes: N.
        weight: [E] numbers or None; weights that are all 1 are dropped.
        undirected: add the reverse of every edge and merge duplicates; merged edges keep the
            largest weight, so a list that is symmetric already stays as it is.
        self_loops: keep edges from a node to itself.

    Raises:
        ValueError: names an edge whose end is not a node, or a weight that is not finite.
    """
    for name, end in (("source", source), ("target", target)):
        bad = np.flatnonzero((end < 0) | (end >= num_nodes))
        if len(bad):
            raise ValueError(
                f"{name} must lie in [0, num_nodes={num_nodes}), got {end[bad[0]]} in edge {bad[0]}"
            )
    if weight is not None and not bool(np.isfinite(weight).all()):
        bad = np.flatnonzero(~np.isfinite(weight))
        raise ValueError(f"weight must be finite, got {weight[bad[0]]} in edge {bad[0]}")
    if weight is not None and bool((weight == 1).all()):
        weight = None
    source, target = source.astype(np.int64), target.astype(np.int64)
    if not self_loops:
        keep = source != target
        source, target = source[keep], target[keep]
        weight = None if weight is None else weight[keep]
    if undirected:
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
        weight = None if weight is None else np.concatenate([weight, weight])
        source, target, weight = _merge(source, target, weight, num_nodes)
    edge_index = torch.from_numpy(np.stack([source, target]))
    value = None if weight is None else torch.from_numpy(weight.astype(np.float32))
    return CSRGraph.from_edge_index(edge_index, num_nodes, value)


def _merge(source: Any, target: Any, weight: Any, num_nodes: int) -> tuple[Any, Any, Any]:
    """Sort by (target, source) and merge equal edges, keeping the largest weight."""
    key = target * num_nodes + source  # < 2^62: a node is an int32 index in practice
    if weight is None:
        key = np.unique(key)
        return key % num_nodes, key // num_nodes, None
    order = np.argsort(key, kind="stable")
    key, first = np.unique(key[order], return_index=True)
    largest = np.maximum.reduceat(weight[order], first) if len(first) else weight
    return key % num_nodes, key // num_nodes, largest
