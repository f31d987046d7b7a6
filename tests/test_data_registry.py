import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from abkd_fast import CSRGraph
from abkd_fast.data import DataError, describe, load, names

PLANETOID = {
    # nodes, edges, features, nonzeros, classes, split
    "cora": (2708, 10556, 1433, 49216, 7, (140, 500, 1000)),
    "citeseer": (3327, 9104, 3703, 105165, 6, (120, 500, 1000)),
    "pubmed": (19717, 88648, 500, 988031, 3, (60, 500, 1000)),
}
RANDOM_SPLIT = {
    # nodes, edges (both directions), features, nonzeros, classes
    "amazon-photo": (7650, 238162, 745, 1979909, 8),
    "coauthor-cs": (18333, 163788, 6805, 1092079, 15),
    "cora-ml": (2995, 2 * 8158, 2879, 151171, 7),
}


@functools.cache
def real(root, name):
    """A data set with its default options, read once."""
    return load(name, root=root)


def split_sizes(data):
    return tuple(int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask))


def check_simple_undirected(graph):
    source, target = graph.to_edge_index()[0]
    key, back = target * graph.num_dst + source, source * graph.num_dst + target
    assert torch.equal(key.sort().values, back.sort().values)
    assert len(key.unique()) == len(key)
    assert graph.degree_stats().self_loops == 0
    assert graph.value is None


@pytest.mark.parametrize("name", PLANETOID)
def test_planetoid_numbers(abkd_data, name):
    nodes, edges, features, nonzeros, classes, split = PLANETOID[name]
    data = real(abkd_data, name)
    assert (data.num_nodes, data.graph.num_edges) == (nodes, edges)
    assert (data.num_features, data.x.num_edges, data.num_classes) == (features, nonzeros, classes)
    assert split_sizes(data) == split
    assert data.train_mask[: split[0]].all() and data.val_mask[split[0] : split[0] + 500].all()
    assert data.train_mask.sum() == 20 * classes
    check_simple_undirected(data.graph)
    assert isinstance(data.x, CSRGraph) and data.x.value.dtype == torch.float32
    sums = data.x.to_scipy().sum(axis=1)
    assert np.allclose(sums[sums != 0], 1, atol=1e-5)
    assert not data.synthetic


def test_citeseer_test_nodes_without_rows(abkd_data):
    data = real(abkd_data, "citeseer")
    missing = (data.y < 0).nonzero().flatten()
    assert len(missing) == 15
    assert int(missing.min()) >= 2312
    assert (data.x.rowptr.diff()[missing] == 0).all()
    assert data.graph.rowptr.diff()[missing].tolist() == 8 * [1] + [2] + 6 * [1]
    assert data.graph.degree_stats().isolated == 48


def test_raw_planetoid_features(abkd_data):
    assert load("cora", root=abkd_data, normalize=False).x.value.unique().tolist() == [1]


@pytest.mark.parametrize("name", RANDOM_SPLIT)
def test_npz_numbers(abkd_data, name):
    nodes, edges, features, nonzeros, classes = RANDOM_SPLIT[name]
    data = real(abkd_data, name)
    assert (data.num_nodes, data.graph.num_edges) == (nodes, edges)
    assert (data.num_features, data.x.num_edges, data.num_classes) == (features, nonzeros, classes)
    assert split_sizes(data) == (20 * classes, 30 * classes, nodes - 50 * classes)
    check_simple_undirected(data.graph)
    assert torch.equal(data.train_mask, load(name, root=abkd_data, split_seed=0).train_mask)


def test_split_options(abkd_data):
    base = real(abkd_data, "cora-ml")
    other = load("cora-ml", root=abkd_data, split_seed=1)
    assert not torch.equal(base.train_mask, other.train_mask)
    small = load("cora-ml", root=abkd_data, train_per_class=5, val_per_class=10)
    assert split_sizes(small)[:2] == (35, 70)


def test_feature_scaling_options(abkd_data):
    binary = load("amazon-photo", root=abkd_data, normalize=False)
    assert binary.x.value.unique().tolist() == [1]
    scaled = real(abkd_data, "amazon-photo")
    assert np.allclose(scaled.x.to_scipy().sum(axis=1), 1, atol=1e-4)


