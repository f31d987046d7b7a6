"""Open Graph Benchmark data sets from OGB's own files, without the ``ogb`` package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abkd_fast.data import ogb_files
from abkd_fast.data.adjacency import Array, adjacency, graph_of, symmetric
from abkd_fast.data.array_cache import ArrayCache, ArrayWriter, cached_arrays
from abkd_fast.data.download import cache_dir, fetch_recorded
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.raw_files import RawFiles
from abkd_fast.data.splits import masks_from_nodes
from abkd_fast.data.typed_arrays import TypedArrays

_ADDRESS = "https://snap.stanford.edu/ogb/data"


@dataclass(frozen=True)
class OgbInfo:
    """What OGB says of a data set beside its files (its ``master.csv``)."""

    archive: str
    split: str
    metric: str
    tasks: int = 1
    inverse: bool = False
    extras: tuple[str, ...] = ()


def _molecules(file: str, metric: str, tasks: int = 1) -> OgbInfo:
    path = f"graphproppred/csv_mol_download/{file}.zip"
    return OgbInfo(path, "scaffold", metric, tasks, inverse=True)


_YEAR = ("node_year",)
INFO: dict[str, OgbInfo] = {
    "ogbn-arxiv": OgbInfo("nodeproppred/arxiv.zip", "time", "acc", extras=_YEAR),
    "ogbn-products": OgbInfo("nodeproppred/products.zip", "sales_ranking", "acc", inverse=True),
    "ogbn-mag": OgbInfo("nodeproppred/mag.zip", "time", "acc", extras=(*_YEAR, "edge_reltype")),
    "ogbg-molbace": _molecules("bace", "rocauc"),
    "ogbg-molbbbp": _molecules("bbbp", "rocauc"),
    "ogbg-molclintox": _molecules("clintox", "rocauc", 2),
    "ogbg-molmuv": _molecules("muv", "ap", 17),
    "ogbg-molpcba": _molecules("pcba", "ap", 128),
    "ogbg-molsider": _molecules("sider", "rocauc", 27),
    "ogbg-moltox21": _molecules("tox21", "rocauc", 12),
    "ogbg-moltoxcast": _molecules("toxcast", "rocauc", 617),
    "ogbg-molhiv": _molecules("hiv", "rocauc"),
    "ogbg-molesol": _molecules("esol", "rmse"),
    "ogbg-molfreesolv": _molecules("freesolv", "rmse"),
    "ogbg-mollipo": _molecules("lipophilicity", "rmse"),
    "ogbg-molchembl": _molecules("chembl", "rocauc", 1310),
}


@dataclass(frozen=True)
class OgbArrays:
    """One graph or many, as OGB's library gives them; arrays are memory-mapped.

    Attributes:
        name: of the data set.
        num_nodes: [G] nodes of every graph; G = 1 for node tasks.
        num_edges: [G] lines of ``edge`` of every graph.
        edge: [E, 2] int64, source and target, numbered within a graph, as stored.
        label: [N, tasks], or [G, tasks] for graph tasks; NaN where a task has no label.
        split: {"train", "val", "test": nodes or graphs}.
        extra: node_feat [N, F], edge_feat [E, D], node_year and so on, those that there are.
        inverse: whether OGB adds the inverse of every edge.
        about: sizes and checksums of the files.
    """

    name: str
    num_nodes: Array
    num_edges: Array
    edge: Array
    label: Array
    split: dict[str, Array]
    extra: dict[str, Array]
    inverse: bool
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def node_feat(self) -> Array | None:
        """[N, F] float32 or int64, None where there are none."""
        return self.extra.get("node_feat")

    @property
    def edge_index(self) -> Array:
        """[2, E], or [2, 2 E] where OGB puts the inverse of every edge behind it."""
        return _edge_index(self.edge, self.inverse)

    def graphs(self) -> Iterator[dict[str, Any]]:
        """Each graph as OGB's dictionary: edge_index, edge_feat, node_feat, num_nodes."""
        node = edge = 0
        times = 2 if self.inverse else 1
        for num_nodes, num_edges in zip(
            self.num_nodes.tolist(), self.num_edges.tolist(), strict=True
        ):
            nodes, edges = slice(node, node + num_nodes), slice(edge, edge + num_edges)
            graph: dict[str, Any] = {"edge_feat": None, "node_feat": None}
            for key, value in self.extra.items():
                of_nodes = key.startswith("node_")
                graph[key] = value[nodes] if of_nodes else np.repeat(value[edges], times, axis=0)
            graph["edge_index"] = _edge_index(self.edge[edges], self.inverse)
            graph["num_nodes"] = num_nodes
            yield graph
            node, edge = nodes.stop, edges.stop


def _edge_index(edge: Array, inverse: bool) -> Array:
    if not inverse:
        return edge.T
    both = np.empty((2, 2 * len(edge)), edge.dtype)
    both[:, 0::2], both[:, 1::2] = edge.T, edge.T[::-1]
    return both


