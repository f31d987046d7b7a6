"""Read numeric arrays, scipy CSR matrices, dicts and lists from pickles without running code.

A pickle names the functions that rebuild its objects. Here none of them is ever called: the few
names that numeric data needs map to inert stand-ins defined in this file, every other name is
refused, and the parts are validated before a real array or matrix is made from them.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from abkd_fast.data.errors import DataError

# Plain values, containers, memo and the five operations that build an object. Persistent ids,
# extension codes, INST, OBJ, sets and buffers are left out on purpose.
_OPCODE_NAMES = """
    PROTO STOP FRAME MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG
    LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
_OPCODES = frozenset(_OPCODE_NAMES.split())
_MAX_SIDE = 2**31 - 1
_MAX_TUPLES = 26  # real files have up to 23; each more can double the time to hash a dict key
_DTYPE = re.compile(r"[|<>=]?([biufcSU]\d{1,9}|O8?|\?)")


class _Inert:
    """A stand-in; refuses pickled state, so that a pickle cannot change this module."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("state for an object that takes none")


class _Callable(_Inert):
    """A permitted function, replaced by one of ours."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Dtype(_Inert):
    """numpy.dtype(code, align, copy) with the byte order set by its state."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError(f"dtype {str(code)[:40]!r}, only plain numbers and text are allowed")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields = state[:5]
        if subdtype is not None or names is not None or fields is not None:
            raise ValueError("a structured dtype, only plain numbers and text are allowed")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(_Inert):
    """numpy's _reconstruct(ndarray, (0,), b"b"); the content arrives as state."""

    def __init__(self, *_: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        if not isinstance(dtype, _Dtype) or not _is_shape(shape):
            raise ValueError("an array with a malformed shape or dtype")
        if dtype.dtype.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError(f"an object array of shape {shape} without as many objects")
            self.value = content[0] if shape == () else content
            return
        content = content.encode("latin1") if isinstance(content, str) else content
        self.value = _from_bytes(content, dtype.dtype, shape, "F" if fortran else "C")


class _Matrix(_Inert):
    """scipy.sparse.csr_matrix made by __new__; the parts arrive as state."""

    def __setstate__(self, state: Any) -> None:
        data, indices, indptr = (_real(state.get(key)) for key in ("data", "indices", "indptr"))
        self.value = checked_csr(data, indices, indptr, state.get("_shape", state.get("shape")))


class _ListType(_Inert):
    """The name ``list``, permitted only as the argument of defaultdict."""


def _default_dict(factory: object = None) -> dict[Any, Any]:
    if not (factory is None or isinstance(factory, _ListType)):
        raise ValueError("a defaultdict whose factory is not list")
    return {}


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("text in an encoding other than latin1")
    return text.encode("latin1")


def _scalar(dtype: object, content: object = None) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject:
        raise ValueError("a scalar with a malformed dtype")
    content = content.encode("latin1") if isinstance(content, str) else content
    return _from_bytes(content, dtype.dtype, (), "C")[()]


def _from_bytes(content: object, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Any:
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(content, bytes) or len(content) != expected:
        found = len(content) if isinstance(content, bytes) else type(content).__name__
        raise ValueError(f"an array of shape {shape} must hold {expected} bytes, got {found}")
    if dtype.itemsize == 0:
        raise ValueError("an array of zero-width items")
    return np.frombuffer(bytearray(content), dtype).reshape(shape, order=order)


def _is_shape(shape: object) -> bool:
    whole = isinstance(shape, tuple) and len(shape) <= 32
    return whole and all(type(n) is int and 0 <= n < 2**48 for n in shape)  # type: ignore[attr-defined]


def _real(value: object) -> Any:
    return value.value if isinstance(value, _Array | _Matrix) else value


def _allowed() -> dict[tuple[str, str], Any]:
    """Fresh stand-ins by (module, name), old and new module paths alike."""
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _ListType(),  # only an argument of _reconstruct, which ignores it
        ("numpy", "dtype"): _Callable(_Dtype),
        ("collections", "defaultdict"): _Callable(_default_dict),
        ("collections", "OrderedDict"): _Callable(lambda items=(): dict(items)),
        ("_codecs", "encode"): _Callable(_encode),
        ("__builtin__", "list"): _ListType(),
        ("builtins", "list"): _ListType(),
        ("__builtin__", "bytes"): _Callable(lambda: b""),
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table[core, "_reconstruct"] = _Callable(_Array)
        table[core, "scalar"] = _Callable(_scalar)
    for module in ("scipy.sparse.csr", "scipy.sparse._csr"):
        table[module, "csr_matrix"] = table[module, "csr_array"] = _Matrix
    return table


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes | bytearray) -> None:
        # fix_imports would rewrite names before we see them; latin1 keeps Python 2 bytes intact
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="latin1")
        self._table = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._table:
            raise ValueError(
                f"refused {module}.{name}; only numpy arrays, scipy CSR matrices, dicts and lists "
                "are read from pickles, because other content can run code"
            )
        return self._table[module, name]


