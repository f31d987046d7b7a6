"""Zip archives of unknown origin, read in place."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from abkd_fast.data.errors import DataError, blame

MAX_INFLATED = 1 << 28  # members above this many bytes must not expand more than
MAX_RATIO = 200  # this many times
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)  # what reading may raise
# What zipfile raises for a compression that it does not know, and for a member that is encrypted.
_UNREADABLE = (NotImplementedError, RuntimeError)


def zip_members(path: Path, kind: str = "zip archive") -> list[zipfile.ZipInfo]:
    """The archive's table of contents.

    Raises:
        DataError: there is no archive, or it is damaged; calls it ``kind``.
    """
    with blame(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.infolist()
        except (*DAMAGED, NotImplementedError) as error:
            raise DataError(f"{path}: not a readable {kind}: {error}") from error


def check_expansion(member: zipfile.ZipInfo, where: str) -> None:
    """Raise DataError, which calls the member ``where``, if it looks like a zip bomb."""
    if member.file_size > max(MAX_INFLATED, MAX_RATIO * member.compress_size):
        raise DataError(
            f"{where}: expands from {member.compress_size} to {member.file_size} bytes, which "
            "looks like a zip bomb; if it is real, store it without compression"
        )


@contextmanager
def open_member(path: Path, member: zipfile.ZipInfo, where: str) -> Iterator[IO[bytes]]:
    """The bytes of a member; reading may raise one of ``DAMAGED``.

    Raises:
        DataError: the member is encrypted or compressed in an unknown way; calls it ``where``.
    """
    with zipfile.ZipFile(path) as archive:
        try:
            file = archive.open(member)
        except _UNREADABLE as error:
            raise DataError(f"{where}: not readable: {error}") from error
        with file:
            yield file
