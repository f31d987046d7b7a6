import os
import shutil

import numpy as np
import planetoid_files as tiny
import pytest
import torch

from abkd_fast.data import DataError, load
from abkd_fast.data.planetoid import PARTS


@pytest.fixture
def root(tmp_path):
    tiny.write(tmp_path / "cora", "cora", tiny.parts())
    return tmp_path


def test_values(root):
    data = load("cora", root=root)
    edges = {(0, 1), (2, 513), (3, 514)}  # repeated 0-1 merged, 0-0 dropped
    both = edges | {(j, i) for i, j in edges}
    assert set(map(tuple, data.edge_index.t().tolist())) == both
    assert data.num_nodes == tiny.NUM_NODES
    assert data.train_mask.nonzero().flatten().tolist() == list(range(6))
    assert data.val_mask.nonzero().flatten().tolist() == list(range(6, 506))
    assert data.test_mask.nonzero().flatten().tolist() == sorted(tiny.TEST)
    assert data.y[[510, 511, 513, 514]].tolist() == [510 % 3, 511 % 3, 513 % 3, 514 % 3]
    assert data.y[512] == -1
    expected = torch.from_numpy(tiny.features(range(tiny.NUM_NODES)).toarray()) / 2
    expected[512] = 0
    assert torch.equal(data.dense_x, expected)


def test_raw_features_on_request(root):
    assert load("cora", root=root, normalize=False).dense_x.unique().tolist() == [0, 1]


def test_features_stay_sparse(root):
    data = load("cora", root=root)
    assert data.x.num_edges == 2 * (tiny.NUM_NODES - 1)
    assert data.x.value.dtype == torch.float32


@pytest.mark.parametrize("part", PARTS)
def test_a_file_cut_anywhere_is_a_data_error(root, part):
    file = root / "cora" / f"ind.cora.{part}"
    content = file.read_bytes()
    cuts = {0, 1, 2, 3, len(content) // 3, len(content) // 2, len(content) - 2}
    cuts |= set(range(0, len(content) - 1, max(1, len(content) // 15)))
    for cut in cuts:  # not len - 1: without its last newline, test.index is whole
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=f"ind.cora.{part}"):
            load("cora", root=root)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_named_with_the_fix(root, part):
    (root / "cora" / f"ind.cora.{part}").unlink()
    with pytest.raises(DataError, match=rf"ind\.cora\.{part}: no such file.*--root.*ABKD_DATA"):
        load("cora", root=root)


def test_a_folder_in_place_of_a_file(root):
    (root / "cora" / "ind.cora.graph").unlink()
    (root / "cora" / "ind.cora.graph").mkdir()
    with pytest.raises(DataError, match="ind.cora.graph"):
        load("cora", root=root)


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("part", PARTS[:-1])
def test_a_malicious_file_runs_nothing(root, tmp_path, part):
    marker = tmp_path / "marker"
    tiny.write(root / "cora", "cora", {part: Attack(marker)})
    with pytest.raises(DataError, match=rf"ind\.cora\.{part}: .*refused (posix|nt)\.system"):
        load("cora", root=root)
    assert not marker.exists()


WITH_NAN = tiny.features(range(tiny.NUM_ALL))
WITH_NAN.data[3] = np.nan


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("graph", {0: [10_000]}, r"source must lie in \[0, num_nodes=515\)|target must lie"),
        ("graph", {0: [-1]}, "must lie in"),
        ("graph", {0: ["1"]}, "lists of nodes"),
        ("graph", {0: [2**70]}, "64 bits"),
        ("graph", {0: 1}, "lists of nodes"),
        ("graph", [1, 2], "must hold a dict, got list"),
        ("allx", tiny.onehot([1]), "must hold a csr_array, got ndarray"),
        ("allx", WITH_NAN, "must be finite"),
        ("allx", tiny.features([0, 1]), "nodes must lie in|must have"),
        ("tx", tiny.features([0]), "must have 4 rows as ty, got 1"),
        ("ally", tiny.onehot([0, 1]), "must have 510 rows as allx, got 2"),
        ("ty", 2 * tiny.onehot(tiny.TEST), "a single 1 and zeros"),
        ("ty", np.zeros((4, 0)), "one-hot"),
        ("test.index", [510, 511, 513, 600_000], r"nodes must lie in \[510, 550\)"),
        ("test.index", [510, 511, 513, 513], "must list a node once, got node 513 twice"),
        ("test.index", ["x"] * 4, "one node per line, got 'x'"),
        ("test.index", [], "must list 4 nodes"),
        ("y", tiny.onehot(range(12)), "val_mask and test_mask must not overlap"),
    ],
)
def test_inconsistent_files_are_named(root, part, value, message):
    tiny.write(root / "cora", "cora", {part: value})
    with pytest.raises(DataError, match=message) as caught:
        load("cora", root=root)
    assert str(root / "cora") in str(caught.value)


def test_different_feature_counts(root):
    wide = tiny.features(tiny.TEST)
    wide.resize(4, 9)
    tiny.write(root / "cora", "cora", {"tx": wide})
    with pytest.raises(DataError, match=r"ind\.cora\.tx: must have 5 columns, got 9"):
        load("cora", root=root)


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_real_files_cut_anywhere(abkd_data, tmp_path, name):
    shutil.copytree(abkd_data / name, tmp_path / name)
    (tmp_path / name).chmod(0o755)
    for part in PARTS:
        file = tmp_path / name / f"ind.{name}.{part}"
        file.chmod(0o644)
        content = file.read_bytes()
        for cut in (0, 17, 100, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:cut])
            with pytest.raises(DataError, match=f"ind.{name}.{part}"):
                load(name, root=tmp_path)
        file.write_bytes(content)
    assert load(name, root=tmp_path).num_nodes > 0
