"""Graphs that break kernels, and the one tolerance table: for our tests and for yours."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._csr import Structure
from abkd_fast.graph import CSRGraph

# What a result may be off by beyond twice plain torch's own error, relative to the largest
# exact entry (or 1): about the unit in the last place.
FLOOR = {
    torch.float64: 1e-14,
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}

GRAPHS = (
    "no-nodes",
    "no-edges",
    "self-loop",
    "isolated",
    "duplicates",
    "unsorted",
    "wide",
    "tall",
    "hub",
    "power-law",
)


def random_graph(
    num_dst: int,
    num_src: int | None = None,
    *,
    mean_degree: float = 4.0,
    power_law: bool = False,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> CSRGraph:
    """A random graph whose columns are unsorted and may repeat within a row.

    Args:
        num_dst: number of rows.
        num_src: number of columns; default: num_dst.
        mean_degree: edges per row on average.
        power_law: few rows and columns have most of the edges, as in real graphs.
        dtype: dtype of normally distributed weights; None for an unweighted graph.
        seed: same seed, same graph.
    """
    num_src = num_dst if num_src is None else num_src
    generator = torch.Generator().manual_seed(seed)
    num_edges = round(num_dst * mean_degree) if num_src else 0

    def draw(size: int) -> Tensor:
        if num_edges == 0:
            return torch.zeros(0, dtype=torch.int64)
        weights = torch.arange(1, size + 1).double() ** (-1.2 if power_law else 0.0)
        weights = weights[torch.randperm(size, generator=generator)]
        return torch.multinomial(weights, num_edges, replacement=True, generator=generator)

    degree = torch.bincount(draw(num_dst), minlength=num_dst)
    rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    col = draw(num_src)
    value = None
    if dtype is not None:
        value = torch.randn(num_edges, generator=generator, dtype=torch.float64).to(dtype)
    return CSRGraph.from_csr(rowptr, col, value, num_src)


def sample_graph(name: str, dtype: torch.dtype | None = None) -> CSRGraph:
    """One of ``GRAPHS``: small, each with a property that kernels get wrong.

    Args:
        name: no nodes at all, no edges, one self-loop, rows and columns without edges, repeated
            edges, unsorted columns, more sources than destinations, fewer, one row that owns
            nearly all edges, or a power law.
        dtype: dtype of the random weights; None for an unweighted graph.
    """
    if name == "power-law":
        return random_graph(65, mean_degree=6, power_law=True, dtype=dtype)
    if name == "hub":
        rows, cols = [300, 0, 1, 0, 2], torch.arange(303) % 5
        return _from_degrees(rows, cols, 5, dtype)
    small: dict[str, tuple[list[int], list[int], int]] = {
        "no-nodes": ([], [], 0),
        "no-edges": ([0, 0, 0], [], 4),
        "self-loop": ([1], [0], 1),
        "isolated": ([0, 2, 0, 1, 0], [1, 3, 1], 5),
        "duplicates": ([3, 2], [1, 1, 1, 0, 0], 2),
        "unsorted": ([3, 3, 1], [2, 0, 1, 1, 2, 0, 2], 3),
        "wide": ([2, 1], [6, 0, 3], 7),
        "tall": ([1, 0, 2, 1, 1, 1], [0, 1, 0, 1, 1, 0], 2),
    }
    if name not in small:
        raise ValueError(f"name must be one of {', '.join(GRAPHS)}, got {name!r}")
    rows, columns, num_src = small[name]
    return _from_degrees(rows, torch.tensor(columns, dtype=torch.int64), num_src, dtype)


def wide_indices(graph: CSRGraph) -> CSRGraph:
    """The same graph with int64 indices, which otherwise only huge graphs have."""
    structure = Structure(graph.rowptr.long(), graph.col.long(), graph.num_src)
    return CSRGraph(structure, graph.value)


def assert_no_worse(out: Tensor, exact: Tensor, plain: Tensor, what: str = "out") -> None:
    """Assert that ``out`` is about as exact as plain torch in the same dtype.

    Args:
        out: the result under test.
        exact: the same in float64.
        plain: the same from plain torch in the dtype of ``out``.
        what: name of the result, for the message.
    """
    assert out.dtype == plain.dtype, f"{what} has dtype {out.dtype}, expected {plain.dtype}"
    assert out.shape == exact.shape, f"{what} has shape {out.shape}, expected {exact.shape}"
    if out.numel() == 0:
        return
    error = float((out.double() - exact).abs().max())
    plain_error = float((plain.double() - exact).abs().max())
    bound = 2 * plain_error + FLOOR[out.dtype] * max(1.0, float(exact.abs().max()))
    assert error <= bound, f"{what} is off by {error:.3g}; plain torch by {plain_error:.3g}"


def _from_degrees(
    degrees: list[int], col: Tensor, num_src: int, dtype: torch.dtype | None
) -> CSRGraph:
    rowptr = torch.tensor([0, *degrees]).cumsum(0)
    generator = torch.Generator().manual_seed(len(col))
    value = None
    if dtype is not None:
        value = torch.randn(len(col), generator=generator, dtype=torch.float64).to(dtype)
    return CSRGraph.from_csr(rowptr, col, value, num_src)
