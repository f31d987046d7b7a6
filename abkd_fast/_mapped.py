"""Tensors over the bytes of a file, whose pages are given back when they have been read.

Pages of a mapped file count as resident memory from when they are read until the system needs
their place. A pass over a file that is larger than memory so pushes out everything else. Pages
that are dropped here stay in the system's file cache as long as there is room for them.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class MappedFile(mmap.mmap):
    """A file mapped for reading, and where in it the tensor starts."""

    offset: int

    def drop(self, x: Tensor) -> None:
        """Give back the pages of ``x``, a contiguous part of the tensor; reading brings them back.

        Pages that it shares with its neighbours go too.
        """
        if not x.numel() or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = self.offset + int(x.storage_offset()) * x.element_size()
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        self.madvise(mmap.MADV_DONTNEED, first, start + x.numel() * x.element_size() - first)


_FILES: WeakValueDictionary[int, MappedFile] = WeakValueDictionary()  # by address of the tensor


def map_tensor(path: Path, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor [*shape] that starts ``offset`` bytes into a file, read in place.

    It must not be written to: the memory is read-only.
    """
    if not math.prod(shape):
        return torch.empty(*shape, dtype=dtype)
    with path.open("rb") as file:
        mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.offset = offset
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        x = torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape), offset=offset)
    _FILES[x.untyped_storage().data_ptr()] = mapped
    return x.view(*shape)


def mapped_file(x: Tensor) -> MappedFile | None:
    """The file that holds ``x`` or the tensor it is a view of; None for any other tensor."""
    return _FILES.get(x.untyped_storage().data_ptr()) if x.device.type == "cpu" else None
