"""NELL at label rate 0.001, without the labels of its validation nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from abkd_fast.data.assemble import row_normalize
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.npy import NpzFile
from abkd_fast.data.planetoid import adjacency_of, one_hot_labels, read_pickle
from abkd_fast.data.sources import local_folder
from abkd_fast.data.splits import masks_from_nodes
from abkd_fast.graph import CSRGraph

NAME = "nell-val-from-test"
_PREFIX = "ind.nell.0.001"


def read_nell(
    *, root: str | Path | None = None, split_seed: int = 0, normalize: bool = True
) -> GraphData:
    """NELL: 65,755 entities and relations, 61,278 features, 105 training nodes.

    Read from ``ROOT/nell``: the extended features of Kipf & Welling (2017), Planetoid's graph and
    labels. The file with the usual 500 validation labels (``ally``) is not among the copies in
    circulation, so a third of the 969 test nodes, drawn with ``split_seed``, is for validation and
    the rest for testing. The name says so; figures compare with no published one. Classes are
    numbered up to 185, and 105 of them occur.

    Args:
        root: folder of local data sets; default: the environment variable ABKD_DATA.
        split_seed: of the validation nodes.
        normalize: scale every row of features to sum 1.

    Raises:
        DataError: a file is missing, damaged, or at odds with the others.
    """
    folder = local_folder("nell", root)
    path = folder / "nell.0.001.features.npz"
    features = NpzFile(path).read_csr(("data", "indices", "indptr", "shape")).astype(np.float32)
    num_nodes = features.shape[0]
    labels = {part: one_hot_labels(folder / f"{_PREFIX}.{part}") for part in ("y", "ty")}
    index = folder / f"{_PREFIX}.test.index"
    with blame(index):
        words = index.read_text(encoding="ascii").split()
    if len(words) != len(labels["ty"]) or not all(w.isdecimal() and len(w) < 10 for w in words):
        raise DataError(f"{index}: must list {len(labels['ty'])} nodes, one per row of ty")
    test = np.array([int(word) for word in words], np.int64)
    order = np.random.RandomState(split_seed).permutation(test)
    with blame(index):
        nodes = {"train": np.arange(len(labels["y"])), "val": order[: len(order) // 3]}
        masks = masks_from_nodes(num_nodes, **nodes, test=order[len(order) // 3 :])
    y = np.full(num_nodes, -1, np.int64)
    y[: len(labels["y"])], y[test] = labels["y"], labels["ty"]
    graph_path = folder / f"{_PREFIX}.graph"
    graph = adjacency_of(graph_path, read_pickle(graph_path), num_nodes)
    with blame(path):
        x = CSRGraph.from_scipy(features)
        x_scaled = row_normalize(x) if normalize else x
        return GraphData(x_scaled, graph, torch.from_numpy(y), *masks, name=NAME)