def _check_opcodes(content: bytes | bytearray) -> None:
    """Refuse opcodes that data does not need, and those that make the C reader allocate blindly."""
    tuples = 0
    for step, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(content))):
        tuples += opcode.name.startswith("TUPLE")
        if opcode.name not in _OPCODES:
            raise ValueError(f"refused pickle opcode {opcode.name} at byte {position}")
        if opcode.name.endswith("PUT") and int(argument or 0) > step:
            raise ValueError(f"refused memo index {argument} at byte {position}")
    if tuples > _MAX_TUPLES:
        raise ValueError(f"refused {tuples} tuples, at most {_MAX_TUPLES} are allowed")


def loads(content: bytes | bytearray, source: str | Path) -> Any:
    """Rebuild the numeric object in a pickle; see the module for what is permitted.

    Args:
        content: the pickle, protocols 0 to 5, Python 2 or 3.
        source: the file (and member) the bytes come from, for messages.

    Returns:
        numpy array, scipy csr_array, dict, list, or a plain value. A zero-dimensional object array
        gives its item. Arrays inside dicts and lists stay opaque: no format we read needs them.

    Raises:
        DataError: names ``source`` and what was refused or broken.
    """
    try:
        _check_opcodes(content)
        value = _real(_Unpickler(content).load())
        value = _real(value)  # an object array around a matrix
    except Exception as error:  # a hostile pickle can raise anything; no code of it has run
        raise DataError(f"{source}: not a readable pickle: {error}") from error
    if isinstance(value, _Inert | type):
        raise DataError(f"{source}: not a readable pickle: it holds no data")
    return value


def checked_csr(data: Any, indices: Any, indptr: Any, shape: Any) -> scipy.sparse.csr_array:
    """A csr_array from untrusted parts; every invariant is checked.

    Args:
        data: [nnz] numbers.
        indices: [nnz] integers in [0, columns).
        indptr: [rows + 1] integers; starts at 0, never decreases, ends at nnz.
        shape: (rows, columns).

    Raises:
        ValueError: names the part, the expectation and the value.
    """
    sides = np.asarray(shape if isinstance(shape, tuple | list | np.ndarray) else ()).ravel()
    if len(sides) != 2 or sides.dtype.kind not in "iu":
        raise ValueError(f"shape of a sparse matrix must be (rows, columns), got {str(shape)[:60]}")
    rows, columns = int(sides[0]), int(sides[1])
    if not (0 <= rows <= _MAX_SIDE and 0 <= columns <= _MAX_SIDE):
        raise ValueError(f"shape of a sparse matrix must fit 31 bits, got ({rows}, {columns})")
    for name, part, kinds in (
        ("data", data, "biuf"),
        ("indices", indices, "iu"),
        ("indptr", indptr, "iu"),
    ):
        if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype.kind not in kinds:
            found = (
                f"{part.dtype}{list(part.shape)}" if isinstance(part, np.ndarray) else type(part)
            )
            raise ValueError(f"{name} of a sparse matrix must be a vector of numbers, got {found}")
    data, indices, indptr = (
        part.astype(part.dtype.newbyteorder("=")) for part in (data, indices, indptr)
    )
    if len(indptr) != rows + 1:
        raise ValueError(f"indptr must hold rows + 1 = {rows + 1} entries, got {len(indptr)}")
    if len(indices) != len(data):
        raise ValueError(f"indices and data must be equally long, got {len(indices)}, {len(data)}")
    if indptr[0] != 0 or indptr[-1] != len(data) or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(f"indptr must rise from 0 to nnz={len(data)} without a decrease")
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= columns):
        raise ValueError(
            f"indices must lie in [0, columns={columns}), got values from {indices.min()} "
            f"to {indices.max()}"
        )
    return scipy.sparse.csr_array((data, indices, indptr), shape=(rows, columns))
