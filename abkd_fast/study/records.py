"""Finished runs on disk: lines of JSON that are only ever added to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records:
    """A file with one record a line; a record that was appended survives every kill.

    Of several records with one key the last counts.

    Args:
        path: read if it is there; a last line that a kill cut off is taken away.
        retry: do as if there were no records with an error.

    Raises:
        ValueError: a line is not a record; names it.
    """

    def __init__(self, path: Path, retry: bool = False) -> None:
        self.path = path
        self._found: dict[str, Record] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                self._found[record["key"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path} must hold one JSON record with a key in every line, got {error!r} "
                    f"in line {number}; restore the file from version control"
                ) from error
        if retry:
            self._found = {k: r for k, r in self._found.items() if not r.get("error")}
        self._whole = whole if whole < len(content) else None

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._whole is not None:
            os.truncate(self.path, self._whole)
            self._whole = None
        with self.path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[record["key"]] = record

    def get(self, key: str) -> Record | None:
        """The record of that key."""
        return self._found.get(key)

    def all(self) -> list[Record]:
        """Every record that counts, in the order of their first appearance."""
        return list(self._found.values())
