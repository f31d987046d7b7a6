import os
import pickle
import struct
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import scipy.sparse

from abkd_fast.data import DataError
from abkd_fast.data.safe_pickle import loads

MATRIX = scipy.sparse.csr_matrix(np.array([[0, 1.5, 0], [2, 0, 3]], np.float32))


def python2(content):
    """The same pickle with the module names that Python 2 and old scipy wrote."""
    content = content.replace(b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n")
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "array",
    [
        np.array([[1, 2], [3, 4]], np.int32),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([1, 2], ">i8"),
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.zeros((0, 3), np.float32),
    ],
    ids=["int", "fortran", "big-endian", "bool", "text", "empty"],
)
def test_arrays_come_back(array, protocol):
    out = loads(pickle.dumps(array, protocol=protocol), "f")
    assert out.dtype == array.dtype
    assert np.array_equal(out, array)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("rename", [python2, lambda content: content], ids=["old", "new"])
def test_matrix_comes_back(protocol, rename):
    out = loads(rename(pickle.dumps(MATRIX, protocol=protocol)), "f")
    assert isinstance(out, scipy.sparse.csr_array)
    assert np.array_equal(out.toarray(), MATRIX.toarray())


def test_matrix_inside_an_object_array():
    content = np.empty((), object)
    content[()] = MATRIX
    out = loads(pickle.dumps(content, protocol=2), "f")
    assert np.array_equal(out.toarray(), MATRIX.toarray())


def test_dicts_come_back():
    graph = defaultdict(list, {0: [1, 2], 1: [0]})
    assert loads(pickle.dumps(graph, protocol=2), "f") == {0: [1, 2], 1: [0]}
    assert loads(pickle.dumps(OrderedDict(a=1), protocol=2), "f") == {"a": 1}
    assert loads(pickle.dumps(np.float64(2.5), protocol=2), "f") == 2.5


class Call:
    """Pickles into a call of ``function`` at load time."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


GADGETS = [
    (os.system, "system"),
    (eval, "eval"),
    (exec, "exec"),
    (getattr, "getattr"),
    (open, "open"),
    (np.load, "load"),
    (np.fromfile, "fromfile"),
    (scipy.sparse.load_npz, "load_npz"),
    (pickle.loads, "loads"),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function, name", GADGETS, ids=[name for _, name in GADGETS])
def test_code_is_refused_and_named(tmp_path, function, name, protocol):
    marker = tmp_path / "marker"
    call = Call(function, f"touch {marker}")
    for content in (call, {"graph": [call]}):
        with pytest.raises(DataError, match=rf"bad\.pkl: .*refused .*{name}"):
            loads(pickle.dumps(content, protocol=protocol), "bad.pkl")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content, refused",
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02cnumpy\ndtype\n.", "holds no data"),
        (b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n.", "holds no data"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", r"numpy.dtype.__init__"),
        (b"P1\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ],
)
def test_other_ways_to_objects_are_refused(content, refused):
    with pytest.raises(DataError, match=refused):
        loads(content, "f")


def test_a_pickle_cannot_change_the_stand_ins():
    poison = b"\x80\x02ccollections\ndefaultdict\nN}X\x09\x00\x00\x00_functionK\x01s\x86b."
    with pytest.raises(DataError, match="state"):
        loads(poison, "f")
    assert loads(pickle.dumps(defaultdict(list), protocol=2), "f") == {}
    on_class = b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n}X\x05\x00\x00\x00valueK\x01sb."
    with pytest.raises(DataError):
        loads(on_class, "f")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        b"\x80\x02)" + 200_000 * b"\x85" + b".",
        b"",
        b"PK\x03\x04",
        b"\x80\x02",
        b"not a pickle",
    ],
    ids=["memo", "bytes", "frame", "nesting", "empty", "zip", "cut", "text"],
)
def test_bombs_and_garbage(content):
    with pytest.raises(DataError, match="^f: "):
        loads(content, "f")


def hostile_matrix(**parts):
    matrix = MATRIX.copy()
    vars(matrix).update(parts)
    return pickle.dumps(matrix, protocol=2)


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"indices": np.array([1, 0, 3], np.int32)}, r"indices must lie in \[0, columns=3\)"),
        ({"indices": np.array([-1, 0, 2], np.int32)}, "indices must lie in"),
        ({"indptr": np.array([0, 9, 3], np.int32)}, "indptr must rise"),
        ({"indptr": np.array([0, 3], np.int32)}, "indptr must hold rows"),
        ({"indices": np.array([1, 0], np.int32)}, "equally long"),
        ({"data": np.array(["a", "b", "c"])}, "data of a sparse matrix"),
        ({"data": None}, "data of a sparse matrix"),
        ({"_shape": (2**62, 3)}, "shape"),
        ({"_shape": (-2, 3)}, "shape"),
        ({"_shape": "ab"}, "shape"),
    ],
)
def test_broken_matrices(parts, message):
    with pytest.raises(DataError, match=message):
        loads(hostile_matrix(**parts), "f")


def test_broken_arrays():
    state = pickle.dumps(np.arange(3, dtype=np.int32), protocol=2)
    assert b"K\x03\x85" in state  # shape (3,)
    with pytest.raises(DataError, match="must hold 28 bytes, got 12"):
        loads(state.replace(b"K\x03\x85", b"K\x07\x85"), "f")
    structured = np.zeros(2, [("a", "i4"), ("b", "f8")])
    with pytest.raises(DataError, match="dtype"):
        loads(pickle.dumps(structured, protocol=2), "f")


def test_mutations_give_data_errors_only():
    content = bytearray(pickle.dumps({"m": MATRIX, "y": [1, 2]}, protocol=2))
    generator = np.random.RandomState(0)
    for _ in range(3000):
        mutated = content.copy()
        for position in generator.randint(0, len(content), generator.randint(1, 4)):
            mutated[position] = generator.randint(256)
        try:
            loads(mutated, "f")
        except DataError as error:
            assert str(error).startswith("f: ")


def test_tuples_that_double_at_every_level_are_refused_at_once():
    """As a dict key such a tuple would be hashed 2^60 times."""
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    content = b"\x80\x02}(" + pickle.dumps(nested, protocol=2)[2:-1] + b"K\x01u."
    with pytest.raises(DataError, match="refused 60 tuples, at most 26"):
        loads(content, "f")
