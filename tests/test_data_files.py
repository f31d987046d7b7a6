import numpy as np
import pytest
import scipy.sparse
import torch

from abkd_fast import CSRGraph
from abkd_fast.data import DataError, ReadOptions, from_folder, from_npz, load_path

# Four nodes in a row, each edge stored once.
EDGES = np.array([[0, 1], [1, 2], [2, 3]])
X = np.array([[1.0, 0.0], [0, 2], [3, 1], [0, 0]], np.float32)
Y = np.array([0, 1, 0, 1])
SPLIT = {"train": [0], "val": [1], "test": [2, 3]}
BOTH = {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}


def mask(nodes):
    out = np.zeros(4, bool)
    out[nodes] = True
    return out


def csr_parts(prefix, matrix, joint="_"):
    matrix = scipy.sparse.csr_matrix(matrix)
    names = ("data", "indices", "indptr", "shape")
    values = (matrix.data, matrix.indices, matrix.indptr, np.array(matrix.shape))
    return {f"{prefix}{joint}{name}": value for name, value in zip(names, values, strict=True)}


def boxed(matrix):
    out = np.empty((), object)
    out[()] = scipy.sparse.csr_matrix(matrix)
    return out


ADJACENCY = np.zeros((4, 4), np.float32)
ADJACENCY[EDGES[:, 1], EDGES[:, 0]] = 1  # row = target
MASKS = {f"{name}_mask": mask(nodes) for name, nodes in SPLIT.items()}
NPZ = {"edge_index": EDGES.T, "x": X, "y": Y} | MASKS


def edges_of(data):
    return set(map(tuple, data.edge_index.t().tolist()))


def save(tmp_path, arrays, drop=(), **changes):
    arrays = {k: v for k, v in (arrays | changes).items() if k not in drop}
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


def check(data):
    assert edges_of(data) == BOTH
    assert torch.equal(data.dense_x, torch.from_numpy(X))
    assert data.y.tolist() == Y.tolist()
    for name, nodes in SPLIT.items():
        assert getattr(data, f"{name}_mask").nonzero().flatten().tolist() == nodes


# -- npz -----------------------------------------------------------------------------------


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
    check(load_path(save(tmp_path, NPZ, drop, **extra), undirected=True))


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


# -- folders -------------------------------------------------------------------------------


def text(table, separator=",", header=""):
    return header + "".join(separator.join(map(str, row)) + "\n" for row in table)


FOLDER = {
    "edges.csv": text(EDGES, header="source,target\n"),
    "features.csv": text(X),
    "labels.csv": "label\n" + text(Y[:, None]),
    "split.csv": "split\ntrain\nval\ntest\ntest\n",
}
INDICES = {f"{name}.txt": text(np.array(nodes)[:, None]) for name, nodes in SPLIT.items()}


def write(folder, drop=(), **changes):
    folder.mkdir(exist_ok=True)
    for name, content in ({k: v for k, v in FOLDER.items() if k not in drop} | changes).items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        elif isinstance(content, np.ndarray):
            np.save(folder / name, content)
        else:
            scipy.sparse.save_npz(folder / name, content)
    return folder


@pytest.mark.parametrize(
    "drop, extra",
    [
        ([], {}),
        (["edges.csv"], {"edges.tsv": text(EDGES, "\t")}),
        (["edges.csv"], {"edges.txt": "# made by hand\n\n" + text(EDGES, "  ")}),
        (["edges.csv"], {"edges.npy": EDGES}),
        (["features.csv"], {"features.npy": X}),
        (["features.csv"], {"features.npz": scipy.sparse.csr_matrix(X)}),
        (["features.csv"], {"features.npz": scipy.sparse.csr_array(X)}),
        (["labels.csv"], {"labels.npy": Y}),
        (["split.csv"], INDICES),
        (["split.csv"], {f"{name}.npy": np.array(nodes) for name, nodes in SPLIT.items()}),
    ],
)
def test_folder_layouts(tmp_path, drop, extra):
    check(load_path(write(tmp_path / "mine", drop, **extra), undirected=True))


def test_folder_details(tmp_path):
    folder = write(tmp_path / "mine", **{"edges.csv": "0,1,0.5\n2,3,2\n"})
    data = from_folder(folder, ReadOptions(name="a"))
    assert data.graph.value.tolist() == [0.5, 2]
    assert data.name == "a" and load_path(folder).name == "mine"
    write(folder, **{"split.csv": "train\nval\ntest\nnone\n"})
    assert load_path(folder).test_mask.tolist() == [False, False, True, False]
    write(folder, **{"edges.csv": "source,target\n"})
    assert load_path(folder).graph.num_edges == 0


