"""CSR index arrays: building, checking, transposing."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

_INT32_MAX = 2**31 - 1


class Structure:
    """Row pointers and columns of a matrix, with the transpose computed at most once."""

    def __init__(self, rowptr: Tensor, col: Tensor, num_src: int) -> None:
        self.rowptr = rowptr
        self.col = col
        self.num_src = num_src
        self._transpose: tuple[Structure, Tensor] | None = None

    @property
    def num_dst(self) -> int:
        """Number of rows."""
        return self.rowptr.numel() - 1

    def row(self) -> Tensor:
        """Destination of every edge, int64 [E]."""
        degree = self.rowptr.diff()
        rows = torch.arange(self.num_dst, device=self.col.device)
        return rows.repeat_interleave(degree.long(), output_size=self.col.numel())

    def transpose(self) -> tuple[Structure, Tensor]:
        """Return the transposed structure and, per transposed edge, its index in this one."""
        if self._transpose is None:
            perm = torch.argsort(self.col, stable=True)
            rowptr = pointers(self.col, self.num_src, self.rowptr.dtype)
            col = self.row()[perm].to(self.col.dtype)
            self._transpose = (Structure(rowptr, col, self.num_dst), perm)
        return self._transpose


def index_dtype(*sizes: int) -> torch.dtype:
    """int32, or int64 where a size does not fit."""
    return torch.int64 if max(sizes) > _INT32_MAX else torch.int32


def pointers(sorted_by: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Row pointers [size + 1] of edges that are grouped by the index ``sorted_by``."""
    counts = torch.bincount(sorted_by, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(dtype)


def lexsort(major: Tensor, minor: Tensor) -> Tensor:
    """Stable order by ``major``, then ``minor``."""
    by_minor = torch.argsort(minor, stable=True)
    return by_minor[torch.argsort(major[by_minor], stable=True)]


def check_count(name: str, value: object) -> int:
    """Return ``value`` as an int, or raise ValueError unless it is a whole number >= 0."""
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if count < 0:
        raise ValueError(f"{name} must be >= 0, got {count}")
    return count


def check_pointers(rowptr: Tensor, num_edges: int) -> None:
    """Raise ValueError unless ``rowptr`` starts at 0, never decreases and ends at num_edges."""
    if rowptr.is_meta:
        raise ValueError("rowptr must be on a device that holds data, got meta")
    first, last = int(rowptr[0]), int(rowptr[-1])
    if first != 0:
        raise ValueError(f"rowptr must start at 0, got rowptr[0]={first}")
    # Compared, not subtracted: a difference of hostile pointers wraps around and looks positive.
    drops = (rowptr[1:] < rowptr[:-1]).nonzero()
    if len(drops):
        i = int(drops[0])
        raise ValueError(
            f"rowptr must not decrease, got rowptr[{i}]={int(rowptr[i])} > "
            f"rowptr[{i + 1}]={int(rowptr[i + 1])}"
        )
    if last != num_edges:
        raise ValueError(f"rowptr must end at E={num_edges} (the length of col), got {last}")


def check_range(name: str, index: Tensor, size: int, size_name: str) -> None:
    """Raise ValueError unless all entries lie in [0, size)."""
    if index.numel() == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} must lie in [0, {size_name}={size}), got values from {low} to {high}"
        )
