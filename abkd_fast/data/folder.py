"""GraphData from a folder of plain files: edges, features, labels and a split.

Text tables are separated by commas, tabs or blanks, with or without a header line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from abkd_fast.data.assemble import Parts, ReadOptions, assemble
from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.npy import NpzFile, read_npy
from abkd_fast.data.splits import Masks, masks_from_nodes

_SPLITS = ("train", "val", "test")
_WORDS = {"train": 0, "val": 1, "test": 2, "none": 3, "": 3}
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": None}


def from_folder(path: str | Path, options: ReadOptions | None = None) -> GraphData:
    """Read a graph from a folder; docs/data.md lists the files it may hold.

    Args:
        path: the folder.
        options: see :class:`ReadOptions`.

    Raises:
        DataError: names the file, the line or array, the expectation and the value found.
    """
    folder, options = Path(path), options or ReadOptions()
    files = {
        "labels": _one(folder, "labels", (".csv", ".txt", ".npy")),
        "edges": _one(folder, "edges", (".csv", ".tsv", ".txt", ".npy")),
        "features": _one(folder, "features", (".csv", ".npy", ".npz")),
    }
    where = {part: str(file) for part, file in files.items()}
    x, y = _features(files["features"]), _column(files["labels"])
    parts = Parts(*_edges(files["edges"]), x, y, where)
    return assemble(folder, parts, lambda count: _masks(folder, count), options)


def _find(folder: Path, stem: str, endings: tuple[str, ...]) -> Path | None:
    found = [folder / (stem + ending) for ending in endings if (folder / (stem + ending)).exists()]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{folder}: must hold one file of {stem}, got {names}")
    return found[0] if found else None


def _one(folder: Path, stem: str, endings: tuple[str, ...]) -> Path:
    file = _find(folder, stem, endings)
    if file is None:
        with blame(folder):
            names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:20])
        wanted = ", ".join(stem + ending for ending in endings)
        raise DataError(f"{folder}: must hold one of {wanted}, got {names or 'an empty folder'}")
    return file


def _read(file: Path) -> np.ndarray[Any, Any]:
    return read_npy(file) if file.suffix == ".npy" else read_table(file)


def _whole(file: Path, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integers from a column of text (read as float64)."""
    if values.dtype.kind != "f":
        return values
    bad = np.flatnonzero(~(np.abs(values) < 2**53) | (values != np.floor(values)))
    if len(bad):
        raise DataError(f"{file}: must hold whole numbers, got {values[bad[0]]} in row {bad[0]}")
    return values.astype(np.int64)


def _column(file: Path) -> np.ndarray[Any, Any]:
    """One integer per row."""
    values = _read(file)
    if values.ndim == 2 and values.shape[1] > 1:
        raise DataError(f"{file}: must have one column, got {values.shape[1]}")
    return _whole(file, values.reshape(-1))


def _edges(file: Path) -> tuple[Any, Any, Any]:
    table = _read(file)
    if table.size == 0:
        nothing = np.empty(0, np.int64)
        return nothing, nothing, None
    if table.ndim != 2 or table.shape[1] not in (2, 3):
        raise DataError(
            f"{file}: must have columns source, target and optionally weight, got shape "
            f"{list(table.shape)}"
        )
    source, target = (_whole(file, table[:, column]) for column in (0, 1))
    return source, target, table[:, 2] if table.shape[1] == 3 else None


def _features(file: Path) -> Any:
    if file.suffix != ".npz":
        return _read(file)
    npz = NpzFile(file)  # the layout of scipy.sparse.save_npz
    kind = npz.read("format").tolist() if "format" in npz else b"csr"
    if kind not in (b"csr", "csr"):
        raise DataError(f"{file} [format]: must be csr; save x.tocsr(), got {str(kind)[:40]}")
    return npz.read_csr(("data", "indices", "indptr", "shape"))


def _masks(folder: Path, num_nodes: int) -> Masks | None:
    if (folder / "split.csv").exists():
        nodes = _split_words(folder / "split.csv", num_nodes)
    else:
        files = {name: _find(folder, name, (".txt", ".npy")) for name in _SPLITS}
        if not any(files.values()):
            return None
        missing = [name for name, file in files.items() if file is None]
        if missing:
            raise DataError(f"{folder}: must hold train, val and test, got no {missing[0]}.txt")
        nodes = {name: _column(file) for name, file in files.items() if file is not None}
    return masks_from_nodes(num_nodes, **nodes)


def _split_words(file: Path, num_nodes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Nodes of each split from one word per line."""
    with blame(file):
        words = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    first = 1
    if words and words[0] == "split":
        words, first = words[1:], 2
    bad = next((row for row, word in enumerate(words) if word not in _WORDS), None)
    if bad is not None:
        raise DataError(
            f"{file}, line {bad + first}: must be train, val, test or none, got {words[bad][:40]!r}"
        )
    if len(words) != num_nodes:
        raise DataError(f"{file}: must have one line per node, N={num_nodes}, got {len(words)}")
    codes = np.array([_WORDS[word] for word in words])
    return {name: np.flatnonzero(codes == _WORDS[name]) for name in _SPLITS}


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
