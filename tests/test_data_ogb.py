"""OGB's files read without the ``ogb`` package; test_data_ogb_parity.py compares with it."""

import gzip
import zipfile

import numpy as np
import ogb_layout
import pytest
import torch

from abkd_fast.data import DataError, load, read_ogb, read_ogb_typed
from abkd_fast.data.array_cache import cached_arrays
from abkd_fast.data.gz_table import table_to_npy
from abkd_fast.data.raw_files import RawFiles


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def arxiv(tmp_path):
    return ogb_layout.one_graph(tmp_path / "ogbn-arxiv")


def table(tmp_path, text, **options):
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw" / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    table_to_npy(RawFiles(tmp_path), "raw/a.csv.gz", tmp_path / "a.npy", **options)
    return np.load(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("text", "values", "dtype"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]], "int64"),
        ("1,2\n3,4", [[1, 2], [3, 4]], "int64"),
        ("1,2\n3,4.5\n", [[1, 2], [3, 4.5]], "float32"),
        (",,\n,2,\n", [[np.nan] * 3, [np.nan, 2, np.nan]], "float32"),
        ("1e3\n-2\n", [[1000], [-2]], "float32"),
        ("9007199254740993\n", [[9007199254740993]], "int64"),
    ],
)
def test_tables(tmp_path, text, values, dtype):
    found = table(tmp_path, text)
    assert found.dtype == dtype
    assert np.array_equal(found, np.array(values, dtype), equal_nan=True)


def test_tables_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("abkd_fast.data.gz_table._BLOCK", 64)
    values = np.random.randint(0, 1000, (300, 3))
    text = "\n".join(",".join(map(str, row)) for row in values) + "\n"
    assert np.array_equal(table(tmp_path, text), values)
    mixed = table(tmp_path, text + "1,2,0.5\n")  # the last row makes all of it floats
    assert np.array_equal(mixed, np.array([*values.tolist(), [1, 2, 0.5]], np.float32))
    with pytest.raises(DataError, match="columns"):
        table(tmp_path, text + "\n".join(["1,2"] * 60))
    with pytest.raises(DataError, match="line.*more than 64 bytes"):
        table(tmp_path, "1" * 200)


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ("1,2\nx,4\n", None, "could not convert"),
        ("1,2\n3\n", None, "after row 0"),
        ("1\n2\n", 3, "must have 3 rows, got 2"),
        ("1\n2\n", 1, "must have 1 rows, got 2"),
    ],
)
def test_bad_tables(tmp_path, text, rows, message):
    with pytest.raises(DataError, match=rf"a\.csv\.gz.*{message}"):
        table(tmp_path, text, rows=rows)