@pytest.mark.parametrize(
    "drop, changes, message",
    [
        (["edges.csv"], {}, "must hold one of edges.csv, edges.tsv, .*got features.csv"),
        ([], {"edges.npy": EDGES}, "must hold one file of edges, got edges.csv, edges.npy"),
        ([], {"edges.csv": "0,1\n1,x\n"}, r"edges\.csv, line 2: must hold numbers, got 'x'"),
        ([], {"edges.csv": "s,t\n0,1\n\n1\n"}, r"edges\.csv, line 4: must have 2 columns, got 1"),
        ([], {"edges.csv": "0\n1\n"}, r"edges\.csv: must have columns source, target"),
        ([], {"edges.csv": "0,1.5\n"}, r"edges\.csv: must hold whole numbers, got 1.5 in row 0"),
        ([], {"edges.csv": "0,1\n0,4\n"}, r"edges\.csv: target must lie in .*got 4 in edge 1"),
        ([], {"edges.csv": "0,nan\n"}, r"edges\.csv: must hold whole numbers, got nan"),
        ([], {"edges.csv": "0,1e300\n"}, r"edges\.csv: must hold whole numbers, got 1e\+300"),
        ([], {"edges.csv": "0,l\n"}, r"edges\.csv, line 1: must hold numbers, got 'l'"),
        ([], {"features.csv": "1,2\n3,4\n"}, r"features\.csv: features must have N=4 rows"),
        ([], {"features.csv": text(X) + "inf,1\n"}, r"features\.csv"),
        (["features.csv"], {"features.npz": scipy.sparse.coo_matrix(X)}, "must be csr"),
        ([], {"labels.csv": "0,1\n1,0\n"}, r"labels\.csv: must have one column, got 2"),
        ([], {"labels.csv": "0\n1\n0.5\n1\n"}, r"labels\.csv: must hold whole numbers, got 0.5"),
        ([], {"labels.csv": ""}, r"labels\.csv: labels must be integers"),
        ([], {"split.csv": "train\ntrian\n"}, r"split\.csv, line 2: must be train, val, test or"),
        ([], {"split.csv": "train\nval\ntest\n"}, r"split\.csv: must have one line per node, N=4"),
        (["split.csv"], {}, r"mine: holds no split"),
        (["split.csv"], {"train.txt": "0\n"}, r"mine: must hold train, val and test, got no val"),
        (["split.csv"], INDICES | {"val.txt": "8\n"}, r"mine: val must list nodes in \[0, 4\)"),
    ],
)
def test_folder_rejects(tmp_path, drop, changes, message):
    with pytest.raises(DataError, match=message):
        load_path(write(tmp_path / "mine", drop, **changes))


@pytest.mark.parametrize("name", FOLDER)
def test_text_that_is_binary(tmp_path, name):
    folder = write(tmp_path / "mine")
    (folder / name).write_bytes(b"\xff\xfe\x00\x80" * 40)
    with pytest.raises(DataError, match=name):
        load_path(folder)


def test_truncated_binary_files(tmp_path):
    for name, content in {"edges.npy": EDGES, "features.npy": X, "labels.npy": Y}.items():
        stem = name.removesuffix(".npy")
        folder = write(tmp_path / stem, [f"{stem}.csv"], **{name: content})
        whole = (folder / name).read_bytes()
        for cut in range(0, len(whole), 9):
            (folder / name).write_bytes(whole[:cut])
            with pytest.raises(DataError, match=name):
                load_path(folder)


def test_many_edges(tmp_path):
    generator = np.random.RandomState(0)
    edges = generator.randint(0, 10_000, (200_000, 2))
    folder = tmp_path / "mine"
    write(
        folder,
        **{
            "edges.csv": "\n".join(f"{s},{t}" for s, t in edges.tolist()),
            "features.npy": np.ones((10_000, 4), np.float32),
            "labels.npy": np.arange(10_000) % 5,
        },
        drop=["features.csv", "labels.csv", "split.csv"],
    )
    graph = load_path(folder, undirected=True, split_seed=0).graph
    directed = load_path(folder, split_seed=0).graph
    assert directed.num_edges == 200_000
    expected = scipy.sparse.coo_array((np.ones(200_000), edges.T), shape=(10_000, 10_000))
    assert graph.num_edges == (expected.tocsr() + expected.T.tocsr()).nnz
