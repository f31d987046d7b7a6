"""Cora, Citeseer and PubMed from the raw files of Planetoid (Yang et al. 2016), public split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from abkd_fast.data.assemble import graph_from_edges, row_normalize
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.safe_pickle import loads
from abkd_fast.data.splits import masks_from_nodes
from abkd_fast.graph import CSRGraph

PARTS = ("allx", "ally", "tx", "ty", "y", "graph", "test.index")
_NUM_VAL = 500
_MAX_BYTES = 1 << 31


def read_planetoid(
    name: str, locate: Callable[[str], Path], *, normalize: bool = True
) -> GraphData:
    """Read a Planetoid data set with the conventions of the literature.

    Train = the first len(y) nodes, validation = the next 500, test = the nodes in ``test.index``.
    The graph is symmetrised, repeated edges are merged and self-loops dropped. Nodes that are
    missing from the test rows (15 in Citeseer) keep their edges, have no features and label -1.

    Args:
        name: of the data set; the files are ``ind.<name>.<part>``.
        locate: path of a file by its name.
        normalize: scale every row of features to sum 1.

    Raises:
        DataError: names the file that is missing, broken or at odds with the others.
    """
    paths = {part: locate(f"ind.{name}.{part}") for part in PARTS}
    raw = {part: read_pickle(paths[part]) for part in PARTS[:-1]}
    allx, tx = (_features(paths[part], raw[part]) for part in ("allx", "tx"))
    labels = {part: _labels(paths[part], raw[part]) for part in ("ally", "ty", "y")}
    test = _test_nodes(paths["test.index"], len(labels["ty"]), allx.shape[0])
    num_nodes = int(test.max()) + 1
    _check_rows(paths["ally"], len(labels["ally"]), allx.shape[0], "allx")
    _check_rows(paths["tx"], tx.shape[0], len(labels["ty"]), "ty")
    if allx.shape[1] != tx.shape[1]:
        raise DataError(f"{paths['tx']}: must have {allx.shape[1]} columns, got {tx.shape[1]}")

    y = np.full(num_nodes, -1, np.int64)
    y[: len(labels["ally"])], y[test] = labels["ally"], labels["ty"]
    with blame(paths["allx"].parent):
        x = CSRGraph.from_scipy(_stack(allx, tx, test, num_nodes))
        num_train = len(labels["y"])
        masks = masks_from_nodes(
            num_nodes,
            train=np.arange(num_train),
            val=np.arange(num_train, num_train + _NUM_VAL),
            test=test,
        )
        graph = adjacency_of(paths["graph"], raw["graph"], num_nodes)
        features = row_normalize(x) if normalize else x
        return GraphData(features, graph, torch.from_numpy(y), *masks, name=name)


def read_pickle(path: Path) -> Any:
    """What a pickle of Planetoid holds, read without running code."""
    with blame(path):
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: must be smaller than 2 GiB, got {path.stat().st_size} bytes")
        return loads(path.read_bytes(), path)


def _expect(path: Path, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"{path}: must hold a {kind.__name__}, got {type(value).__name__}")
    return value


def _features(path: Path, value: Any) -> Any:
    matrix = _expect(path, value, scipy.sparse.csr_array)
    if not bool(np.isfinite(matrix.data).all()):
        raise DataError(f"{path}: must be finite, got NaN or infinite entries")
    return matrix


def _labels(path: Path, value: Any) -> np.ndarray[Any, Any]:
    """[n] classes of one-hot rows [n, C]; rows of zeros are unlabelled (-1)."""
    onehot = _expect(path, value, np.ndarray)
    if onehot.ndim != 2 or onehot.size == 0 or onehot.dtype.kind not in "biuf":
        raise DataError(f"{path}: must be one-hot [n, classes], got {onehot.dtype}{onehot.shape}")
    if not (((onehot == 0) | (onehot == 1)).all() and (onehot.sum(axis=1) <= 1).all()):
        raise DataError(f"{path}: every row must hold at most a single 1 and zeros")
    return np.where(onehot.any(axis=1), onehot.argmax(axis=1), -1)


def one_hot_labels(path: Path) -> np.ndarray[Any, Any]:
    """[n] classes in a file of one-hot rows; -1 for a row of zeros."""
    return _labels(path, read_pickle(path))


def _test_nodes(path: Path, count: int, first: int) -> np.ndarray[Any, Any]:
    with blame(path):
        words = path.read_text(encoding="ascii").split()
        bad = [word for word in words if not word.isdecimal() or len(word) > 9]
        if bad:
            raise DataError(f"{path}: must list one node per line, got {bad[0][:40]!r}")
    test = np.array([int(word) for word in words], np.int64)
    if len(test) != count or not count:
        raise DataError(f"{path}: must list {count} nodes, one per row of ty, got {len(test)}")
    # a data set may skip test nodes, but not most of them: refuse ids that would ask for memory
    last = first + 10 * count
    if test.min() < first or test.max() >= last:
        raise DataError(
            f"{path}: nodes must lie in [{first}, {last}), after the rows of allx, got "
            f"{test.min()} to {test.max()}"
        )
    return test


def _check_rows(path: Path, rows: int, expected: int, other: str) -> None:
    if rows != expected:
        raise DataError(f"{path}: must have {expected} rows as {other}, got {rows}")


def _stack(allx: Any, tx: Any, test: np.ndarray[Any, Any], num_nodes: int) -> Any:
    """Rows of allx, then row i of tx at node test[i]; [N, F] float32, canonical CSR."""
    place = scipy.sparse.csr_array(
        (np.ones(len(test)), (test - allx.shape[0], np.arange(len(test)))),
        shape=(num_nodes - allx.shape[0], len(test)),
    )
    features = scipy.sparse.vstack([allx, place @ tx], format="csr").astype(np.float32)
    features.sum_duplicates()
    features.eliminate_zeros()
    return features


def adjacency_of(path: Path, value: Any, num_nodes: int) -> CSRGraph:
    """The symmetric graph of an adjacency dict {node: [neighbour, ...]}."""
    adjacency = _expect(path, value, dict)
    lists = list(adjacency.values())
    if {*map(type, lists)} - {list} or {*map(type, adjacency), *_types(lists)} - {int}:
        raise DataError(f"{path}: must map nodes to lists of nodes, got other types")
    with blame(path):
        try:
            node = np.fromiter(adjacency, np.int64, len(lists))
            neighbour = np.fromiter(itertools.chain.from_iterable(lists), np.int64)
        except OverflowError as error:
            raise DataError(f"{path}: a node must fit 64 bits") from error
        source = node.repeat(np.fromiter(map(len, lists), np.int64, len(lists)))
        return graph_from_edges(source, neighbour, num_nodes, undirected=True, self_loops=False)


def _types(lists: list[list[Any]]) -> set[type]:
    return set(map(type, itertools.chain.from_iterable(lists)))