def read_ogb(name: str, root: str | Path | None = None, base_url: str | None = None) -> OgbArrays:
    """Arrays of an ``ogbn-`` or ``ogbg-`` data set with one node type.

    Read from a zip archive or a folder under ``root`` or $ABKD_DATA (``ROOT/ogbn-arxiv``, or
    ``ROOT/ogbn_arxiv`` as the ``ogb`` package names it, or an archive in either), else from OGB's
    archive, downloaded once. The text is parsed once, into the user's cache.

    Args:
        name: one of :data:`INFO`.
        root: folder with local copies.
        base_url: address to download from instead of OGB's.

    Raises:
        ValueError: unknown name.
        DataError: a file is missing, damaged, or at odds with the others.
    """
    info, files, cache = _open(name, root, base_url)
    arrays = cache.arrays
    if "edge" not in arrays:
        raise DataError(f"{files.path}: holds several node types; use read_ogb_typed")
    with blame(files.path):
        edge = arrays["edge"].reshape(-1, 2)
        split = {part: arrays[f"split/{part}"] for part in ogb_files.SPLITS}
        known = ("node_", "edge_")
        extra = {key: value for key, value in arrays.items() if key.startswith(known)}
        counts = arrays["num_nodes"], arrays["num_edges"]
        return OgbArrays(
            name, *counts, edge, arrays["label"], split, extra, info.inverse, cache.about
        )


def read_ogb_typed(
    name: str = "ogbn-mag", root: str | Path | None = None, base_url: str | None = None
) -> TypedArrays:
    """Arrays of a data set with several node types; arguments and errors as :func:`read_ogb`."""
    _, files, cache = _open(name, root, base_url)
    parts = [(key.split("/"), value) for key, value in cache.arrays.items()]
    of: dict[str, dict[str, Array]] = {}
    for (what, *rest), value in parts:
        of.setdefault(what, {})["/".join(rest)] = value
    if "num_nodes" not in of or "" in of["num_nodes"]:
        raise DataError(f"{files.path}: holds one node type; use read_ogb")
    split: dict[str, dict[str, Array]] = {}
    for key, nodes in of["split"].items():
        part, kind = key.split("/", 1)
        split.setdefault(kind, {})[part] = nodes
    extra: dict[tuple[str, Any], Array] = {}
    for what in of.keys() - {"num_nodes", "edge", "node_feat", "label", "split"}:
        for key, value in of[what].items():
            extra[what, _relation(key) if what.startswith("edge_") else key] = value
    return TypedArrays(
        name=name,
        num_nodes={kind: int(count.sum()) for kind, count in sorted(of["num_nodes"].items())},
        edge_index={_relation(k): e.reshape(-1, 2).T for k, e in sorted(of["edge"].items())},
        x=of.get("node_feat", {}),
        y=of["label"],
        split=split,
        extra=extra,
        about=cache.about,
    )


def _relation(key: str) -> tuple[str, str, str]:
    source, name, target = key.split("___")
    return source, name, target


def ogb_graph_data(
    name: str,
    *,
    root: str | Path | None = None,
    base_url: str | None = None,
    undirected: bool = True,
) -> GraphData:
    """A node data set of OGB with its official split; edges are made undirected by default.

    Args:
        name: ``ogbn-arxiv`` or ``ogbn-products``.
        root: see :func:`read_ogb`.
        base_url: see :func:`read_ogb`.
        undirected: add the reverse of every edge and merge duplicates.

    Raises:
        DataError: as :func:`read_ogb`, and where there are no node features.
    """
    arrays = read_ogb(name, root, base_url)
    where = arrays.about["path"]
    if arrays.node_feat is None:
        raise DataError(f"{where}: must hold raw/node-feat.csv.gz, got none; see arxiv-features")
    with blame(where):
        num_nodes = int(arrays.num_nodes.sum())
        source, target = arrays.edge.T
        matrix = adjacency(source, target, num_nodes)
        graph = graph_of(symmetric(matrix) if undirected or arrays.inverse else matrix)
        x = torch.from_numpy(arrays.node_feat.astype(np.float32, copy=False))
        y = torch.from_numpy(arrays.label[:, 0].astype(np.int64))
        return GraphData(x, graph, y, *masks_from_nodes(num_nodes, **arrays.split), name=name)


def _open(
    name: str, root: str | Path | None, base_url: str | None
) -> tuple[OgbInfo, RawFiles, ArrayCache]:
    if name not in INFO:
        raise ValueError(f"name must be one of {', '.join(INFO)}, got {name!r}")
    info = INFO[name]
    files = RawFiles(_place(name, info, root, base_url))

    def build(writer: ArrayWriter) -> dict[str, Any]:
        ogb_files.parse(files, info.split, info.extras, writer)
        return {"path": str(files.path), "files": files.record()}

    folder = cache_dir() / "arrays" / f"{name}-{files.signature()[:16]}"
    return info, files, cached_arrays(folder, build)


def _place(name: str, info: OgbInfo, root: str | Path | None, base_url: str | None) -> Path:
    """The folder or archive to read."""
    file = info.archive.rsplit("/", 1)[1]
    base = root or os.environ.get("ABKD_DATA")
    if not base:
        url = f"{(base_url or _ADDRESS).rstrip('/')}/{info.archive}"
        return fetch_recorded(url, cache_dir() / name / file)
    folders = [Path(base) / name, Path(base) / name.replace("-", "_")]
    places = [folder for folder in folders if (folder / "raw").is_dir()]
    places += [path for path in (*(f / file for f in folders), Path(base) / file) if path.is_file()]
    if not places:
        raise DataError(
            f"{folders[0]}: must hold OGB's {file}, or its folders raw/ and split/; put them "
            f"there, or leave out root (--root) and ABKD_DATA to download {_ADDRESS}/{info.archive}"
        )
    return places[0]
