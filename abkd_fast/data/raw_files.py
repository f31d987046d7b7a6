"""The raw files of one data set, in a folder or inside a zip archive that is never unpacked."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from abkd_fast.data.errors import DataError, blame
from abkd_fast.data.zip_file import DAMAGED, check_expansion, open_member, zip_members

_PARTS = ("raw", "split", "mapping")


class RawFiles:
    """Files by their name below the data set's folder, ``raw/edge.csv.gz`` for one.

    An archive is read in place: whatever names it holds, nothing is written to them. Members of an
    archive may lie in one folder at the top, as OGB's do.

    Args:
        path: a folder or a .zip file.

    Raises:
        DataError: the path is neither, the archive is damaged, or it holds names that leave it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members: dict[str, zipfile.ZipInfo] = {}
        if path.is_dir():
            return
        members = [member for member in zip_members(path) if not member.is_dir()]
        for member in members:
            _check_member(path, member)
        top = _top(path, [member.filename for member in members])
        self._members = {
            member.filename.removeprefix(top): member
            for member in members
            if member.filename.startswith(top)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._members if self._members else (self.path / name).is_file()

    def names(self) -> list[str]:
        """All files under raw/, split/ and mapping/, sorted."""
        if self._members:
            return sorted(self._members)
        found = (file for part in _PARTS for file in (self.path / part).rglob("*"))
        return sorted(file.relative_to(self.path).as_posix() for file in found if file.is_file())

    def where(self, name: str) -> str:
        """How messages call a file."""
        return f"{self.path} [{name}]" if self._members else str(self.path / name)

    def size(self, name: str) -> int:
        """Stored size in bytes."""
        return self._members[name].file_size if self._members else (self.path / name).stat().st_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The bytes of a file; gzipped ones (``.gz``) are expanded as they are read.

        Raises:
            DataError: the file is missing or damaged.
        """
        where = self.where(name)
        if name not in self:
            raise DataError(f"{where}: no such file")
        with blame(where):
            try:
                with self._stored(name) as stored:
                    if name.endswith(".gz"):
                        with gzip.open(stored) as expanded:
                            yield cast(IO[bytes], expanded)
                    else:
                        yield stored
            except DAMAGED as error:
                raise DataError(f"{where}: truncated or damaged: {error}") from error

    @contextmanager
    def _stored(self, name: str) -> Iterator[IO[bytes]]:
        if not self._members:
            with (self.path / name).open("rb") as file:
                yield file
            return
        with open_member(self.path, self._members[name], self.where(name)) as member:
            yield member

    def copy(self, name: str, target: Path) -> None:
        """Write a file, as stored, to ``target``."""
        with blame(self.where(name)), self._stored(name) as stored, target.open("wb") as file:
            shutil.copyfileobj(stored, file, 1 << 20)

    def record(self) -> dict[str, dict[str, int | str]]:
        """{file: {"bytes", "sha256"}} of all stored files; of the archive where it is one."""
        if self._members:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {self.path.name: {"bytes": self.path.stat().st_size, "sha256": digest}}
        facts: dict[str, dict[str, int | str]] = {}
        for name in self.names():
            with (self.path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            facts[name] = {"bytes": self.size(name), "sha256": digest}
        return facts

    def signature(self) -> str:
        """SHA-256 over place, names, sizes and times: changes when a file is replaced."""
        files = [self.path] if self._members else [self.path / name for name in self.names()]
        facts = [f"{self.path.resolve()}"]
        for file in files:
            stat = file.stat()
            facts.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
        raise DataError(f"{path}: unsafe archive: holds a file called {member.filename[:80]!r}")
    check_expansion(member, f"{path} [{member.filename[:80]}]")


def _top(path: Path, names: list[str]) -> str:
    """What stands before ``raw/`` in the archive's names: nothing, or one folder and a slash."""
    tops = {name.split("raw/")[0] for name in names if name.startswith("raw/") or "/raw/" in name}
    if len(tops) != 1 or next(iter(tops)).count("/") > 1:
        found = ", ".join(sorted(names)[:5])
        raise DataError(
            f"{path}: must hold one folder raw/, at the top or in one folder, got {found}"
        )
    return tops.pop()
