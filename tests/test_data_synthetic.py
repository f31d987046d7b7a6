import pytest
import torch

from abkd_fast.data import dcsbm, load, rmat


def test_rmat_sizes_and_seeds():
    graph = rmat(8, 4, seed=1)
    assert graph.shape == (256, 256)
    assert graph.num_edges == 1024
    assert rmat(8, 4, seed=1).fingerprint() == graph.fingerprint()
    assert rmat(8, 4, seed=2).fingerprint() != graph.fingerprint()


def test_rmat_quadrants():
    # all mass in one quadrant at every level: every edge is the same self-loop
    stats = rmat(6, 4, a=1.0, b=0.0, c=0.0).degree_stats()
    assert (stats.max, stats.isolated, stats.self_loops) == (256, 63, 256)
    # top right at every level: row 0, last column
    corner = rmat(6, 4, a=0.0, b=1.0, c=0.0)
    assert corner.degree_stats().self_loops == 0
    assert len(corner.col.unique()) == 1


def test_rmat_is_skewed():
    stats = rmat(12, 8).degree_stats()
    assert stats.max > 20 * stats.mean
    uniform = rmat(12, 8, a=0.25, b=0.25, c=0.25).degree_stats()
    assert uniform.max < 5 * uniform.mean


def test_rmat_smallest():
    assert rmat(0, 3).num_edges == 3
    assert rmat(3, 0).num_edges == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scale": 31}, r"scale must lie in \[0, 30\], got 31"),
        ({"scale": -1}, "scale must lie in"),
        ({"scale": 2, "edge_factor": -1}, "edge_factor must be >= 0"),
        ({"scale": 2, "a": 0.9, "b": 0.2}, "a, b, c must be probabilities"),
    ],
)
def test_rmat_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        rmat(**arguments)


def homophily(data):
    source, target = data.edge_index
    return float((data.y[source] == data.y[target]).float().mean())


def test_dcsbm_follows_its_parameters():
    data = dcsbm(4000, 5, mean_degree=10, homophily=0.8, seed=3)
    assert (data.num_nodes, data.num_classes, data.synthetic) == (4000, 5, True)
    assert torch.equal(data.y.bincount(), torch.full((5,), 800))
    stats = data.graph.degree_stats()
    assert 8.5 < stats.mean <= 10
    assert stats.max > 5 * stats.mean
    assert stats.self_loops == 0
    assert 0.75 < homophily(data) < 0.83
    assert 0.05 < homophily(dcsbm(1000, 5, homophily=0.1)) < 0.15
    assert homophily(dcsbm(1000, 5, homophily=0.0)) == 0
    edges = set(map(tuple, data.edge_index.t().tolist()))
    assert {(j, i) for i, j in edges} == edges


def test_dcsbm_features_tell_the_class():
    data = dcsbm(2000, 4, num_features=32, signal=1.0)
    means = torch.stack([data.x[data.train_mask & (data.y == c)].mean(0) for c in range(4)])
    guess = torch.cdist(data.x, means).argmin(1)
    assert float((guess == data.y).float().mean()) > 0.9


def test_dcsbm_seeds():
    first = dcsbm(1000, 4, seed=5)
    assert dcsbm(1000, 4, seed=5).fingerprint() == first.fingerprint()
    assert dcsbm(1000, 4, seed=6).fingerprint() != first.fingerprint()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 1}, "num_classes must lie in"),
        ({"num_nodes": 3, "num_classes": 4}, "num_classes must lie in"),
        ({"homophily": 1.5}, r"homophily must lie in \[0, 1\], got 1.5"),
        ({"exponent": 2.0}, "exponent must be > 2"),
        ({"mean_degree": -1}, "mean_degree must be >= 0"),
        ({"num_nodes": 100}, "every class must have more than"),
    ],
)
def test_dcsbm_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        dcsbm(**arguments)


def test_by_name():
    small = load("synthetic-rmat", scale=10, num_classes=3, num_features=5)
    assert (small.num_nodes, small.num_features, small.num_classes) == (1024, 5, 3)
    assert small.synthetic
    assert load("synthetic-dcsbm", num_nodes=800).synthetic
    assert not load("digits").synthetic
