"""Data sets with typed nodes and relations: AIFB and ACM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from abkd_fast.data.assemble import graph_from_edges
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.npy import NpzFile, read_npy
from abkd_fast.data.ntriples import read_ntriples
from abkd_fast.data.sources import locate
from abkd_fast.data.splits import masks_from_nodes
from abkd_fast.graph import CSRGraph
from abkd_fast.relational_graph import RelationalGraph


def aifb(
    *, root: str | Path | None = None, split_seed: int = 0, validation: float = 0.2
) -> GraphData:
    """AIFB (arXiv 1703.06103): affiliation of the members of an institute, an RDF graph.

    8,285 entities without features, 45 relations and their reverses; 140 labelled training and
    36 test persons. A share ``validation`` of the training persons, drawn with ``split_seed``,
    is held out for selection.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation must be in (0, 1), got {validation}")
    graph, entities, _ = read_ntriples(locate("aifb", "aifb_stripped.nt.gz", root, None))
    graph = graph.with_reverse()
    node = {text: i for i, text in enumerate(entities)}
    names = ("trainingSet.tsv", "testSet.tsv")
    train, test = (_persons(locate("aifb", name, root, None), node) for name in names)
    groups = {label: i for i, label in enumerate(sorted({*train.values(), *test.values()}))}
    y = torch.full((graph.num_dst,), -1)
    for person, label in {**train, **test}.items():
        y[person] = groups[label]
    generator = torch.Generator().manual_seed(split_seed)
    persons = torch.tensor(sorted(train))[torch.randperm(len(train), generator=generator)]
    held_out = max(1, round(validation * len(train)))
    parts = {"train": persons[held_out:], "val": persons[:held_out], "test": sorted(test)}
    masks = masks_from_nodes(len(y), **parts)
    everything = CSRGraph.from_edge_index(graph.homogeneous()[0], graph.num_dst)
    return GraphData(None, everything, y, *masks, name="aifb", relations=graph)


def acm(*, root: str | Path | None = None, labels_per_class: int = 20) -> GraphData:
    """ACM in HeCo's version (arXiv 2105.09111): papers, authors, subjects; 3 classes of papers.

    ``graph`` joins papers with a common author. Papers and authors have 1,902 features; subjects
    have none. ``labels_per_class`` is 20, 40 or 60 training papers a class.
    """
    if labels_per_class not in (20, 40, 60):
        raise ValueError(f"labels_per_class must be 20, 40 or 60, got {labels_per_class}")

    def path(file: str) -> Path:
        return locate("acm-hetero", file, root, None)

    features = {
        kind: _sparse(path(f"{kind[0]}_feat.npz")).toarray() for kind in ("paper", "author")
    }
    x, author_x = (torch.from_numpy(features[kind]).float() for kind in ("paper", "author"))
    labels = read_npy(path("labels.npy"))
    y = torch.from_numpy(labels.astype(np.int64))
    counts = {"paper": len(x), "author": len(author_x), "subject": 60}
    edges = {
        ("author", "writes", "paper"): _pairs(path("pa.txt")).flip(0),
        ("paper", "is-about", "subject"): _pairs(path("ps.txt")),
    }
    pap = _sparse(path("pap.npz")).tocoo()
    graph = graph_from_edges(pap.col, pap.row, len(x), self_loops=False)
    nodes = {
        split: read_npy(path(f"{split}_{labels_per_class}.npy"))
        for split in ("train", "val", "test")
    }
    with blame(path("pa.txt").parent):
        relations = RelationalGraph.from_relations(counts, edges).with_reverse()
        masks = masks_from_nodes(len(y), **nodes)
        typed: dict[str, Any] = {"relations": relations, "other_x": {"author": author_x}}
        return GraphData(x, graph, y, *masks, name="acm-hetero", **typed)


def _persons(path: Path, node: dict[str, int]) -> dict[int, str]:
    """Node -> label of a table with the columns person and label_affiliation."""
    found: dict[int, str] = {}
    with blame(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        header = lines[0].split("\t") if lines else []
        if not {"person", "label_affiliation"} <= set(header):
            raise DataError(f"{path}: line 1 must name person and label_affiliation, got {header}")
        for number, line in enumerate(lines[1:], start=2):
            cells = line.split("\t")
            if not line.strip():
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: line {number} must have {len(header)} cells, got {len(cells)}"
                )
            row = dict(zip(header, cells, strict=True))
            person = f"<{row['person']}>"
            if person not in node:
                raise DataError(f"{path}: line {number} names {person}, which is in no triple")
            found[node[person]] = row["label_affiliation"]
    return found


def _pairs(path: Path) -> Tensor:
    """[2, E] node numbers, two a line."""
    with blame(path):
        table = np.loadtxt(path, dtype=np.int64, ndmin=2)
        if table.shape[1] != 2:
            raise DataError(f"{path}: every line must hold 2 numbers, got {table.shape[1]}")
        return torch.from_numpy(np.ascontiguousarray(table.T))


def _sparse(path: Path) -> Any:
    """A matrix that scipy.sparse.save_npz wrote, COO or CSR."""
    npz = NpzFile(path)
    if "row" not in npz:
        return npz.read_csr(("data", "indices", "indptr", "shape"))
    data, row, col, shape = (npz.read(name) for name in ("data", "row", "col", "shape"))
    with blame(path):
        return scipy.sparse.coo_array((data, (row, col)), shape=tuple(shape.tolist()))
