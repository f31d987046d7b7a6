"""Read .npy and .npz files of unknown origin: headers are checked before memory is taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.safe_pickle import checked_csr, loads
from abkd_fast.data.zip_file import DAMAGED, check_expansion, open_member, zip_members

_CHUNK = 1 << 24
_MAX_HEADER = 1 << 16


def read_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array in a .npy file. Object arrays (pickles) are refused.

    Raises:
        DataError: missing file, wrong magic, truncated, or a shape that the size contradicts.
    """
    with blame(path), path.open("rb") as file:
        return _read(file, path.stat().st_size, str(path), objects=False)


class NpzFile:
    """The arrays of one .npz file, read when asked for.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing or not a zip archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = {
            member.filename.removesuffix(".npy"): member
            for member in zip_members(path, ".npz file")
            if member.filename.endswith(".npy")
        }
        self.names = sorted(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, *, objects: bool = False) -> Any:
        """The array ``name``; with ``objects``, also what an object array holds.

        Objects come through the restricted reader of ``safe_pickle``: numpy arrays, CSR matrices,
        dicts and lists, never code.

        Raises:
            DataError: names file and array.
        """
        source = f"{self.path} [{name}]"
        if name not in self._members:
            raise DataError(f"{source}: no such array; the file holds {', '.join(self.names)}")
        member = self._members[name]
        check_expansion(member, source)
        with blame(source):
            try:
                with open_member(self.path, member, source) as file:
                    return _read(file, member.file_size, source, objects=objects)
            except DAMAGED as error:
                raise DataError(f"{source}: not readable: {error}") from error

    def read_csr(self, parts: tuple[str, str, str, str]) -> Any:
        """The scipy csr_array whose data, indices, indptr and shape are the arrays ``parts``."""
        arrays = [self.read(part) for part in parts]
        with blame(f"{self.path} [{parts[0]}]"):
            return checked_csr(*arrays)


def _read(file: IO[bytes], size: int, source: str, *, objects: bool) -> Any:
    """One array of ``size`` bytes, header included."""
    shape, fortran, dtype = _header(file, source)
    start = file.tell()
    if dtype.hasobject:
        if not objects or dtype.kind != "O":
            raise DataError(
                f"{source}: holds Python objects (a pickle), which are not read because they can "
                "run code; save plain numeric arrays"
            )
        return loads(_content(file, size - start, source), source)
    if dtype.kind not in "biufSU" or dtype.itemsize == 0:
        raise DataError(f"{source}: dtype must be numbers or text, got {dtype}")
    expected = math.prod(shape) * dtype.itemsize
    if size - start != expected:
        raise DataError(
            f"{source}: shape {list(shape)} of {dtype} takes {expected} bytes, got {size - start}; "
            "the file is truncated or damaged"
        )
    flat = np.frombuffer(_content(file, expected, source), dtype)
    native = flat.astype(dtype.newbyteorder("="), copy=False)
    return native.reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        readers: dict[Any, Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"version {version}, expected (1, 0) or (2, 0)")
        shape, fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    except Exception as error:  # the header is a Python literal: parsing it can fail in many ways
        raise DataError(f"{source}: not a readable .npy array: {error}") from error
    if not all(0 <= side < 2**48 for side in shape) or len(shape) > 32:
        raise DataError(f"{source}: shape must be sensible, got {str(shape)[:80]}")
    return shape, bool(fortran), dtype


def _content(file: IO[bytes], size: int, source: str) -> bytearray:
    """``size`` bytes, read in chunks so that a lying size does not take memory up front."""
    content = bytearray()
    while len(content) < size:
        chunk = file.read(min(_CHUNK, size - len(content)))
        if not chunk:
            raise DataError(f"{source}: ends after {len(content)} of {size} bytes: truncated")
        content += chunk
    return content
