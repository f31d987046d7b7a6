"""From the arrays of a file or folder to a checked GraphData: edges, features, split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from abkd_fast._checks import check_finite
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.splits import Masks, random_split
from abkd_fast.graph import CSRGraph


@dataclass(frozen=True)
class ReadOptions:
    """How to turn files into a GraphData.

    Args:
        undirected: add the reverse of every edge and merge duplicates.
        self_loops: keep edges from a node to itself.
        normalize: scale every row of features to unit L1 norm.
        split: which split to use where a file holds several.
        split_seed: draw a random split with this seed instead of reading one.
        train_per_class: training nodes per class of a random split.
        val_per_class: validation nodes per class of a random split.
        name: of the data; default: the name of the file or folder.
    """

    undirected: bool = False
    self_loops: bool = True
    normalize: bool = False
    split: int = 0
    split_seed: int | None = None
    train_per_class: int = 20
    val_per_class: int = 30
    name: str | None = None

    def __post_init__(self) -> None:
        for option, least in (
            *(("split", 0), ("split_seed", 0), ("train_per_class", 1), ("val_per_class", 1)),
        ):
            value = getattr(self, option)
            if value is not None and value < least:
                raise ValueError(f"{option} must be >= {least}, got {value}")

    @classmethod
    def parse(cls, options: dict[str, Any]) -> ReadOptions:
        """Build from keywords.

        Raises:
            ValueError: lists the options there are.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"options must be among {', '.join(known)}, got {', '.join(unknown)}")
        return cls(**options)


@dataclass(frozen=True)
class Parts:
    """Arrays as read: edges source -> target with optional weights, x [N, F], y [N], masks.

    ``where`` says which file or array ``edges``, ``features`` and ``labels`` come from.
    """

    source: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any] | None
    x: Any
    y: np.ndarray[Any, Any]
    where: dict[str, str]


def assemble(
    path: Path, parts: Parts, read_masks: Callable[[int], Masks | None], options: ReadOptions
) -> GraphData:
    """Check the parts against each other and build the GraphData.

    Args:
        path: the file or folder.
        parts: what it holds.
        read_masks: gives the stored split, or None, for N nodes; not called for a random one.
        options: see :class:`ReadOptions`.

    Raises:
        DataError: names the file, the part, the expectation and the value found.
    """
    with blame(parts.where["labels"]):
        y = _labels(parts.y)
    with blame(parts.where["features"]):
        x = _features(parts.x, len(y))
    with blame(parts.where["edges"]):
        graph = graph_from_edges(
            _nodes("source", parts.source),
            _nodes("target", parts.target),
            len(y),
            parts.weight,
            undirected=options.undirected,
            self_loops=options.self_loops,
        )
    with blame(path):
        masks = read_masks(len(y)) if options.split_seed is None else _random(y, options)
        if masks is None:
            raise DataError(
                f"{path}: holds no split; add train, val and test nodes, or pass split_seed=0 for "
                f"a random one ({options.train_per_class} nodes per class for training, "
                f"{options.val_per_class} for validation, the rest for testing)"
            )
        x = row_normalize(x) if options.normalize else x
        return GraphData(x, graph, y, *masks, name=options.name or path.stem)


def _random(y: Tensor, options: ReadOptions) -> Masks:
    per_class = {"train_per_class": options.train_per_class, "val_per_class": options.val_per_class}
    return random_split(y, seed=options.split_seed or 0, **per_class)


def _labels(y: np.ndarray[Any, Any]) -> Tensor:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "iub" or y.size == 0:
        raise ValueError(f"labels must be integers [N], N > 0, got {y.dtype}{list(y.shape)}")
    if int(y.max()) >= len(y):
        raise ValueError(
            f"labels must be smaller than N={len(y)}, got {y.max()}; number them from 0"
        )
    return torch.from_numpy(y.astype(np.int64))


def _nodes(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integer node ids; floats are accepted where whole (text tables with weights)."""
    if values.dtype.kind == "f":
        bad = np.flatnonzero(values != np.floor(values))
        if len(bad):
            raise ValueError(f"{name} must be whole numbers, got {values[bad[0]]} in edge {bad[0]}")
    elif values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    return values


def _features(x: Any, num_nodes: int) -> Tensor | CSRGraph:
    sparse = isinstance(x, scipy.sparse.csr_array)
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise ValueError(f"features must be numbers [N, F], got {x.dtype}{list(x.shape)}")
    if x.shape[0] != num_nodes:
        raise ValueError(f"features must have N={num_nodes} rows as the labels, got {x.shape[0]}")
    if sparse:
        x = x.astype(np.float32)
        x.sum_duplicates()
        return CSRGraph.from_scipy(x)
    dense = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    check_finite("features", dense)
    return dense


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


def row_normalize(x: Tensor | CSRGraph) -> Tensor | CSRGraph:
    """Scale every row to unit L1 norm: x[i] / sum_j |x[i, j]|; rows of zeros stay zero.

    Args:
        x: features [N, F], dense or sparse; sparse features stay sparse.

    Returns:
        The same form, shape and dtype as ``x``.
    """
    if isinstance(x, Tensor):
        total = x.abs().sum(dim=1, keepdim=True)
        return x / total.masked_fill(total == 0, 1.0)
    if x.value is None:
        return x.row_norm()
    row = x.row()
    total = x.value.new_zeros(x.num_dst).index_add_(0, row, x.value.abs())
    return x.with_value(x.value / total.masked_fill(total == 0, 1.0)[row])
