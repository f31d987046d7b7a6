"""Tables of numbers in (gzipped) text, streamed block by block into .npy files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from abkd_fast.data.errors import DataError
from abkd_fast.data.raw_files import RawFiles
from abkd_fast.data.zip_file import MAX_INFLATED, MAX_RATIO

_BLOCK = 1 << 24
_FRACTION = re.compile(rb"[.eEnN]|,,|\n,|,\n")  # 1.5, 1e3, nan, or a field that is empty


class _NotWhole(Exception):
    """A column of integers turned out to hold fractions or gaps."""


def table_to_npy(
    files: RawFiles, name: str, target: Path, *, floats: Any = np.float32, rows: int | None = None
) -> None:
    """Write the table [rows, columns] as a .npy file: int64, or ``floats`` where it must be.

    The types are pandas': a table of whole numbers is int64; one fraction or empty field (NaN)
    anywhere makes all of it ``floats``. Memory stays at one block of text and its numbers.

    Args:
        files: where the table is.
        name: its file; lines of numbers between commas, no header.
        target: the .npy file to make.
        floats: dtype of a table that is not whole.
        rows: how many there must be; None = any number.

    Raises:
        DataError: names the file, the place and what is wrong, expands absurdly, or is cut off.
    """
    try:
        _convert(files, name, target, np.dtype(np.int64), rows)
    except _NotWhole:
        _convert(files, name, target, np.dtype(floats), rows)


def read_table_gz(files: RawFiles, name: str) -> list[list[str]]:
    """The fields of a small table as text, header included."""
    with files.open(name) as stream:
        text = b"".join(_blocks(stream, files.size(name), files.where(name)))
    try:
        return [line.split(",") for line in text.decode("utf-8").splitlines() if line]
    except UnicodeDecodeError as error:
        raise DataError(f"{files.where(name)}: must be UTF-8 text, got {error}") from error


def _convert(
    files: RawFiles, name: str, target: Path, dtype: np.dtype[Any], expected: int | None
) -> None:
    where, rows, columns = files.where(name), 0, 0
    with files.open(name) as stream, target.open("wb") as out:
        size = _write_header(out, dtype, 0, 0)
        for block in _blocks(stream, files.size(name), where):
            values = _parse(block, dtype, f"{where}, after row {rows}")
            if rows and values.shape[1] != columns:
                raise DataError(
                    f"{where}, after row {rows}: must have {columns} columns, got {values.shape[1]}"
                )
            columns, rows = values.shape[1], rows + len(values)
            if expected is not None and rows > expected:
                raise DataError(f"{where}: must have {expected} rows, got {rows} or more")
            out.write(values.data)
        if expected is not None and rows != expected:
            raise DataError(f"{where}: must have {expected} rows, got {rows}")
        out.seek(0)
        if _write_header(out, dtype, rows, columns) != size:
            raise DataError(f"{where}: must have fewer rows than fit a .npy header, got {rows}")


def _write_header(out: IO[bytes], dtype: np.dtype[Any], rows: int, columns: int) -> int:
    """Write the header of a [rows, columns] array; numpy leaves room for rows to grow."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (rows, columns),
    }
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    return out.write(content.getvalue())


def _blocks(stream: IO[bytes], stored: int, where: str) -> Iterator[bytes]:
    """Whole lines, about 16 MiB at a time."""
    rest, total = b"", 0
    while chunk := stream.read(_BLOCK):
        total += len(chunk)
        if total > max(MAX_INFLATED, MAX_RATIO * stored):
            raise DataError(
                f"{where}: expands from {stored} to more than {total} bytes, which looks like a "
                "decompression bomb"
            )
        cut = chunk.rfind(b"\n") + 1
        if cut == 0 and len(rest) + len(chunk) > _BLOCK:
            raise DataError(
                f"{where}: must hold lines of text, got one of more than {_BLOCK} bytes"
            )
        if cut:
            yield rest + chunk[:cut]
            rest = chunk[cut:]
        else:
            rest += chunk
    if rest:
        yield rest + b"\n"


def _parse(block: bytes, dtype: np.dtype[Any], where: str) -> np.ndarray[Any, Any]:
    if dtype.kind == "i":
        if block.startswith(b",") or _FRACTION.search(block):
            raise _NotWhole
    else:
        block = _fill_gaps(block)
    try:
        return np.loadtxt(io.BytesIO(block), dtype, comments=None, delimiter=",", ndmin=2)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {error}") from error


def _fill_gaps(block: bytes) -> bytes:
    """Write nan into empty fields."""
    if b",," not in block and b"\n," not in block and b",\n" not in block and block[:1] != b",":
        return block
    block = b"\n" + block
    for _ in range(2):  # a field between two gaps needs the second pass
        block = block.replace(b",,", b",nan,")
    return block.replace(b"\n,", b"\nnan,").replace(b",\n", b",nan\n")[1:]