def test_minesweeper_numbers(abkd_data):
    data = real(abkd_data, "minesweeper")
    assert (data.num_nodes, data.graph.num_edges, data.num_features) == (10_000, 2 * 39_402, 7)
    assert data.y.bincount().tolist() == [8000, 2000]
    check_simple_undirected(data.graph)
    splits = [load("minesweeper", root=abkd_data, split=split) for split in (0, 4, 9)]
    assert {split_sizes(split) for split in splits} == {(5000, 2500, 2500)}
    assert len({bytes(split.train_mask.numpy()) for split in splits}) == 3
    with pytest.raises(DataError, match=r"split must lie in \[0, 10\), got 10"):
        load("minesweeper", root=abkd_data, split=10)


def test_digits():
    data = load("digits")
    assert (data.num_nodes, data.num_features, data.num_classes) == (1797, 64, 10)
    assert split_sizes(data) == (200, 500, 1097)
    assert torch.equal(data.y[data.train_mask].bincount(), torch.full((10,), 20))
    assert (float(data.x.min()), float(data.x.max())) == (0, 1)
    check_simple_undirected(data.graph)
    assert data.graph.degree_stats().isolated == 0
    source, target = data.edge_index
    assert float((data.y[source] == data.y[target]).float().mean()) > 0.95
    assert data.fingerprint() == load("digits").fingerprint()


def test_digits_neighbours_are_the_nearest():
    data = load("digits", neighbors=3)
    distance = torch.cdist(data.x.double(), data.x.double()).fill_diagonal_(float("inf"))
    nearest = distance.topk(3, largest=False).values[:, -1]
    linked = torch.zeros(1797, 1797, dtype=torch.bool)
    linked[data.edge_index[1], data.edge_index[0]] = True
    closest = distance.argmin(1)
    assert linked[torch.arange(1797), closest].all()
    far = linked & (distance > nearest[:, None] + 1e-9) & (distance > nearest[None, :] + 1e-9)
    assert not far.any()


def test_digits_options():
    assert not torch.equal(load("digits", split_seed=1).train_mask, load("digits").train_mask)
    with pytest.raises(ValueError, match=r"neighbors must lie in \[1, 1797\), got 0"):
        load("digits", neighbors=0)


def test_environment_root(abkd_data, monkeypatch, tmp_path):
    monkeypatch.setenv("ABKD_DATA", str(abkd_data))
    assert load("cora").num_nodes == 2708
    with pytest.raises(DataError, match="no such file"):
        load("cora", root=tmp_path)


def test_unknown_names():
    with pytest.raises(ValueError, match="name must be one of digits, cora.*did you mean 'pubmed'"):
        load("PubMed")
    with pytest.raises(ValueError, match="'zzzz'; For files of your own use load_path"):
        load("zzzz")


def test_unknown_options():
    with pytest.raises(ValueError, match="options of cora must be among base_url, normalize, got"):
        load("cora", split_seed=1)


def test_describe_agrees_with_the_data():
    rows = {row["name"]: row for row in describe()}
    assert list(rows) == names()
    assert names()[0] == "digits"
    for name in ("digits", "synthetic-rmat", "synthetic-dcsbm"):
        assert_describes(rows[name], load(name))


def test_describe_agrees_with_the_files(abkd_data):
    rows = [row for row in describe() if row["source"].startswith("download")]
    assert len(rows) >= 3
    for row in rows:
        assert_describes(row, real(abkd_data, row["name"]))


def assert_describes(row, data):
    assert row["name"] == data.name
    assert row["nodes"] == data.num_nodes
    assert row["edges"] == data.graph.num_edges
    assert row["features"] == data.num_features
    assert row["classes"] == data.num_classes
    if row["split"] == "20/30 per class":
        assert split_sizes(data)[:2] == (20 * data.num_classes, 30 * data.num_classes)
    else:
        assert row["split"] == "/".join(map(str, split_sizes(data)))


def test_import_is_light():
    code = (
        "import sys, abkd_fast, abkd_fast.data\n"
        "heavy = {'sklearn', 'rich', 'requests', 'matplotlib', 'torch_geometric', 'pandas'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
