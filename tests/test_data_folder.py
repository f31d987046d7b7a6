import numpy as np
import pytest
import scipy.sparse
from path_graph import EDGES, SPLIT, X, Y, assert_is_the_path_graph

from abkd_fast.data import DataError, ReadOptions, from_folder, load_path


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
    assert_is_the_path_graph(load_path(write(tmp_path / "mine", drop, **extra), undirected=True))


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
