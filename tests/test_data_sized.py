from dataclasses import replace

import numpy as np
import pytest
import torch

import abkd_fast as af
from abkd_fast.data import DataError, arxiv_features, load, mag_sized, planted, products_sized
from abkd_fast.data.sized import MAG_EDGES, MAG_NODES


def test_products_sized():
    data = products_sized(scale=0.001)
    assert (data.num_nodes, data.graph.num_edges) == (2449, 2 * 61859)
    assert data.num_features == 100 and data.synthetic and "synthetic" in repr(data)
    dense = data.graph.to_dense()
    assert torch.equal(dense, dense.t()) and dense.max() == 1 and not dense.diagonal().any()
    counts = [int(m.sum()) for m in (data.train_mask, data.val_mask, data.test_mask)]
    assert counts == [196, 39, 2214]
    assert data.y.bincount().min() >= 1
    degree = data.graph.degree_stats()
    assert degree.max > 5 * degree.mean  # hubs
    edge_index = data.edge_index
    same = (data.y[edge_index[0]] == data.y[edge_index[1]]).double().mean()
    share = data.y.bincount().double() / len(data.y)
    assert same > 3 * share.square().sum()  # labels are planted


def test_sized_by_name_and_seed():
    data = load("products-sized", scale=0.001)
    assert data.fingerprint() == products_sized(scale=0.001).fingerprint()
    assert data.fingerprint() != products_sized(scale=0.001, seed=1).fingerprint()


def test_mag_sized():
    data = mag_sized(scale=0.002)
    assert "synthetic" in data.name and data.synthetic
    assert data.num_nodes == {kind: int(count * 0.002) for kind, count in MAG_NODES.items()}
    assert len(data.edge_index) == 7
    for (source, name, target), count in MAG_EDGES.items():
        edges = data.edge_index[source, name, target]
        assert edges.min() >= 0
        assert edges[0].max() < data.num_nodes[source] and edges[1].max() < data.num_nodes[target]
        keys = edges[0].astype(np.int64) * data.num_nodes[target] + edges[1]
        assert len(np.unique(keys)) == len(keys)
        if source == target:
            assert (edges[0] != edges[1]).all()
            back = edges[1].astype(np.int64) * data.num_nodes[target] + edges[0]
            assert np.array_equal(np.sort(keys), np.sort(back))
        else:
            assert edges.shape[1] == int(count * 0.002)
            assert np.array_equal(data.edge_index[target, f"rev_{name}", source], edges[::-1])
    assert data.x["paper"].shape == (1472, 128) and data.y["paper"].shape == (1472, 1)
    parts = data.split["paper"]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1472))
    nodes, relations = data.relations()
    assert list(nodes) == ["paper", "author", "field_of_study", "institution"]
    assert all(np.array_equal(relations[k], e) for k, e in data.edge_index.items())
    again = mag_sized(scale=0.002)
    assert all(np.array_equal(again.edge_index[k], e) for k, e in data.edge_index.items())
    directed = mag_sized(scale=0.002, reverses=False)
    assert {k: e.shape[1] for k, e in directed.edge_index.items()} == {
        key: int(count * 0.002) for key, count in MAG_EDGES.items()
    }


def test_published_mag_counts():
    assert sum(MAG_NODES.values()) == 1_939_743
    assert sum(MAG_EDGES.values()) == 21_111_007


@pytest.mark.parametrize("make", [products_sized, mag_sized])
@pytest.mark.parametrize("scale", [0, 1.1, -1])
def test_scale_is_checked(make, scale):
    with pytest.raises(ValueError, match=r"scale must lie in \(0, 1\]"):
        make(scale=scale)


def test_too_dense_is_refused():
    with pytest.raises(ValueError, match="edges must be at most a quarter"):
        products_sized(scale=1e-6)


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    y = planted.labels(generator, 500, 5)
    keys = planted.distinct_edges(np.random.default_rng(1), y, 800, 0.5)
    assert len(keys) == 800 and (np.diff(keys) > 0).all()
    ends = planted.ends(keys, 500)
    monkeypatch.setattr(planted, "_BLOCK", 64)
    small = planted.ends(keys, 500)
    assert all(np.array_equal(a, b) for a, b in zip(ends, small, strict=True))
    assert (ends[0] < ends[1]).all()


def test_arxiv_features(abkd_data, tmp_path):
    data = arxiv_features(root=abkd_data)
    assert (data.num_nodes, data.graph.num_edges) == (169_343, 2_315_598)
    assert (data.num_features, data.num_classes) == (128, 40)
    counts = [int(m.sum()) for m in (data.train_mask, data.val_mask, data.test_mask)]
    assert counts == [90_941, 29_799, 48_603]
    assert data.synthetic and "synthetic" in data.name
    assert int(data.graph.rowptr.diff().max()) == 13_161
    with pytest.raises(DataError, match="no such folder"):
        arxiv_features(root=tmp_path)


def test_arxiv_needs_a_root(monkeypatch):
    monkeypatch.delenv("ABKD_DATA", raising=False)
    with pytest.raises(DataError, match="files are not downloaded"):
        load("arxiv-features")


def test_typed_data_to_distil_on():
    arrays = mag_sized(scale=0.001)
    data = arrays.graph_data()
    assert data.name == "mag-sized-synthetic" and data.synthetic
    assert data.relations.num_nodes == arrays.relations()[0]
    assert np.array_equal(data.x.numpy(), arrays.x["paper"]) and not data.other_x
    assert data.y.tolist() == arrays.y["paper"][:, 0].tolist()
    for mask, nodes in zip((data.train_mask, data.val_mask, data.test_mask),
                           arrays.split["paper"].values(), strict=True):  # fmt: skip
        assert mask.nonzero().flatten().tolist() == sorted(nodes.tolist())
    cites = arrays.edge_index["paper", "cites", "paper"]
    expected = af.CSRGraph.from_edge_index(torch.from_numpy(cites), data.num_nodes)
    assert data.graph.fingerprint() == expected.fingerprint()
    apart = {key: e for key, e in arrays.edge_index.items() if key[0] != key[2]}
    assert replace(arrays, edge_index=apart).graph_data().graph.num_edges == 0
    with pytest.raises(ValueError, match="y must be .* of one node type, got {}"):
        replace(arrays, y={}).graph_data()
    with pytest.raises(ValueError, match="split must hold 'paper', got none"):
        replace(arrays, split={}).graph_data()
