"""GraphData from one .npz file: our own keys and the layouts of published collections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from abkd_fast.data.assemble import Parts, ReadOptions, assemble
from abkd_fast.data.errors import DataError
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.npy import NpzFile
from abkd_fast.data.splits import Masks, masks_from_nodes

# Names of one thing in different collections, ours first.
_DENSE_X = ("x", "features", "node_features")
_SPARSE_X = ("x", "features", "attr", "attr_matrix")  # prefix of .data, _data, ...
_OBJECT_X = ("node_attr", "attr_matrix")
_ADJACENCY = ("adj", "adj_matrix")
_LABELS = ("y", "labels", "node_label", "node_labels")
_CSR = ("data", "indices", "indptr", "shape")
_SPLITS = ("train", "val", "test")


def from_npz(path: str | Path, options: ReadOptions | None = None) -> GraphData:
    """Read a graph from a .npz file; docs/data.md lists the arrays it may hold.

    Args:
        path: the file.
        options: see :class:`ReadOptions`.

    Raises:
        DataError: names the file, the array, the expectation and the value found.
    """
    options = options or ReadOptions()
    npz = NpzFile(Path(path))
    labels = _one(npz, "labels", _LABELS)
    x_name, x = _x(npz)
    edges_name, source, target, weight = _edges(npz)
    names = {"labels": labels, "features": x_name, "edges": edges_name}
    where = {part: f"{npz.path} [{name}]" for part, name in names.items()}
    parts = Parts(source, target, weight, x, npz.read(labels), where)
    return assemble(npz.path, parts, lambda count: _masks(npz, count, options.split), options)


def _one(npz: NpzFile, what: str, names: tuple[str, ...]) -> str:
    """The single one of ``names`` that the file holds."""
    found = [name for name in names if name in npz]
    if len(found) != 1:
        raise DataError(
            f"{npz.path}: must hold {what} under exactly one of {', '.join(names)}, got "
            f"{', '.join(found) or 'none'}; the file holds {', '.join(npz.names)}"
        )
    return found[0]


def _csr_parts(npz: NpzFile, prefixes: tuple[str, ...]) -> tuple[str, str, str, str] | None:
    for prefix in prefixes:
        for joint in ("_", "."):
            data, indices, indptr, shape = (f"{prefix}{joint}{part}" for part in _CSR)
            if indptr in npz:
                return data, indices, indptr, shape
    return None


def _csr_object(npz: NpzFile, name: str) -> Any:
    value = npz.read(name, objects=True)
    if not isinstance(value, scipy.sparse.csr_array):
        raise DataError(f"{npz.path} [{name}]: must hold a CSR matrix, got {type(value).__name__}")
    return value


def _x(npz: NpzFile) -> tuple[str, Any]:
    """(name of the array, features)."""
    parts = _csr_parts(npz, _SPARSE_X)
    if parts:
        return parts[0], npz.read_csr(parts)
    found = [name for name in _OBJECT_X if name in npz]
    if found:
        return found[0], _csr_object(npz, found[0])
    name = _one(npz, "features", _DENSE_X)
    return name, npz.read(name)


def _edges(npz: NpzFile) -> tuple[str, Any, Any, Any]:
    """(name of the array, source, target, weight or None); row of an adjacency = target."""
    parts = _csr_parts(npz, _ADJACENCY)
    objects = [name for name in _ADJACENCY if name in npz]
    if parts or objects:
        name = parts[0] if parts else objects[0]
        coo = (npz.read_csr(parts) if parts else _csr_object(npz, name)).tocoo()
        return name, coo.col, coo.row, coo.data
    name = _one(npz, "edges", ("edge_index", "edges"))
    pairs = npz.read(name)
    if pairs.ndim != 2 or pairs.shape[0 if name == "edge_index" else 1] != 2:
        form = "[2, E]" if name == "edge_index" else "[E, 2]"
        raise DataError(f"{npz.path} [{name}]: must be {form}, got {list(pairs.shape)}")
    pairs = pairs if name == "edge_index" else pairs.T
    weight = npz.read("edge_weight") if "edge_weight" in npz else None
    if weight is not None and (weight.shape != pairs[0].shape or weight.dtype.kind not in "biuf"):
        raise DataError(
            f"{npz.path} [edge_weight]: must be numbers [E={pairs.shape[1]}], got "
            f"{weight.dtype}{list(weight.shape)}"
        )
    return name, pairs[0], pairs[1], weight


def _masks(npz: NpzFile, num_nodes: int, split: int) -> Masks | None:
    if "train_idx" in npz:
        nodes = {name: npz.read(f"{name}_idx") for name in _SPLITS}
        return masks_from_nodes(num_nodes, **nodes)
    key = next((key for key in ("mask", "masks") if f"train_{key}" in npz), None)
    if key is None:
        return None
    masks = [_mask(npz, f"{name}_{key}", num_nodes, split) for name in _SPLITS]
    return masks[0], masks[1], masks[2]


def _mask(npz: NpzFile, name: str, num_nodes: int, split: int) -> torch.Tensor:
    """[N] bool, row ``split`` where the array is [number of splits, N]."""
    mask = npz.read(name)
    if mask.ndim == 2:
        if not 0 <= split < len(mask):
            raise DataError(f"{npz.path} [{name}]: split must lie in [0, {len(mask)}), got {split}")
        mask = mask[split]
    if mask.dtype != bool or mask.shape != (num_nodes,):
        raise DataError(
            f"{npz.path} [{name}]: must be bool [N={num_nodes}], got {mask.dtype}{list(mask.shape)}"
        )
    return torch.from_numpy(np.ascontiguousarray(mask))
