import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import scipy.sparse

from abkd_fast.data import DataError
from abkd_fast.data.npy import NpzFile, read_npy

ARRAYS = [
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([1, 2], ">i4"),
    np.array([True]),
    np.array(7),
    np.zeros((0, 4), np.float32),
    np.array(["train", "val"]),
]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text):
    """A .npy file whose header is ``text``."""
    content = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values(tmp_path, array, save):
    np.save(tmp_path / "a.npy", array)
    save(tmp_path / "a.npz", a=array)
    for out in (read_npy(tmp_path / "a.npy"), NpzFile(tmp_path / "a.npz").read("a")):
        assert out.dtype == array.dtype.newbyteorder("=")
        assert out.shape == array.shape
        assert np.array_equal(out, array)
        assert out.flags.writeable


def test_cut_anywhere(tmp_path):
    content = npy(np.arange(50))
    for cut in range(len(content)):
        (tmp_path / "a.npy").write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"a\.npy"):
            read_npy(tmp_path / "a.npy")


def test_npz_cut_anywhere(tmp_path):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, a=np.arange(50), b=np.ones(3))
    content = file.read_bytes()
    for cut in range(0, len(content), 7):
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"a\.npz: not a readable"):
            NpzFile(file)


def test_npz_damaged_anywhere(tmp_path):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, a=np.arange(50), b=np.ones(3))
    content = bytearray(file.read_bytes())
    generator = np.random.RandomState(0)
    for _ in range(400):
        damaged = content.copy()
        damaged[generator.randint(len(content))] = generator.randint(256)
        file.write_bytes(damaged)
        try:
            npz = NpzFile(file)
            for name in npz.names:
                npz.read(name, objects=True)
        except DataError as error:
            assert "a.npz" in str(error)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a readable .npy"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"PICKLE" * 20, "magic"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 40,)}"), "not a readable"),
        (header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 40},)}}"), "takes"),
        (header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 70},)}}"), "sensible"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "sensible"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': 'ab'}"), "not a readable"),
        (header("__import__('os').system('true')"), "not a readable"),
        (header("(" * 100), "not a readable"),
        (header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0,)}"), "dtype must"),
        (header("{'descr': '|V8', 'fortran_order': False, 'shape': (0,)}"), "dtype must"),
        (header("{'descr': '<U0', 'fortran_order': False, 'shape': (4,)}"), "dtype must"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': ()}") + b"N.", "Python objects"),
    ],
)
def test_hostile_headers(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_npy(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)


def test_missing_files_and_arrays(tmp_path):
    with pytest.raises(DataError, match=r"none\.npy: No such file"):
        read_npy(tmp_path / "none.npy")
    with pytest.raises(DataError, match=r"none\.npz: No such file"):
        NpzFile(tmp_path / "none.npz")
    np.savez(tmp_path / "a.npz", a=np.ones(1), b=np.ones(1))
    with pytest.raises(DataError, match=r"a\.npz \[c\]: no such array; the file holds a, b"):
        NpzFile(tmp_path / "a.npz").read("c")


def test_zip_bomb(tmp_path):
    file = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as member,
    ):
        member.write(header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 29},)}}"))
        for _ in range(32):
            member.write(bytes(1 << 24))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"bomb\.npz \[x\]: expands from .* zip bomb"):
        NpzFile(file).read("x")


def test_lying_member_sizes(tmp_path):
    file = tmp_path / "lie.npz"
    np.savez_compressed(file, x=np.zeros(100_000))
    content = bytearray(file.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 1000)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"lie\.npz \[x\]"):
        NpzFile(file).read("x")


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_objects_run_nothing(tmp_path, protocol):
    marker = tmp_path / "marker"
    content = np.empty((), object)
    content[()] = Attack(marker)
    member = header("{'descr': '|O', 'fortran_order': False, 'shape': ()}")
    member += pickle.dumps(content, protocol=protocol)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("adj_matrix.npy", member)
    npz = NpzFile(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=r"bad\.npz \[adj_matrix\]: holds Python objects"):
        npz.read("adj_matrix")
    with pytest.raises(DataError, match=r"bad\.npz \[adj_matrix\]: .*refused (posix|nt)\.system"):
        npz.read("adj_matrix", objects=True)
    assert not marker.exists()


def test_object_matrix(tmp_path):
    matrix = scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32))
    content = np.empty((), object)
    content[()] = matrix
    np.savez(tmp_path / "a.npz", adj_matrix=content)
    out = NpzFile(tmp_path / "a.npz").read("adj_matrix", objects=True)
    assert np.array_equal(out.toarray(), np.eye(3))
