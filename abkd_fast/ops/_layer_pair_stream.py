"""layer_pair's passes over a teacher that is not held whole where the student is, in row blocks.

A pass is a sum over nodes, and the gradient of the states has a row a node: run on blocks of rows
one after the other, its float64 sums are added in order and its rows put side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from abkd_fast._mapped import mapped_file
from abkd_fast._staging import blocks_on
from abkd_fast.memory import empty_output
from abkd_fast.ops._layer_pair_blocks import Block, NodeSet

_BLOCK_BYTES = 2**25  # of the teacher, at least
_BLOCK_SUMS = 16  # times the sums that are added a block, at least

# Of teacher, student states, nodes and weight of a block: sums over its nodes, then the gradient
# of its states, [rows, sum d_j] or no rows.
Pass = Callable[[Tensor, list[Tensor], Tensor | None, Tensor | None], tuple[Tensor, ...]]


def is_streamed(teacher: Tensor, device: torch.device) -> bool:
    """Whether the teacher is read block by block: from another device, or from a mapped file."""
    return teacher.device != device or mapped_file(teacher) is not None


def sum_nodes(given: NodeSet, run: Pass) -> tuple[Tensor, ...]:
    """``run`` over all nodes that count: at once, or block by block where the teacher streams."""
    device = given.states[0].device
    if not is_streamed(given.teacher, device):
        return run(given.teacher, given.states, given.nodes, given.weight)
    parts = _split(given)
    totals: list[Tensor] = []
    dstates = given.state_gradients(False)
    num_nodes = given.teacher.size(0)
    blocks = blocks_on(given.teacher, [part.rows for part in parts], device)
    for part, teacher in zip(parts, blocks, strict=True):
        states = [state[part.rows] for state in given.states]
        *sums, gradient = run(teacher, states, part.nodes, part.weight)
        totals = [a.add_(b) for a, b in zip(totals, sums, strict=True)] if totals else sums
        if gradient.size(0):
            if not dstates.size(0):
                dstates = empty_output(gradient, num_nodes, gradient.size(1))
                dstates = dstates if given.nodes is None else dstates.zero_()
            dstates[part.rows] = gradient
    return (*totals, dstates)


def node_blocks(given: NodeSet) -> Iterator[Block]:
    """``given.blocks()``, wherever the teacher is."""
    device = given.states[0].device
    if not is_streamed(given.teacher, device):
        yield from given.blocks()
        return
    parts = _split(given)
    blocks = blocks_on(given.teacher, [part.rows for part in parts], device)
    for part, teacher in zip(parts, blocks, strict=True):
        states, first = [state[part.rows] for state in given.states], part.rows.start
        of_part = replace(
            given, teacher=teacher, states=states, nodes=part.nodes, weight=part.weight
        )
        for block in of_part.blocks():
            yield block._replace(rows=_shifted(block.rows, first))


def _shifted(rows: slice | Tensor, by: int) -> slice | Tensor:
    return rows + by if isinstance(rows, Tensor) else slice(rows.start + by, rows.stop + by)


def block_rows(given: NodeSet) -> int:
    """Rows of a block: enough to make small beside it what is done once a block."""
    width = given.teacher.size(1)
    sums = 8 * width * sum(given.student_widths)
    return max(max(_BLOCK_BYTES, _BLOCK_SUMS * sums) // (width * given.teacher.element_size()), 1)


class _Part(NamedTuple):
    """The nodes that count among some neighbouring rows."""

    rows: slice
    nodes: Tensor | None  # less rows.start
    weight: Tensor | None


def _split(given: NodeSet) -> list[_Part]:
    """Blocks of rows, without those in which no node counts."""
    teacher, nodes, weight = given.teacher, given.nodes, given.weight
    num_rows, step = teacher.size(0), block_rows(given)
    starts = list(range(0, num_rows, step))
    spans = [slice(start, min(start + step, num_rows)) for start in starts]
    if nodes is None:
        return [_Part(span, None, None if weight is None else weight[span]) for span in spans]
    edges = torch.tensor([*starts, num_rows], device=nodes.device)
    ends = torch.searchsorted(nodes, edges).tolist()
    return [
        _Part(span, nodes[first:last] - span.start, None if weight is None else weight[first:last])
        for span, first, last in zip(spans, ends[:-1], ends[1:], strict=True)
        if first < last
    ]
