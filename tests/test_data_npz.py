import numpy as np
import pytest
import scipy.sparse
from path_graph import EDGES, SPLIT, X, Y, assert_is_the_path_graph, edges_of, mask

from abkd_fast import CSRGraph
from abkd_fast.data import DataError, from_npz, load_path

ADJACENCY = np.zeros((4, 4), np.float32)
ADJACENCY[EDGES[:, 1], EDGES[:, 0]] = 1  # row = target
MASKS = {f"{name}_mask": mask(nodes) for name, nodes in SPLIT.items()}
NPZ = {"edge_index": EDGES.T, "x": X, "y": Y} | MASKS


def csr_parts(prefix, matrix, joint="_"):
    matrix = scipy.sparse.csr_matrix(matrix)
    names = ("data", "indices", "indptr", "shape")
    values = (matrix.data, matrix.indices, matrix.indptr, np.array(matrix.shape))
    return {f"{prefix}{joint}{name}": value for name, value in zip(names, values, strict=True)}


def boxed(matrix):
    out = np.empty((), object)
    out[()] = scipy.sparse.csr_matrix(matrix)
    return out


def save(tmp_path, arrays, drop=(), **changes):
    arrays = {k: v for k, v in (arrays | changes).items() if k not in drop}
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(
    "drop, extra",
    [
        ((), {}),
        (("edge_index",), {"edges": EDGES}),
        (("edge_index",), {"edges": EDGES.astype(np.uint8)}),
        (("edge_index",), csr_parts("adj", ADJACENCY)),
        (("edge_index",), csr_parts("adj_matrix", ADJACENCY, ".")),
        (("edge_index",), {"adj_matrix": boxed(ADJACENCY)}),
        (("x",), {"features": X.astype(np.float64)}),
        (("x",), csr_parts("x", X)),
        (("x",), csr_parts("attr", X)),
        (("x",), csr_parts("attr_matrix", X, ".")),
        (("x",), {"node_attr": boxed(X)}),
        (("y",), {"labels": Y.astype(np.int8)}),
        (("y",), {"node_label": Y[:, None]}),
        (tuple(MASKS), {f"{name}_idx": np.array(nodes) for name, nodes in SPLIT.items()}),
        (tuple(MASKS), {f"{name}s": np.stack([m, m]) for name, m in MASKS.items()}),
    ],
)
def test_npz_layouts(tmp_path, drop, extra):
    assert_is_the_path_graph(load_path(save(tmp_path, NPZ, drop, **extra), undirected=True))


def test_npz_sparse_features_stay_sparse(tmp_path):
    data = from_npz(save(tmp_path, NPZ, ("x",), **csr_parts("x", X)))
    assert isinstance(data.x, CSRGraph) and data.x.num_edges == 4


def test_directed_by_default_and_named(tmp_path):
    data = load_path(save(tmp_path, NPZ))
    assert edges_of(data) == set(map(tuple, EDGES.tolist()))
    assert data.name == "mine"
    assert load_path(save(tmp_path, NPZ), name="other").name == "other"


def test_weights(tmp_path):
    file = save(tmp_path, NPZ, edge_weight=np.array([0.5, 2.0, 3.0]))
    assert load_path(file).graph.value.tolist() == [0.5, 2.0, 3.0]
    both = load_path(file, undirected=True)
    assert both.graph.to_dense().tolist() == [
        [0, 0.5, 0, 0],
        [0.5, 0, 2, 0],
        [0, 2, 0, 3],
        [0, 0, 3, 0],
    ]
    unit = save(tmp_path, NPZ, edge_weight=np.ones(3, np.int64))
    assert load_path(unit).graph.value is None


def test_undirected_merges_and_keeps_the_largest_weight(tmp_path):
    pairs = np.array([[0, 1, 0, 2, 2], [1, 0, 1, 2, 3]])
    file = save(tmp_path, NPZ, edge_index=pairs, edge_weight=np.array([1.0, 4, 2, 5, 6]))
    data = load_path(file, undirected=True)
    out = {k: v for k, v in zip(edges_in_order(data), data.graph.value.tolist(), strict=True)}
    assert out == {(1, 0): 4, (0, 1): 4, (2, 2): 5, (3, 2): 6, (2, 3): 6}
    assert edges_of(load_path(file, undirected=True, self_loops=False)) == set(out) - {(2, 2)}
    assert load_path(file).graph.num_edges == 5


def edges_in_order(data):
    return list(map(tuple, data.edge_index.t().tolist()))


