"""CSR arrays: building, checking, transposing, counting."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from abkd_fast._checks import accumulation_dtype, check_tensor

_INT32_MAX = 2**31 - 1
_Method = TypeVar("_Method", bound=Callable[..., Any])


def outside_inference(method: _Method) -> _Method:
    """Let ``method`` make normal tensors under ``torch.inference_mode`` too.

    What it computes is kept, and inference tensors could not take part in training later.
    """

    @functools.wraps(method)
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return method(*args)
        with torch.inference_mode(False), torch.no_grad():
            return method(*args)

    return call  # type: ignore[return-value]


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

    @outside_inference
    def transpose(self) -> tuple[Structure, Tensor]:
        """Return the transposed structure and, per transposed edge, its index in this one."""
        if self._transpose is None:
            perm = torch.argsort(self.col, stable=True)
            rowptr = pointers(self.col, self.num_src, self.rowptr.dtype)
            col = self.row()[perm].to(self.col.dtype)
            self._transpose = (Structure(rowptr, col, self.num_dst), perm)
        return self._transpose


@dataclass(frozen=True)
class DegreeStats:
    """In-degree statistics of a graph; degrees count stored edges, not weights."""

    num_dst: int
    num_src: int
    num_edges: int
    mean: float
    median: float
    max: int
    isolated: int
    self_loops: int


class CSRParts:
    """The arrays of a CSR matrix [num_dst, num_src] and what is read off them."""

    def __init__(self, structure: Structure, value: Tensor | None) -> None:
        self._structure = structure
        self._value = value

    @property
    def rowptr(self) -> Tensor:
        """[num_dst + 1] row pointers."""
        return self._structure.rowptr

    @property
    def col(self) -> Tensor:
        """[E] source of every edge."""
        return self._structure.col

    @property
    def value(self) -> Tensor | None:
        """[E] edge weights, or None for an unweighted graph."""
        return self._value

    @property
    def num_dst(self) -> int:
        """Number of rows (destinations)."""
        return self._structure.num_dst

    @property
    def num_src(self) -> int:
        """Number of columns (sources)."""
        return self._structure.num_src

    @property
    def num_edges(self) -> int:
        """Number of stored entries E."""
        return self.col.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """(num_dst, num_src)."""
        return self.num_dst, self.num_src

    @property
    def device(self) -> torch.device:
        """Device of all arrays."""
        return self.col.device

    def row(self) -> Tensor:
        """[E] int64 destination of every edge."""
        return self._structure.row()

    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rowptr, col, perm) of the transpose; perm maps its edges to edges of this graph."""
        structure, perm = self._structure.transpose()
        return structure.rowptr, structure.col, perm

    def degree_stats(self) -> DegreeStats:
        """In-degree statistics (one pass; moves a few numbers to the host)."""
        degree = self.rowptr.diff()
        empty = degree.numel() == 0
        return DegreeStats(
            num_dst=self.num_dst,
            num_src=self.num_src,
            num_edges=self.num_edges,
            mean=0.0 if empty else float(degree.double().mean()),
            median=0.0 if empty else float(degree.double().median()),
            max=0 if empty else int(degree.max()),
            isolated=int((degree == 0).sum()),
            self_loops=int((self.row() == self.col).sum()),
        )

    def fingerprint(self) -> str:
        """SHA-256 over shape, indices and weights: equal graphs have equal fingerprints."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for part in (self.rowptr.long(), self.col.long(), self.value):
            if part is not None:
                digest.update(tensor_bytes(part))
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Shape, edges, weight dtype and device."""
        weight = "unweighted" if self.value is None else str(self.value.dtype)
        shape = f"num_dst={self.num_dst}, num_src={self.num_src}, num_edges={self.num_edges}"
        return f"CSRGraph({shape}, {weight}, {self.device})"

    def _values_or_ones(self) -> Tensor:
        if self.value is not None:
            return self.value
        return torch.ones(self.num_edges, device=self.device)

    def _row_sums(self) -> Tensor:
        """[num_dst] in the accumulation dtype: 16-bit sums would stop at a few thousand."""
        if self.value is None:
            return self.rowptr.diff().to(torch.get_default_dtype())
        value = self.value.to(accumulation_dtype(self.value))
        return value.new_zeros(self.num_dst).index_add(0, self.row(), value)

    def _check_square(self, method: str) -> None:
        if self.num_dst != self.num_src:
            raise ValueError(
                f"{method}() needs a square graph, got num_dst={self.num_dst}, "
                f"num_src={self.num_src}"
            )


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


def tensor_bytes(value: Tensor) -> Any:
    """The memory of a tensor of any dtype and device, as hashlib takes it."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def check_count(name: str, value: object) -> int:
    """Return ``value`` as an int, or raise ValueError unless it is a whole number >= 0."""
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if count < 0:
        raise ValueError(f"{name} must be >= 0, got {count}")
    return count


def check_pointers(rowptr: Tensor, num_edges: int, name: str = "rowptr") -> None:
    """Raise ValueError unless ``rowptr`` starts at 0, never decreases and ends at num_edges."""
    if rowptr.is_meta:
        raise ValueError(f"{name} must be on a device that holds data, got meta")
    first, last = int(rowptr[0]), int(rowptr[-1])
    if first != 0:
        raise ValueError(f"{name} must start at 0, got {name}[0]={first}")
    # Compared, not subtracted: a difference of hostile pointers wraps around and looks positive.
    drops = (rowptr[1:] < rowptr[:-1]).nonzero()
    if len(drops):
        i = int(drops[0])
        raise ValueError(
            f"{name} must not decrease, got {name}[{i}]={int(rowptr[i])} > "
            f"{name}[{i + 1}]={int(rowptr[i + 1])}"
        )
    if last != num_edges:
        raise ValueError(f"{name} must end at E={num_edges} (the length of col), got {last}")


def check_range(name: str, index: Tensor, size: int, size_name: str) -> None:
    """Raise ValueError unless all entries lie in [0, size)."""
    if index.numel() == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} must lie in [0, {size_name}={size}), got values from {low} to {high}"
        )


def check_nodes(graph: CSRParts, nodes: Tensor) -> None:
    """Raise ValueError unless ``nodes`` are distinct nodes of a square ``graph``."""
    if graph.num_dst != graph.num_src:
        raise ValueError(f"graph must be square, got {graph.shape}")
    check_tensor("nodes", nodes, dim=1, dtypes=[torch.int64], device=graph.device)
    check_range("nodes", nodes, graph.num_dst, "num_nodes")
    if (different := nodes.unique().numel()) != nodes.numel():
        raise ValueError(
            f"nodes must be distinct, got {nodes.numel()} nodes of which {different} differ; "
            "use nodes.unique()"
        )
