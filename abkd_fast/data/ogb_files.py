"""OGB's raw layouts (csv.gz and npz, one graph, many, or typed) into cached arrays.

The arrays have the values, shapes and order that the ``ogb`` package gives. (Hu et al., Open Graph
Benchmark, 2020.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from abkd_fast.data.array_cache import ArrayWriter
from abkd_fast.data.errors import DataError
from abkd_fast.data.gz_table import read_table_gz, table_to_npy
from abkd_fast.data.npy import NpzFile
from abkd_fast.data.raw_files import RawFiles

SPLITS = {"train": "train", "val": "valid", "test": "test"}  # ours: OGB's
_JOINT = "___"


def parse(files: RawFiles, split: str, extras: tuple[str, ...], writer: ArrayWriter) -> None:
    """Write all arrays of a data set.

    Keys: ``num_nodes``, ``num_edges`` (one entry a graph), ``edge`` [E, 2], ``node_feat``,
    ``edge_feat``, extras by their name, ``label``, ``split/train`` and so on. Typed graphs have
    ``num_nodes/TYPE``, ``edge/SRC___REL___DST``, ``node_feat/TYPE``, ``label/TYPE``,
    ``split/train/TYPE``.

    Args:
        files: the data set's.
        split: folder under split/.
        extras: files beside the features, ``node_year``.
        writer: takes the arrays.

    Raises:
        DataError: names the file that is missing, damaged or at odds with the others.
    """
    readers: dict[str, Callable[..., None]] = {
        "raw/edge.csv.gz": _graphs,
        "raw/triplet-type-list.csv.gz": _typed,
        "raw/data.npz": _graphs_npz,
        "raw/edge_index_dict.npz": _typed_npz,
    }
    found = [name for name in readers if name in files]
    if len(found) != 1:
        raise DataError(
            f"{files.path}: must hold one of {', '.join(readers)}, got {found or 'none'}"
        )
    readers[found[0]](files, extras, writer)
    _split(files, split, writer)


def _small(files: RawFiles, name: str, writer: ArrayWriter) -> np.ndarray[Any, Any]:
    """A column of a table that fits in memory."""
    path = writer.folder / "column.npy"
    table_to_npy(files, name, path)
    column = np.load(path)
    path.unlink()
    if column.dtype.kind != "i" or column.ndim != 2 or column.shape[1] != 1 or (column < 0).any():
        raise DataError(f"{files.where(name)}: must hold one column of counts or nodes")
    return column[:, 0]


def _graphs(files: RawFiles, extras: tuple[str, ...], writer: ArrayWriter) -> None:
    nodes = _small(files, "raw/num-node-list.csv.gz", writer)
    edges = _small(files, "raw/num-edge-list.csv.gz", writer)
    if len(nodes) != len(edges):
        raise DataError(
            f"{files.where('raw/num-edge-list.csv.gz')}: must count {len(nodes)} graphs as "
            f"num-node-list, got {len(edges)}"
        )
    writer.add("num_nodes", nodes)
    writer.add("num_edges", edges)
    rows = {"node": int(nodes.sum()), "edge": int(edges.sum())}
    table_to_npy(files, "raw/edge.csv.gz", writer.path("edge"), rows=rows["edge"])
    for key, file in _attributes(extras):
        if f"raw/{file}.csv.gz" in files:
            name = f"raw/{file}.csv.gz"
            table_to_npy(files, name, writer.path(key), rows=rows[key.split("_")[0]])
    name = "raw/node-label.csv.gz"
    count: int | None = rows["node"]
    if name not in files:
        name, count = "raw/graph-label.csv.gz", len(nodes)
    table_to_npy(files, name, writer.path("label"), floats=np.float64, rows=count)


def _attributes(extras: tuple[str, ...]) -> list[tuple[str, str]]:
    """(key, file) of all features."""
    named = [("node_feat", "node-feat"), ("edge_feat", "edge-feat")]
    return named + [(extra, extra) for extra in extras]


def _typed(files: RawFiles, extras: tuple[str, ...], writer: ArrayWriter) -> None:
    name = "raw/num-node-dict.csv.gz"
    header, *counts = read_table_gz(files, name)
    if len(counts) != 1 or len(counts[0]) != len(header) or not all(map(str.isdecimal, counts[0])):
        raise DataError(f"{files.where(name)}: must hold types and one line of counts")
    nodes = {kind: int(count) for kind, count in zip(header, counts[0], strict=True)}
    for kind, count in nodes.items():
        writer.add(f"num_nodes/{kind}", np.array([count]))
    name = "raw/triplet-type-list.csv.gz"
    for triplet in read_table_gz(files, name):
        if len(triplet) != 3 or not {triplet[0], triplet[2]} <= set(nodes):
            raise DataError(f"{files.where(name)}: must hold source,relation,target, got {triplet}")
        key = _JOINT.join(triplet)
        folder = f"raw/relations/{key}"
        count = int(_small(files, f"{folder}/num-edge-list.csv.gz", writer).sum())
        table_to_npy(files, f"{folder}/edge.csv.gz", writer.path(f"edge/{key}"), rows=count)
        _typed_attributes(files, folder, key, "edge_", extras, count, writer)
    for kind, count in nodes.items():
        _typed_attributes(files, f"raw/node-feat/{kind}", kind, "node_", extras, count, writer)
    for kind in _marked(files, "raw/nodetype-has-label.csv.gz"):
        name = f"raw/node-label/{kind}/node-label.csv.gz"
        target = writer.path(f"label/{kind}")
        table_to_npy(files, name, target, floats=np.float64, rows=nodes.get(kind))


def _typed_attributes(
    files: RawFiles,
    folder: str,
    of: str,
    prefix: str,
    extras: tuple[str, ...],
    rows: int,
    writer: ArrayWriter,
) -> None:
    for key, file in _attributes(extras):
        name = f"{folder}/{file}.csv.gz"
        if key.startswith(prefix) and name in files:
            table_to_npy(files, name, writer.path(f"{key}/{of}"), rows=rows)


def _marked(files: RawFiles, name: str) -> list[str]:
    """Node types whose column of a two-line table says True."""
    table = read_table_gz(files, name)
    if len(table) != 2 or len(table[0]) != len(table[1]):
        raise DataError(f"{files.where(name)}: must hold types and one line of True and False")
    return [kind for kind, mark in zip(*table, strict=True) if mark == "True"]


def _npz(files: RawFiles, name: str, writer: ArrayWriter) -> NpzFile:
    """An .npz file; one in an archive is copied next to the arrays, to be read at random."""
    if name not in files:
        raise DataError(f"{files.where(name)}: no such file")
    path = files.path / name
    if not path.is_file():
        path = writer.folder / Path(name).name
        files.copy(name, path)
    return NpzFile(path)


def _graphs_npz(files: RawFiles, extras: tuple[str, ...], writer: ArrayWriter) -> None:
    del extras  # the file names its arrays
    npz = _npz(files, "raw/data.npz", writer)
    writer.add("num_nodes", npz.read("num_nodes_list"))
    writer.add("num_edges", npz.read("num_edges_list"))
    writer.add("edge", npz.read("edge_index").T)
    for key in npz.names:
        if key.startswith(("node_", "edge_")) and key != "edge_index":
            writer.add(key, npz.read(key))
    of = "node" if "raw/node-label.npz" in files else "graph"
    writer.add("label", _npz(files, f"raw/{of}-label.npz", writer).read(f"{of}_label"))


def _typed_npz(files: RawFiles, extras: tuple[str, ...], writer: ArrayWriter) -> None:
    del extras
    nodes = _npz(files, "raw/num_nodes_dict.npz", writer)
    for kind in nodes.names:
        writer.add(f"num_nodes/{kind}", nodes.read(kind))
    edges = _npz(files, "raw/edge_index_dict.npz", writer)
    for triplet in edges.names:
        writer.add(f"edge/{triplet}", edges.read(triplet).T)
    labels = _npz(files, "raw/node-label.npz", writer)
    for kind in labels.names:
        writer.add(f"label/{kind}", labels.read(kind))
    known = ("num_nodes_dict", "num_edges_dict", "edge_index_dict", "node-label")
    for name in files.names():
        stem = Path(name).stem
        if name.startswith("raw/") and name.endswith(".npz") and stem not in known:
            npz = _npz(files, name, writer)
            for of in npz.names:
                writer.add(f"{stem.removesuffix('_dict')}/{of}", npz.read(of))


def _split(files: RawFiles, split: str, writer: ArrayWriter) -> None:
    folder = f"split/{split}"
    typed = f"{folder}/nodetype-has-split.csv.gz"
    kinds = [f"{kind}/" for kind in _marked(files, typed)] if typed in files else [""]
    for kind in kinds:
        for ours, theirs in SPLITS.items():
            name = f"{folder}/{kind}{theirs}.csv.gz"
            if name not in files:
                other = sorted({file.split("/")[1] for file in files.names() if "split/" in file})
                raise DataError(
                    f"{files.where(name)}: no such file; splits found: {', '.join(other) or 'none'}"
                )
            writer.add(f"split/{ours}/{kind}".rstrip("/"), _small(files, name, writer))
