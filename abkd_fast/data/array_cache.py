"""Arrays that were parsed once, kept as memory-mapped .npy files with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
_MANIFEST = "manifest.json"


class ArrayWriter:
    """Hands out .npy files for named arrays while a cache is being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}

    def path(self, key: str) -> Path:
        """The file for array ``key``; numbered, so that a key may hold any characters."""
        return self.folder / self.files.setdefault(key, f"{len(self.files)}.npy")

    def add(self, key: str, array: np.ndarray[Any, Any]) -> None:
        """Keep an array that is in memory."""
        np.save(self.path(key), array, allow_pickle=False)


class ArrayCache:
    """Memory-mapped arrays by name (copy on write: the files never change), and facts on them.

    Attributes:
        arrays: by key.
        about: JSON-able facts that ``build`` returned, sizes and checksums of the sources among
            them.
    """

    def __init__(self, arrays: dict[str, np.ndarray[Any, Any]], about: dict[str, Any]) -> None:
        self.arrays, self.about = arrays, about


def cached_arrays(folder: Path, build: Callable[[ArrayWriter], dict[str, Any]]) -> ArrayCache:
    """Open the arrays in ``folder``; let ``build`` make them where they are missing or damaged.

    They are made in a folder beside it that is renamed when it is complete, so ``folder`` never
    holds half of them, and of two processes at work the first to finish wins. Every array is
    compared with its recorded SHA-256 when it is opened.

    Args:
        folder: of this cache.
        build: writes the arrays and returns facts about them, which JSON can hold.

    Raises:
        OSError: the folder cannot be written.
    """
    cache = _open(folder)
    if cache is not None:
        return cache
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        writer = ArrayWriter(temporary)
        about = build(writer)
        files = {
            key: {"file": name, **_facts(temporary / name)} for key, name in writer.files.items()
        }
        manifest = {"format": FORMAT, "arrays": files, "about": about}
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    cache = _open(folder)
    if cache is None:
        raise OSError(f"{folder} changed while it was being made; delete it and try again")
    return cache


def _publish(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder``, over a damaged one, but not over another's good one."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if _open(folder) is not None:
            return
        shutil.rmtree(folder)
        os.rename(temporary, folder)


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _open(folder: Path) -> ArrayCache | None:
    """The cache in ``folder``, or None unless it is whole and unharmed."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for key, facts in manifest["arrays"].items():
            path = folder / facts["file"]
            if _facts(path) != {"bytes": facts["bytes"], "sha256": facts["sha256"]}:
                return None
            arrays[key] = _map(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ArrayCache(arrays, manifest["about"])


def _map(path: Path) -> np.ndarray[Any, Any]:
    """Small arrays are read: an empty one cannot be mapped."""
    return np.load(path, mmap_mode="c" if path.stat().st_size > 1 << 12 else None)