def test_options(tmp_path):
    arrays = NPZ | {"y": np.arange(100) % 2, "x": np.ones((100, 4))}
    file = save(tmp_path, arrays, MASKS)
    with pytest.raises(DataError, match=r"mine\.npz: holds no split; .*split_seed=0"):
        load_path(file)
    data = load_path(file, split_seed=1, train_per_class=3, val_per_class=4, normalize=True)
    assert (int(data.train_mask.sum()), int(data.val_mask.sum())) == (6, 8)
    assert data.x.unique().tolist() == [0.25]
    with pytest.raises(ValueError, match="options must be among undirected, .*got seed"):
        load_path(file, seed=1)
    with pytest.raises(DataError, match="more than train_per_class"):
        load_path(file, split_seed=1, train_per_class=40)


@pytest.mark.parametrize(
    "drop, changes, message",
    [
        (["y"], {}, r"must hold labels under exactly one of y, .*got none; the file holds edge_"),
        ([], {"labels": Y}, "labels under exactly one of .*got y, labels"),
        (["x"], {}, "must hold features under exactly one of"),
        (["edge_index"], {}, "must hold edges under exactly one of"),
        ([], {"edge_index": EDGES}, r"\[edge_index\]: must be \[2, E\], got \[3, 2\]"),
        (["edge_index"], {"edges": EDGES.T}, r"\[edges\]: must be \[E, 2\], got \[2, 3\]"),
        ([], {"edge_index": EDGES.T * 9}, r"\[edge_index\]: source must lie in .*got 9 in edge 1"),
        ([], {"edge_index": EDGES.T - 1}, r"\[edge_index\]: source must lie in .*got -1 in edge 0"),
        ([], {"edge_index": EDGES.T + 0.5}, "source must be whole numbers, got 0.5 in edge 0"),
        ([], {"edge_index": EDGES.T * np.nan}, "source must be whole numbers, got nan"),
        ([], {"edge_index": EDGES.T.astype(str)}, "source must be integers, got <U"),
        ([], {"edge_weight": np.ones(2)}, r"\[edge_weight\]: must be numbers \[E=3\]"),
        ([], {"edge_weight": np.array([1, np.inf, 1])}, "weight must be finite, got inf in edge 1"),
        ([], {"x": X[:3]}, r"\[x\]: features must have N=4 rows as the labels, got 3"),
        ([], {"x": X[0]}, r"\[x\]: features must be numbers \[N, F\]"),
        ([], {"x": X * np.nan}, r"\[x\]: features must be finite, got 8 NaN"),
        ([], {"x": np.array(1.0)}, "features must be numbers"),
        ([], {"y": Y + 0.5}, r"\[y\]: labels must be integers \[N\]"),
        ([], {"y": Y * 10}, "labels must be smaller than N=4, got 10"),
        ([], {"y": Y[:0]}, "labels must be integers .*N > 0"),
        ([], {"y": np.array(3)}, "labels must be integers"),
        ([], {"y": np.array([0, -1, 0, 1])}, "y must be >= 0 on val_mask, got -1 at node 1"),
        ([], {"train_mask": mask([0, 1])}, "train_mask and val_mask must not overlap"),
        ([], {"train_mask": mask([])}, "train_mask must select at least one node"),
        ([], {"train_mask": np.array([1, 0, 0, 0])}, r"\[train_mask\]: must be bool \[N=4\]"),
        ([], {"val_mask": mask([1])[:3]}, r"\[val_mask\]: must be bool \[N=4\]"),
        (["val_mask"], {}, r"\[val_mask\]: no such array"),
        ([], {f"{k}_idx": np.array([9]) for k in SPLIT}, r"train must list nodes in \[0, 4\)"),
    ],
)
def test_npz_rejects(tmp_path, drop, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        load_path(save(tmp_path, NPZ, drop, **changes))
    assert "mine.npz" in str(caught.value)


def test_npz_broken_csr(tmp_path):
    parts = csr_parts("x", X)
    parts["x_indices"] = parts["x_indices"] + 7
    with pytest.raises(DataError, match=r"\[x_data\]: indices must lie in \[0, columns=2\)"):
        load_path(save(tmp_path, NPZ, ["x"], **parts))


def test_other_paths(tmp_path):
    with pytest.raises(DataError, match="must be a .npz file or a folder .*got nothing there"):
        load_path(tmp_path / "none")
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(DataError, match="got a .mat file"):
        load_path(tmp_path / "a.mat")
