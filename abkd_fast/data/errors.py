"""DataError: what every reader of this package raises when a file is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """A data file is missing, broken, unsafe or inconsistent; the message names the file."""


@contextmanager
def blame(path: Path | str) -> Iterator[None]:
    """Turn every ValueError and OSError raised inside into a DataError that names ``path``."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
