"""Tensors and JSON in one safetensors file: atomic, checksummed, versioned, never executes code."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it over ``path``.

    After a crash, a kill or a full disk ``path`` holds either the old content or the new one.

    Raises:
        OSError: names ``path``; the disk is full or the folder not writable.
    """
    try:
        _write(path, write)
    except OSError as error:
        raise OSError(
            f"could not write {path}: {error}; an earlier file of that name is unharmed. "
            "Free some space or choose another folder"
        ) from error


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide reports from others
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold ``path`` for this process, so that two runs cannot share a folder; ValueError if held.

    The lock ends with the process, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{path.parent} must be free, got a folder that another run is writing to; "
                "wait for it or choose another folder"
            ) from None
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], kind: str
) -> None:
    """Write tensors and a JSON-able ``meta`` to ``path``.

    Raises:
        OSError: the disk is full or the folder not writable; an existing file is left as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    sha256 = check_sum(tensors, text).hexdigest()
    header = {"format": str(FORMAT), "kind": kind, "sha256": sha256, "meta": text}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote; tensors stay memory-mapped until they are changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, truncated, of another kind or version, or damaged.
    """
    from safetensors import safe_open

    header = read_header(path, kind)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_digest(path, header, check_sum(tensors, header["meta"]).hexdigest())
    return tensors, json.loads(header["meta"])


def read_header(path: Path, kind: str) -> dict[str, str]:
    """``sha256`` and ``meta`` of a file that :func:`save_tensors` wrote; raises as `load_tensors`.

    Tensors and checksum are not looked at.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} must be a complete safetensors file, got: {error}; "
            "it is truncated or something else, delete it and make it again"
        ) from error
    if header.get("kind") != kind:
        raise ValueError(f"{path} must be a {kind} file, got kind {header.get('kind')!r}")
    if header.get("format") != str(FORMAT):
        raise ValueError(
            f"{path} must have format version {FORMAT}, got {header.get('format')!r}; "
            "it was written by another version of abkd_fast"
        )
    return {"sha256": header.get("sha256", ""), "meta": header.get("meta", "")}


def check_digest(path: Path, header: Mapping[str, str], found: str) -> None:
    """Raise ValueError unless the checksum in the header is the one that was found."""
    if header["sha256"] != found:
        raise ValueError(
            f"{path} must have sha256 {header['sha256']}, got {found}; "
            "the file is damaged, delete it and make it again"
        )


def check_sum(tensors: Mapping[str, Tensor], text: str) -> Any:
    """SHA-256 over a text and tensors in the order of their names, as a hashlib object."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(tensor_head(name, tensor.dtype, tensor.shape))
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest


def tensor_head(name: str, dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """What the checksum takes of a tensor before its bytes."""
    return f"{name} {dtype} {list(shape)}".encode()
