"""MUTAG, PROTEINS, ogbg-molbace and NELL as their files are."""

import numpy as np
import pytest
import torch

from abkd_fast.data import DataError, describe, load
from abkd_fast.data.planetoid import read_pickle

TU = {
    # graphs, nodes, edges, tags, graphs of each class, test graphs of fold 1
    "mutag": (188, 3371, 2 * 3721, 7, [63, 125], 18),
    "proteins": (1113, 43471, 162088, 3, [663, 450], 111),
}


@pytest.mark.parametrize("name", TU)
def test_tu_numbers(abkd_data, name):
    count, nodes, edges, tags, classes, test = TU[name]
    data = load(name, root=abkd_data)
    assert (data.num_rows, data.num_nodes, data.graph.num_edges) == (count, nodes, edges)
    assert data.num_features == tags and sorted(data.y.bincount().tolist()) == sorted(classes)
    assert (data.x.sum(1) == 1).all()
    assert int(data.test_mask.sum()) == test
    row = next(row for row in describe() if row["name"] == name)
    columns = ("nodes", "edges", "features", "classes")
    assert [row[c] for c in columns] == [nodes, edges, tags, data.num_classes]
    assert (data.train_mask | data.val_mask | data.test_mask).all()
    source, target = data.edge_index
    assert torch.equal((source * nodes + target).sort()[0], (target * nodes + source).sort()[0])
    folds = [load(name, root=abkd_data, fold=fold).test_mask for fold in range(1, 11)]
    # as published: ten test sets of one size without a common graph; the remainder is in none
    times = torch.stack(folds).sum(0)
    assert times.max() == 1 and int(times.sum()) == 10 * test
    for fold in (0, 11):
        with pytest.raises(ValueError, match=r"fold must lie in \[1, 10\]"):
            load(name, root=abkd_data, fold=fold)


def test_molbace_numbers(abkd_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = load("ogbg-molbace", root=abkd_data)
    assert (data.num_rows, data.num_nodes, data.graph.num_edges) == (1513, 51577, 2 * 55768)
    assert data.task == "binary" and data.y.shape == (1513, 1)
    assert data.num_features == 174 and (data.x.rowptr.diff() == 9).all()
    first = data.x.to_dense()[0].nonzero().flatten().tolist()
    offsets = np.cumsum([0, 119, 5, 12, 12, 10, 6, 6, 2])
    assert first == (offsets + [7, 0, 2, 5, 0, 0, 2, 0, 1]).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2 0\n0 1 1\n", "line 4: must hold 2 or more whole numbers"),
        ("1\n2 0\n0 1 1\n0 2 0\n", "line 4: must list 2 neighbours, got 1"),
        ("1\n1 0\n0 1 5\n", "source must be a node of its graph, got 5"),
        ("x\n", "line 1: must hold"),
        ("1\n0 1\n", "line 2: must have a node or more"),
    ],
)
def test_broken_tu_files(tmp_path, text, message):
    (tmp_path / "mutag-tu").mkdir()
    (tmp_path / "mutag-tu" / "MUTAG.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load("mutag", root=tmp_path)


def test_nell_numbers(abkd_data):
    data = load("nell", root=abkd_data, normalize=False)
    row = next(row for row in describe() if row["name"] == "nell")
    assert (row["nodes"], row["classes"]) == (data.num_nodes, data.num_classes)
    assert "validation nodes taken from the test set" in row["summary"]
    assert (data.num_nodes, data.graph.num_edges, data.num_features) == (65755, 251550, 61278)
    counts = [int(m.sum()) for m in (data.train_mask, data.val_mask, data.test_mask)]
    assert counts == [105, 323, 646]
    assert data.name == "nell-val-from-test" and not data.synthetic
    assert data.train_mask[:105].all() and len(data.y[data.train_mask].unique()) == 105
    assert int((data.y >= 0).sum()) == 105 + 969 and data.x.num_edges == 426_664
    tx = read_pickle(abkd_data / "nell" / "ind.nell.0.001.tx")
    index = np.loadtxt(abkd_data / "nell" / "ind.nell.0.001.test.index", dtype=np.int64)
    assert (data.x.to_scipy()[index][:, : tx.shape[1]] != tx).nnz == 0  # rows where they belong
