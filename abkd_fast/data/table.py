"""Text tables of numbers: comma, tab or blank separated, with or without a header line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from abkd_fast.data.errors import DataError, blame

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": None}


def read_table(path: Path) -> np.ndarray[Any, Any]:
    """The numbers of a text table, [rows, columns] float64.

    The ending decides the separator: ``.csv`` comma, ``.tsv`` tab, ``.txt`` blanks. A first line
    without any number is a header; empty lines and what follows ``#`` are skipped.

    Raises:
        DataError: names file, line and the text that is not a number, or the wrong column count.
    """
    delimiter = _DELIMITERS[path.suffix]
    with blame(path):
        header, empty = _first_line(path, delimiter)
        if empty:
            return np.empty((0, 0))
        try:
            return np.loadtxt(
                path, np.float64, delimiter=delimiter, skiprows=header, ndmin=2, encoding="utf-8"
            )
        except ValueError as error:
            raise DataError(_locate(path, delimiter, header) or f"{path}: {error}") from error


def _fields(line: str, delimiter: str | None) -> list[str]:
    content = line.split("#", 1)[0].strip("\r\n" if delimiter == "\t" else None)
    return [field.strip() for field in content.split(delimiter)] if content.strip() else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _first_line(path: Path, delimiter: str | None) -> tuple[int, bool]:
    """(lines up to and including the header, whether no line holds data)."""
    header = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = _fields(line, delimiter)
            if not fields:
                continue
            if header == 0 and not any(map(_is_number, fields)):
                header = number
                continue
            return header, False
    return header, True


def _locate(path: Path, delimiter: str | None, header: int) -> str | None:
    """The first line that breaks the table, said in words."""
    columns = None
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = _fields(line, delimiter)
            if number <= header or not fields:
                continue
            columns = columns or len(fields)
            if len(fields) != columns:
                return f"{path}, line {number}: must have {columns} columns, got {len(fields)}"
            bad = [field for field in fields if not _is_number(field)]
            if bad:
                return f"{path}, line {number}: must hold numbers, got {bad[0][:40]!r}"
    return None
