"""CSR matrices from parts that come out of files."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

_MAX_SIDE = 2**31 - 1


def checked_csr(data: Any, indices: Any, indptr: Any, shape: Any) -> scipy.sparse.csr_array:
    """A csr_array from untrusted parts; every invariant is checked.

    Args:
        data: [nnz] numbers.
        indices: [nnz] integers in [0, columns).
        indptr: [rows + 1] integers; starts at 0, never decreases, ends at nnz.
        shape: (rows, columns).

    Raises:
        ValueError: names the part, the expectation and the value.
    """
    sides = np.asarray(shape if isinstance(shape, tuple | list | np.ndarray) else ()).ravel()
    if len(sides) != 2 or sides.dtype.kind not in "iu":
        raise ValueError(f"shape of a sparse matrix must be (rows, columns), got {str(shape)[:60]}")
    rows, columns = int(sides[0]), int(sides[1])
    if not (0 <= rows <= _MAX_SIDE and 0 <= columns <= _MAX_SIDE):
        raise ValueError(f"shape of a sparse matrix must fit 31 bits, got ({rows}, {columns})")
    for name, part, kinds in (
        ("data", data, "biuf"),
        ("indices", indices, "iu"),
        ("indptr", indptr, "iu"),
    ):
        if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype.kind not in kinds:
            found = (
                f"{part.dtype}{list(part.shape)}" if isinstance(part, np.ndarray) else type(part)
            )
            raise ValueError(f"{name} of a sparse matrix must be a vector of numbers, got {found}")
    data, indices, indptr = (
        part.astype(part.dtype.newbyteorder("=")) for part in (data, indices, indptr)
    )
    if len(indptr) != rows + 1:
        raise ValueError(f"indptr must hold rows + 1 = {rows + 1} entries, got {len(indptr)}")
    if len(indices) != len(data):
        raise ValueError(f"indices and data must be equally long, got {len(indices)}, {len(data)}")
    if indptr[0] != 0 or indptr[-1] != len(data) or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(f"indptr must rise from 0 to nnz={len(data)} without a decrease")
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= columns):
        raise ValueError(
            f"indices must lie in [0, columns={columns}), got values from {indices.min()} "
            f"to {indices.max()}"
        )
    return scipy.sparse.csr_array((data, indices, indptr), shape=(rows, columns))
