"""R-MAT graphs of any size as CSR, row block by row block: nothing but the graph is held whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from abkd_fast import CSRGraph

A, B, C, D = 0.57, 0.19, 0.19, 0.05  # Graph500's quadrants
_DIGITS = 12  # binary digits of the probability of a column's bit
_BLOCK = 1 << 16  # rows


def rmat_rows(num_nodes: int, degree: int, seed: int = 0) -> CSRGraph:
    """R-MAT (Chakrabarti et al. 2004) of N nodes and degree * N edges, numbers shuffled.

    Given its row, the bits of an edge's column are independent: 1 with probability B / (A + B)
    where the row's bit is 0, with D / (C + D) where it is 1 (to 2^-12). So rows get their numbers
    of edges first, a multinomial draw, and columns are drawn block by block, 32 bits at once.
    Edges are those of the next power of two with both ends < N. Repeats and loops are kept.
    """
    generator = np.random.default_rng(seed)
    bits = max(1, (num_nodes - 1).bit_length())
    number = generator.permutation(num_nodes).astype(np.int32)  # of a node in the graph, by id
    ids = np.empty_like(number)
    ids[number] = np.arange(num_nodes, dtype=np.int32)
    rowptr = np.zeros(num_nodes + 1, np.int32)
    total = degree * num_nodes
    col = np.empty(total, np.int32)
    left_edges, left_mass = total, _mass(ids, bits).sum()
    for rows in _blocks(num_nodes):
        mass = _mass(ids[rows], bits)
        share = min(1.0, mass.sum() / left_mass)
        count = left_edges if rows.stop == num_nodes else generator.binomial(left_edges, share)
        counts = generator.multinomial(count, mass / mass.sum())
        begin = total - left_edges
        rowptr[rows.start + 1 : rows.stop + 1] = begin + counts.cumsum()
        source = np.repeat(ids[rows].astype(np.uint32), counts)
        col[begin : begin + count] = number[_columns(generator, source, num_nodes, bits)]
        left_edges, left_mass = left_edges - count, left_mass - mass.sum()
    return CSRGraph.from_csr(torch.from_numpy(rowptr), torch.from_numpy(col))


def _blocks(num_nodes: int) -> Iterator[slice]:
    for start in range(0, num_nodes, _BLOCK):
        yield slice(start, min(start + _BLOCK, num_nodes))


def _mass(ids: NDArray[np.int32], bits: int) -> NDArray[np.float64]:
    """Unnormalised probability of a row: (A + B) for every 0 of its id, (C + D) for every 1."""
    ones = np.bitwise_count(ids)
    return ((A + B) ** np.arange(bits, -1, -1) * (C + D) ** np.arange(bits + 1))[ones]


def _columns(
    generator: np.random.Generator, rows: NDArray[np.uint32], num_nodes: int, bits: int
) -> NDArray[np.uint32]:
    """A column < N for every row, ids both."""
    found = _bernoulli_bits(generator, rows) & np.uint32((1 << bits) - 1)
    outside = np.flatnonzero(found >= num_nodes)
    if len(outside):
        found[outside] = _columns(generator, rows[outside], num_nodes, bits)
    return found


def _bernoulli_bits(generator: np.random.Generator, rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """32 independent bits a row; from binary digits of their probability, the last one first."""
    words = np.zeros((2, len(rows)), np.uint32)
    digits = [round(p * 2**_DIGITS) for p in (B / (A + B), D / (C + D))]
    for k in range(_DIGITS):
        draw = generator.integers(0, 1 << 32, len(rows), dtype=np.uint32)
        for word, digit in zip(words, digits, strict=True):
            (np.bitwise_or if digit >> k & 1 else np.bitwise_and)(word, draw, out=word)
    return (words[0] & ~rows) | (words[1] & rows)
