"""Graph-classification data sets: MUTAG and PROTEINS of the TU collection, OGB's molecules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_level import GraphLevelData, block_diagonal
from abkd_fast.data.ogb import INFO, read_ogb
from abkd_fast.data.sources import local_folder
from abkd_fast.data.splits import masks_from_nodes
from abkd_fast.graph import CSRGraph
from abkd_fast.task import BINARY

FOLDS = 10
# values that a column of OGB's atom features can take (ogb.utils.features.get_atom_feature_dims)
ATOM_VALUES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
_MAX_NODES = 10_000_000


def read_tu(
    name: str,
    folder_name: str,
    file: str,
    *,
    root: str | Path | None = None,
    fold: int = 1,
    split_seed: int = 0,
) -> GraphLevelData:
    """MUTAG or PROTEINS from the text of powerful-gnns and DGCNN, with its ten published folds.

    Features are one-hot node tags. Test graphs are those of the fold; the folds name no validation
    graphs, so every tenth of a fold's training graphs, shuffled with ``split_seed``, is taken.

    Args:
        name: of the data set.
        folder_name: its folder under ``root``.
        file: its text file.
        root: folder of local data sets; default: the environment variable ABKD_DATA.
        fold: 1 to 10.
        split_seed: of the validation graphs.

    Raises:
        ValueError: fold is out of range.
        DataError: names the file and line that is missing or malformed.
    """
    if not 1 <= fold <= FOLDS:
        raise ValueError(f"fold must lie in [1, {FOLDS}], got {fold}")
    folder = local_folder(folder_name, root)
    path = folder / file
    sizes, labels, tags, source, target, degrees = _read_text(path)
    with blame(path):
        count = torch.tensor(sizes)
        edges = torch.tensor(degrees).split(sizes)
        graph = block_diagonal(
            torch.tensor(source), torch.tensor(target), torch.stack([e.sum() for e in edges]), count
        )
        _, kind = np.unique(tags, return_inverse=True)
        _, y = np.unique(labels, return_inverse=True)
        masks = masks_from_nodes(len(sizes), **_fold(folder, fold, split_seed))
        return GraphLevelData(
            x=torch.nn.functional.one_hot(torch.from_numpy(kind)).float(),
            graph=graph,
            y=torch.from_numpy(y),
            train_mask=masks[0],
            val_mask=masks[1],
            test_mask=masks[2],
            name=name,
            graph_ptr=_pointers(count),
        )


def _read_text(path: Path) -> tuple[list[int], ...]:
    """(nodes and label of every graph, tag of every node, sources, targets, degree of every node).

    Line 1: number of graphs. A graph: "nodes label", then a line "tag degree neighbour ..." a node.
    """
    with blame(path):
        lines = path.read_text(encoding="ascii").splitlines()
    parts: tuple[list[int], ...] = tuple([] for _ in range(6))
    sizes, labels, tags, source, target, degrees = parts
    number = 0

    def fields(least: int) -> list[int]:
        nonlocal number
        number += 1
        words = lines[number - 1].split() if number <= len(lines) else []
        if len(words) < least or not all(w.isdecimal() and len(w) < 10 for w in words):
            raise DataError(f"{path}, line {number}: must hold {least} or more whole numbers")
        return list(map(int, words))

    for _ in range(fields(1)[0]):
        count, label = fields(2)[:2]
        if not 0 < count <= _MAX_NODES:
            raise DataError(f"{path}, line {number}: must have a node or more, got {count}")
        sizes.append(count)
        labels.append(label)
        for node in range(count):
            tag, degree, *near = fields(2)
            if len(near) != degree:
                raise DataError(
                    f"{path}, line {number}: must list {degree} neighbours, got {len(near)}"
                )
            tags.append(tag)
            degrees.append(degree)
            source += near
            target += [node] * degree
    return parts


def _fold(folder: Path, fold: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    lists = {}
    for part in ("train", "test"):
        path = folder / "10fold_idx" / f"{part}_idx-{fold}.txt"
        with blame(path):
            words = path.read_text(encoding="ascii").split()
            if not words or not all(word.isdecimal() and len(word) < 10 for word in words):
                raise DataError(f"{path}: must list graphs, one a line")
        lists[part] = np.array([int(word) for word in words], np.int64)
    order = np.random.RandomState(seed).permutation(lists["train"])
    val = order[: max(1, len(order) // 10)]
    return {"train": order[len(val) :], "val": val, "test": lists["test"]}


def read_molecules(
    name: str, *, root: str | Path | None = None, base_url: str | None = None
) -> GraphLevelData:
    """An ``ogbg-mol*`` set with binary tasks, its scaffold split, and one-hot atom features.

    x is sparse [N, 174], nine ones a row, one for each of OGB's atom features; the first linear
    map of a model then is a sum of learned embeddings, as OGB's AtomEncoder. Bond features are left
    out.

    Args:
        name: ``ogbg-molbace``, ``ogbg-molhiv`` and so on.
        root: see :func:`abkd_fast.data.read_ogb`.
        base_url: see there.

    Raises:
        DataError: a file is missing or damaged, or the tasks are not binary.
    """
    arrays = read_ogb(name, root, base_url)
    where = arrays.about["path"]
    if INFO[name].metric == "rmse":
        raise DataError(f"{where}: must have binary tasks, got regression; use read_ogb")
    with blame(where):
        nodes, edges = (torch.tensor(part) for part in (arrays.num_nodes, arrays.num_edges))
        ends = torch.from_numpy(np.array(arrays.edge.T, order="C"))
        both = torch.cat([ends, ends.flip(0)], dim=1)
        order = torch.arange(nodes.numel()).repeat_interleave(edges).repeat(2).argsort(stable=True)
        graph = block_diagonal(both[0, order], both[1, order], 2 * edges, nodes)
        masks = masks_from_nodes(len(nodes), **arrays.split)
        return GraphLevelData(
            x=_one_hot(arrays.node_feat),
            graph=graph,
            y=torch.from_numpy(arrays.label.astype(np.float32)),
            train_mask=masks[0],
            val_mask=masks[1],
            test_mask=masks[2],
            name=name,
            task=BINARY.name,
            graph_ptr=_pointers(nodes),
        )


def _one_hot(features: np.ndarray[Any, Any] | None) -> CSRGraph:
    if features is None or features.ndim != 2 or features.shape[1] != len(ATOM_VALUES):
        raise ValueError(f"node-feat must have {len(ATOM_VALUES)} columns")
    values = torch.tensor(ATOM_VALUES)
    column = torch.from_numpy(features.astype(np.int64))
    if bool(((column < 0) | (column >= values)).any()):
        raise ValueError(f"node-feat must lie below {list(ATOM_VALUES)}")
    col = (column + values.cumsum(0) - values).flatten()
    rowptr = torch.arange(len(features) + 1) * len(ATOM_VALUES)
    return CSRGraph.from_csr(rowptr, col, torch.ones(col.numel()), int(values.sum()))


def _pointers(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