def test_truncated_and_exploding_tables(tmp_path, monkeypatch):
    content = gzip.compress(b"1,2\n" * 10_000)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.csv.gz").write_bytes(content[:-20])
    with pytest.raises(DataError, match="truncated or damaged"):
        table_to_npy(RawFiles(tmp_path), "raw/a.csv.gz", tmp_path / "a.npy")
    monkeypatch.setattr("abkd_fast.data.gz_table.MAX_INFLATED", 1000)
    (tmp_path / "raw" / "a.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match="decompression bomb"):
        table_to_npy(RawFiles(tmp_path), "raw/a.csv.gz", tmp_path / "a.npy")


def test_graph_data(arxiv):
    data = load("ogbn-arxiv", root=arxiv.parent)
    arrays = read_ogb("ogbn-arxiv", arxiv.parent)
    dense = np.zeros((30, 30), bool)
    dense[arrays.edge[:, 1], arrays.edge[:, 0]] = True
    assert torch.equal(data.graph.to_dense().bool(), torch.from_numpy(dense | dense.T))
    directed = load("ogbn-arxiv", root=arxiv.parent, undirected=False)
    assert torch.equal(directed.graph.to_dense().bool(), torch.from_numpy(dense))
    assert (
        np.array_equal(data.x, arrays.node_feat) and data.y.tolist() == arrays.label[:, 0].tolist()
    )
    assert data.train_mask.nonzero().flatten().tolist() == sorted(arrays.split["train"])
    assert data.name == "ogbn-arxiv" and not data.synthetic


def test_arrays_are_parsed_once_and_mapped(arxiv, cache, monkeypatch):
    raw = arxiv / "raw"
    ogb_layout.write_csv(raw / "node-feat.csv.gz", np.random.randn(30, 50))
    first = read_ogb("ogbn-arxiv", arxiv.parent)
    monkeypatch.setattr("abkd_fast.data.ogb_files.parse", None)  # a second parse would fail
    again = read_ogb("ogbn-arxiv", arxiv.parent)
    assert isinstance(again.node_feat, np.memmap)
    assert np.array_equal(first.node_feat, again.node_feat)
    facts = again.about["files"]["raw/edge.csv.gz"]
    assert facts["bytes"] == (raw / "edge.csv.gz").stat().st_size and len(facts["sha256"]) == 64
    again.node_feat[0, 0] = 7.0  # copy on write: the file keeps its content
    assert read_ogb("ogbn-arxiv", arxiv.parent).node_feat[0, 0] != 7.0
    assert len(list((cache / "abkd_fast" / "arrays").iterdir())) == 1


def test_changed_files_are_parsed_again(arxiv):
    read_ogb("ogbn-arxiv", arxiv.parent)
    ogb_layout.write_csv(arxiv / "raw" / "node-label.csv.gz", np.full((30, 1), 3))
    assert set(read_ogb("ogbn-arxiv", arxiv.parent).label[:, 0]) == {3}


def test_damaged_cache_is_made_again(tmp_path):
    builds = []

    def build(writer):
        builds.append(writer.folder)
        writer.add("a", np.arange(5))
        return {"builds": len(builds)}

    folder = tmp_path / "arrays"
    assert cached_arrays(folder, build).arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert cached_arrays(folder, build).about == {"builds": 1}
    array = folder / "0.npy"
    array.write_bytes(array.read_bytes()[:-1] + b"!")
    assert cached_arrays(folder, build).about == {"builds": 2}
    assert cached_arrays(folder, build).arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["arrays"]


def test_failed_build_leaves_nothing(tmp_path):
    def build(writer):
        writer.add("a", np.arange(5))
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cached_arrays(tmp_path / "arrays", build)
    assert list(tmp_path.iterdir()) == []


def test_archives_are_read_in_place(arxiv, tmp_path):
    unpacked = read_ogb("ogbn-arxiv", tmp_path)
    root = tmp_path / "zipped"
    (root / "ogbn_arxiv").mkdir(parents=True)
    ogb_layout.archive(arxiv, root / "ogbn_arxiv" / "arxiv.zip", "arxiv")
    zipped = read_ogb("ogbn-arxiv", root)
    assert np.array_equal(zipped.edge, unpacked.edge)
    assert list(zipped.about["files"]) == ["arxiv.zip"]
    assert [path.name for path in (root / "ogbn_arxiv").iterdir()] == ["arxiv.zip"]


@pytest.mark.parametrize("name", ["arxiv/raw/../../../evil.csv.gz", "/raw/edge.csv.gz"])
def test_archives_with_names_that_leave_them(tmp_path, name):
    path = tmp_path / "arxiv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"1,2\n")
    with pytest.raises(DataError, match="unsafe archive"):
        read_ogb("ogbn-arxiv", tmp_path)


def test_broken_archives(tmp_path, monkeypatch):
    path = tmp_path / "arxiv.zip"
    path.write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="not a readable zip archive"):
        read_ogb("ogbn-arxiv", tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/raw/edge.csv.gz", bytes(1_000_000))
    monkeypatch.setattr("abkd_fast.data.zip_file.MAX_INFLATED", 1000)
    with pytest.raises(DataError, match="zip bomb"):
        read_ogb("ogbn-arxiv", tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/raw/edge.csv.gz", b"")
        archive.writestr("b/raw/edge.csv.gz", b"")
    with pytest.raises(DataError, match="must hold one folder raw/"):
        read_ogb("ogbn-arxiv", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("raw/edge.csv.gz", None, "must hold one of raw/edge.csv.gz"),
        ("raw/node-feat.csv.gz", None, "must hold raw/node-feat.csv.gz"),
        ("raw/node-feat.csv.gz", [[0.5]] * 29, "must have 30 rows, got 29"),
        ("raw/num-edge-list.csv.gz", [[61]], "edge.csv.gz: must have 61 rows, got 60"),
        ("raw/num-edge-list.csv.gz", [[60], [0]], "must count 1 graphs"),
        ("raw/num-node-list.csv.gz", [[-30]], "column of counts"),
        ("raw/edge.csv.gz", [[0, 30]] * 60, r"target must lie in \[0, num_nodes=30\)"),
        ("split/time/test.csv.gz", None, "no such file; splits found: time"),
        ("split/time/test.csv.gz", [[30]], "test must list nodes"),
    ],
)
def test_files_at_odds(arxiv, file, content, message):
    (arxiv / file).unlink()
    if content is not None:
        ogb_layout.write_csv(arxiv / file, content)
    with pytest.raises(DataError, match=message):
        load("ogbn-arxiv", root=arxiv.parent)


def test_typed(tmp_path):
    ogb_layout.typed(tmp_path / "ogbn-mag")
    data = read_ogb_typed("ogbn-mag", tmp_path)
    assert data.num_nodes == ogb_layout.TYPES
    assert {triplet: e.shape[1] for triplet, e in data.edge_index.items()} == ogb_layout.TRIPLETS
    both = data.with_reverses()
    assert list(both.edge_index) == [
        ("author", "writes", "paper"),
        ("paper", "rev_writes", "author"),
        ("paper", "cites", "paper"),
    ]
    writes = data.edge_index["author", "writes", "paper"]
    assert np.array_equal(both.edge_index["paper", "rev_writes", "author"], writes[::-1])
    cites = data.edge_index["paper", "cites", "paper"].T.tolist()
    expected = sorted(
        {(b, a) for a, b in cites} | {(a, b) for a, b in cites}, key=lambda e: e[::-1]
    )
    found = both.edge_index["paper", "cites", "paper"].T.tolist()
    assert found == [list(edge) for edge in expected]


def test_wrong_kinds_and_names(arxiv, tmp_path):
    ogb_layout.typed(tmp_path / "ogbn-mag")
    with pytest.raises(DataError, match="use read_ogb_typed"):
        read_ogb("ogbn-mag", tmp_path)
    with pytest.raises(DataError, match="use read_ogb"):
        read_ogb_typed("ogbn-arxiv", tmp_path)
    with pytest.raises(ValueError, match="name must be one of ogbn-arxiv"):
        read_ogb("ogbn-none", tmp_path)
    with pytest.raises(DataError, match="must hold OGB's products.zip"):
        read_ogb("ogbn-products", tmp_path)


def test_molbace(abkd_data):
    arrays = read_ogb("ogbg-molbace", abkd_data)
    assert (len(arrays.num_nodes), arrays.num_nodes.sum(), len(arrays.edge)) == (1513, 51577, 55768)
    assert {part: len(nodes) for part, nodes in arrays.split.items()} == {
        "train": 1210,
        "val": 151,
        "test": 152,
    }
    first = next(arrays.graphs())
    assert first["edge_index"][:, :4].tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert first["node_feat"].shape == (32, 9) and first["edge_feat"].shape[1] == 3


def test_an_error_of_the_reader_is_not_the_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("raw/a.csv", "1,2\n")
    with pytest.raises(RuntimeError, match="mine"), RawFiles(tmp_path / "a.zip").open("raw/a.csv"):
        raise RuntimeError("mine")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(8, 1, "encrypted"), (10, 99, "compression method is not supported")],
    ids=["encrypted", "unknown compression"],
)
def test_members_that_cannot_be_read(tmp_path, at, value, message):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("raw/a.csv", "1,2\n")
    content = bytearray(file.read_bytes())
    directory = content.index(b"PK\x01\x02")  # of flags at 8 and of the method at 10
    content[directory + at] = content[at - 2] = value
    file.write_bytes(bytes(content))
    with (
        pytest.raises(DataError, match=rf"a\.zip \[raw/a\.csv\]: not readable: .*{message}"),
        RawFiles(file).open("raw/a.csv") as opened,
    ):
        opened.read()
