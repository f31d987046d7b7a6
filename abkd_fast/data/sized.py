"""Synthetic stand-ins of published sizes: products-sized, mag-sized, and features for arxiv.

Their sizes are those published for OGB's data sets (Hu et al. 2020); all else is drawn: labels are
planted, degrees follow power laws, edges and features depend on the labels. ``synthetic`` is part
of their names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abkd_fast.data import planted
from abkd_fast.data.adjacency import adjacency, graph_of, symmetric
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.gz_table import table_to_npy
from abkd_fast.data.npy import NpzFile
from abkd_fast.data.raw_files import RawFiles
from abkd_fast.data.sources import local_folder
from abkd_fast.data.splits import Masks, masks_from_nodes
from abkd_fast.data.typed_arrays import TypedArrays

PRODUCTS_NODES, PRODUCTS_EDGES, PRODUCTS_CLASSES = 2_449_029, 61_859_140, 47
PRODUCTS_SPLIT = (196_615, 39_323)
MAG_NODES = {"author": 1_134_649, "field_of_study": 59_965, "institution": 8_740, "paper": 736_389}
MAG_EDGES = {
    ("author", "affiliated_with", "institution"): 1_043_998,
    ("author", "writes", "paper"): 7_145_660,
    ("paper", "cites", "paper"): 5_416_271,
    ("paper", "has_topic", "field_of_study"): 7_505_078,
}
MAG_CLASSES, MAG_SPLIT = 349, (629_571, 64_879)
_HOMOPHILY, _SIGNAL = 0.6, 0.5


def products_sized(*, scale: float = 1.0, num_features: int = 100, seed: int = 0) -> GraphData:
    """Synthetic graph with OGBN-Products' counts.

    2,449,029 nodes, 61,859,140 undirected edges without loops or repeats (123,718,280 stored),
    47 planted classes of unequal size, 100 features x = 0.5 * mean of the class + noise. The split
    has the published sizes and is random. Peak memory about 2 GB at full size.

    Args:
        scale: nodes and edges are this share of the published ones, in (0, 1].
        num_features: F.
        seed: equal seeds give equal data.

    Raises:
        ValueError: scale is out of range, or leaves too few nodes for the edges or the classes.
    """
    nodes, edges, train, val = _scaled(scale, PRODUCTS_NODES, PRODUCTS_EDGES, *PRODUCTS_SPLIT)
    classes = min(PRODUCTS_CLASSES, max(2, nodes // 50))
    generator = np.random.default_rng([seed, 1])
    y = planted.labels(generator, nodes, classes)
    keys = planted.distinct_edges(generator, y, edges, _HOMOPHILY)
    low, high = planted.ends(keys, nodes)
    del keys
    matrix = adjacency(low, high, nodes)
    del low, high
    graph = graph_of(symmetric(matrix))
    del matrix
    x = planted.features(generator, y, classes, num_features, _SIGNAL)
    return GraphData(
        torch.from_numpy(x),
        graph,
        torch.from_numpy(y),
        *_masks(generator, nodes, train, val),
        name="products-sized-synthetic",
        synthetic=True,
    )


def mag_sized(
    *, scale: float = 1.0, num_features: int = 128, seed: int = 0, reverses: bool = True
) -> TypedArrays:
    """Synthetic typed graph with OGBN-Mag's counts.

    1,939,743 nodes of 4 types and 21,111,007 edges of 4 relations; with ``reverses`` the 7
    relations of OGB's example (``cites`` symmetric). Papers have 128 features and one of 349
    planted classes; every other node prefers one class, and edges prefer nodes of a class. Degrees
    follow power laws. Edges of a relation are distinct. The split has the published sizes.

    Args:
        scale: nodes and edges are this share of the published ones, in (0, 1].
        num_features: F of the papers; other types have no features.
        seed: equal seeds give equal data.
        reverses: add reverse relations.

    Raises:
        ValueError: scale is out of range, or leaves too few nodes for the edges or the classes.
    """
    sizes = _scaled(scale, *MAG_NODES.values(), *MAG_EDGES.values(), *MAG_SPLIT)
    nodes = dict(zip(MAG_NODES, sizes, strict=False))
    edges = dict(zip(MAG_EDGES, sizes[len(nodes) :], strict=False))
    train, val = sizes[-2:]
    classes = min(MAG_CLASSES, max(2, nodes["paper"] // 50))
    generator = np.random.default_rng([seed, 2])
    prefers = {kind: planted.labels(generator, count, classes) for kind, count in nodes.items()}
    edge_index = {}
    for (source, name, target), count in edges.items():
        keys = planted.distinct_pairs(
            generator, prefers[source], prefers[target], count, _HOMOPHILY, loops=source != target
        )
        edge_index[source, name, target] = np.stack(planted.ends(keys, nodes[target]))
    masks = _masks(generator, nodes["paper"], train, val)
    parts = [mask.numpy().nonzero()[0] for mask in masks]
    papers = prefers["paper"]
    data = TypedArrays(
        name="mag-sized-synthetic",
        num_nodes=nodes,
        edge_index=edge_index,
        x={"paper": planted.features(generator, papers, classes, num_features, _SIGNAL)},
        y={"paper": papers[:, None]},
        split={"paper": dict(zip(("train", "val", "test"), parts, strict=True))},
        synthetic=True,
    )
    return data.with_reverses() if reverses else data


def arxiv_features(
    *,
    root: str | Path | None = None,
    num_features: int = 128,
    signal: float = 0.15,
    undirected: bool = True,
    seed: int = 0,
) -> GraphData:
    """OGBN-Arxiv's real graph, labels and time split with synthetic features.

    Read from ``ROOT/ogbn-arxiv``: adj_full.npz (CSR, row cites column), raw/node-label.csv.gz and
    raw/node_year.csv.gz (train up to 2017, validation 2018, test from 2019, the official split).
    Features are x = signal * mean of the class + noise, both standard normal.

    Args:
        root: folder of local data sets; default: the environment variable ABKD_DATA.
        num_features: F.
        signal: size of the class means against the noise.
        undirected: add the reverse of every citation (2,315,598 edges).
        seed: of the features.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = local_folder("ogbn-arxiv", root)
    files = RawFiles(folder)
    path = folder / "adj_full.npz"
    # row cites column: an edge from row to column, and rows of ours are targets
    matrix = NpzFile(path).read_csr(("data", "indices", "indptr", "shape")).astype(bool).T.tocsr()
    matrix.sort_indices()
    y, year = (_column(files, f"raw/{name}.csv.gz") for name in ("node-label", "node_year"))
    with blame(path):
        generator = np.random.default_rng([seed, 3])
        x = planted.features(generator, y, int(y.max()) + 1, num_features, signal)
        return GraphData(
            torch.from_numpy(x),
            graph_of(symmetric(matrix) if undirected else matrix),
            torch.from_numpy(y),
            torch.from_numpy(year <= 2017),
            torch.from_numpy(year == 2018),
            torch.from_numpy(year >= 2019),
            name="arxiv-features-synthetic",
            synthetic=True,
        )


def _column(files: RawFiles, name: str) -> np.ndarray[Any, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "column.npy"
        table_to_npy(files, name, path)
        table = np.load(path)
    if table.dtype.kind != "i" or table.ndim != 2 or table.shape[1] != 1 or not len(table):
        raise DataError(f"{files.where(name)}: must hold one column of integers")
    return table[:, 0]


def _scaled(scale: float, *counts: int) -> list[int]:
    if not 0 < scale <= 1:
        raise ValueError(f"scale must lie in (0, 1], got {scale}; 1 is the published size")
    return [max(1, math.floor(count * scale)) for count in counts]


def _masks(generator: np.random.Generator, nodes: int, train: int, val: int) -> Masks:
    order = generator.permutation(nodes)
    return masks_from_nodes(
        nodes, train=order[:train], val=order[train : train + val], test=order[train + val :]
    )
