"""The relational layer: relation by relation, sums of neighbours straight into its weight.

One kernel serves every step: the rows of a relation's pairs are sums over their edges, or gathered;
they go through the relation's weight on tensor cores, or not; the result is added to the rows of
the pairs' nodes, or kept by pair. A node has one pair in a relation, and relations run one after
the other: nothing is added twice at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.conv import Layer, dot_precision
from abkd_fast.kernels.conv_backward import activation_gradient, weight_gradient
from abkd_fast.kernels.launch import MOST_REGISTERS, layer_blocks, tl_dtype
from abkd_fast.kernels.rows import load_row
from abkd_fast.kernels.spmm import sum_edges


# Where a relation's part of the stack begins, and how long it is, must not compile another kernel.
@triton.jit(
    do_not_specialize=["pairs"],
    do_not_specialize_on_alignment=["ptr_ptr", "gather_ptr", "node_ptr"],
)
def relation_kernel(
    ptr_ptr, col_ptr, value_ptr, gather_ptr, x_ptr, weight_ptr, node_ptr, out_ptr,
    pairs, width, width_out, stride_k, stride_m,
    MEAN: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R pairs and BLOCK_M columns; see :class:`Step`."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = pair < pairs
    first = tl.program_id(1) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    if ptr_ptr is not None:
        start, stop = load_row(ptr_ptr, pairs, pair)
    source = pair
    if gather_ptr is not None:
        source = tl.load(gather_ptr + pair, mask=live, other=0).to(tl.int64)
    out = tl.zeros([BLOCK_R, BLOCK_M], ACC)
    begin = 0 if weight_ptr is not None else first
    end = width if weight_ptr is not None else first + BLOCK_K
    for done in range(begin, end, BLOCK_K):
        k = done + tl.arange(0, BLOCK_K)
        if ptr_ptr is not None:
            tile = sum_edges(
                start, stop, col_ptr, value_ptr, None, None, x_ptr, width, k,
                ACC, BLOCK_R, BLOCK_E, BLOCK_K,
            )  # fmt: skip
            if MEAN:
                tile /= tl.maximum(stop - start, 1)[:, None].to(ACC)
        else:
            offset = source[:, None] * width + k[None, :]
            tile = tl.load(x_ptr + offset, mask=live[:, None] & (k < width)[None, :], other=0)
        if weight_ptr is not None:
            offset = k[:, None].to(tl.int64) * stride_k + m[None, :].to(tl.int64) * stride_m
            mask = (k < width)[:, None] & (m < width_out)[None, :]
            weight = tl.load(weight_ptr + offset, mask=mask, other=0)
            out = tl.dot(tile, weight, out, input_precision=PRECISION, out_dtype=ACC)
        else:
            out = tile
    node = pair
    if node_ptr is not None:
        node = tl.load(node_ptr + pair, mask=live, other=0).to(tl.int64)
    place = out_ptr + node[:, None] * width_out + m[None, :]
    mask = live[:, None] & (m < width_out)[None, :]
    if node_ptr is not None:
        out += tl.load(place, mask=mask, other=0)
    tl.store(place, out, mask=mask)


@dataclass
class Step:
    """Operands of :func:`relation_kernel`; None leaves a step out."""

    x: Tensor  # [*, K], contiguous
    pairs: int
    edges: tuple[Tensor, Tensor, Tensor | None] | None = None  # ptr, rows of x, weights
    mean: bool = False
    gather: Tensor | None = None  # rows of x where there are no edges; None: row = pair
    weight: Tensor | None = None  # [K, M], any strides
    nodes: Tensor | None = None  # rows of ``out`` that are added to; None: row = pair, written

    def run(self, out: Tensor | None = None) -> Tensor:
        """``out``, or a new [pairs, M]."""
        width = self.x.size(1)
        width_out = width if self.weight is None else self.weight.size(1)
        out = self.x.new_empty(self.pairs, width_out) if out is None else out
        if self.pairs == 0 or width_out == 0:
            return out
        transforms, aggregates = self.weight is not None, self.edges is not None
        block = layer_blocks(self.x, width, width_out, transforms, aggregates)
        edges = (None, None, None) if self.edges is None else self.edges
        strides = (0, 0) if self.weight is None else self.weight.stride()
        grid = triton.cdiv(self.pairs, block.rows), triton.cdiv(width_out, block.columns)
        relation_kernel[grid](
            *edges, self.gather, self.x, self.weight, self.nodes, out,
            self.pairs, width, width_out, *strides, MEAN=self.mean,
            PRECISION=dot_precision(self.x), ACC=tl_dtype(accumulation_dtype(self.x)),
            BLOCK_R=block.rows, BLOCK_E=block.edges, BLOCK_K=block.features,
            BLOCK_M=block.columns, num_warps=block.warps, num_stages=block.stages,
            maxnreg=MOST_REGISTERS,
        )  # fmt: skip
        return out


class Relation:
    """One relation's part of a stack; see ``abkd_fast/_relation_stack.py``."""

    def __init__(self, stack: Sequence[Tensor], pairs: Sequence[int], r: int) -> None:
        ptr, nodes, self.col, self.local = stack
        first, stop = pairs[r], pairs[r + 1]
        self.pairs, self.ptr, self.nodes = stop - first, ptr[first : stop + 1], nodes[first:stop]

    def sums(self, x: Tensor, value: Tensor | None, mean: bool, local: bool = False) -> Step:
        """Sums or means over the edges; ``local``: x has a row a pair of the other direction."""
        edges = (self.ptr, self.local if local else self.col, value)
        return Step(x, self.pairs, edges, mean)


def relational(
    stack: Sequence[Tensor],
    stack_t: Sequence[Tensor],
    pairs: Sequence[int],
    pairs_t: Sequence[int],
    roots: Sequence[int],
    x: Tensor,
    x_root: Tensor | None,
    weight: Tensor,
    root: Tensor | None,
    bias: Tensor | None,
    mean: bool,
    relu: bool,
    orders: Sequence[int],
) -> Tensor:
    """[rows, out]; the orders as in :func:`abkd_fast.ops.relational`."""
    x = x.contiguous()
    own = x if x_root is None else x_root.contiguous()
    parts = []
    for kind, first, count in _types(roots):
        offset = None if bias is None else bias[kind].contiguous()
        if root is not None:
            rows = own[first : first + count]
            parts.append(Layer(rows, count, weight=root[kind], bias=offset).run()[0])
        elif offset is not None:
            parts.append(offset.repeat(count, 1))
        else:
            parts.append(x.new_zeros(count, weight.size(2)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    for r, order in enumerate(orders):
        to = Relation(stack, pairs, r)
        if order < 0 or to.pairs == 0:
            continue
        if order == 0:
            step = to.sums(x, None, mean)
            step.weight = weight[r]
        else:
            of = Relation(stack_t, pairs_t, r)
            transformed = Step(x, of.pairs, gather=of.nodes, weight=weight[r]).run()
            step = to.sums(transformed, None, mean, local=True)
        step.nodes = to.nodes
        step.run(out)
    return out.relu_() if relu else out


def relational_backward(
    stack: Sequence[Tensor],
    stack_t: Sequence[Tensor],
    value_t: Tensor | None,
    pairs: Sequence[int],
    pairs_t: Sequence[int],
    roots: Sequence[int],
    dout: Tensor,
    out: Tensor | None,
    x: Tensor,
    x_root: Tensor | None,
    weight: Tensor,
    root: Tensor | None,
    mean: bool,
    orders: Sequence[int],
    want_x: bool,
    want_x_root: bool,
    want_weight: bool,
    want_root: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dx_root, dweight, droot, dbias); [0] where a gradient is not wanted."""
    none, x = [dout.new_empty(0) for _ in range(5)], x.contiguous()
    dz = activation_gradient(dout, None, out)[0]
    dx = torch.zeros_like(x) if want_x else none[0]
    dx_root = torch.zeros_like(x_root) if want_x_root and x_root is not None else none[1]
    own, into = (x, dx) if x_root is None else (x_root.contiguous(), dx_root)
    types = _types(roots)
    kinds = types[-1][0] + 1 if root is None else root.size(0)
    droot = none[3] if root is None or not want_root else root.new_zeros(root.shape)
    dbias = dz.new_zeros(kinds, dz.size(1)) if want_bias else none[4]
    done = 0
    for kind, first, count in types:
        rows, done = dz[done : done + count], done + count
        if want_bias:
            dbias[kind] = activation_gradient(rows, None, None)[1]
        if want_root:
            droot[kind] = weight_gradient(own[first : first + count], rows, 1.0, None)
        if root is not None and into.numel() > 0:
            into[first : first + count] = Layer(rows, count, weight=root[kind].t()).run()[0]
    dweight = weight.new_zeros(weight.shape) if want_weight else none[2]
    for r, order in enumerate(orders if want_x or want_weight else ()):
        to, of = Relation(stack, pairs, r), Relation(stack_t, pairs_t, r)
        if order < 0 or to.pairs == 0:
            continue
        if order == 0:
            back = _by_destinations(to, of, x, dz, weight[r], value_t, mean, want_weight, want_x)
        else:
            back = _by_sources(of, x, dz, weight[r], value_t, want_weight)
        step, gradient = back
        if gradient is not None:
            dweight[r] = gradient
        if want_x:
            step.nodes = of.nodes
            step.run(dx)
    return dx, dx_root, dweight, droot, dbias


def _by_destinations(
    to: Relation,
    of: Relation,
    x: Tensor,
    dz: Tensor,
    weight: Tensor,
    value_t: Tensor | None,
    mean: bool,
    want_weight: bool,
    want_x: bool,
) -> tuple[Step, Tensor | None]:
    """dW = (A x)^T dz; dx is a sum of ds = dz W^T, which is formed here."""
    gradient = None
    if want_weight:
        sums = to.sums(x, None, mean).run()
        gradient = weight_gradient(sums, dz.index_select(0, to.nodes), 1.0, None)
    ds = dz
    if want_x:
        ds = Step(dz, to.pairs, gather=to.nodes, weight=weight.t()).run()
    return of.sums(ds, value_t, False, local=True), gradient


def _by_sources(
    of: Relation, x: Tensor, dz: Tensor, weight: Tensor, value_t: Tensor | None, want_weight: bool
) -> tuple[Step, Tensor | None]:
    """dW = x^T g and dx = g W^T of g = A^T dz, which is kept where dW is wanted."""
    step, gradient = of.sums(dz, value_t, False), None
    if want_weight:
        sums = step.run()
        gradient = weight_gradient(x.index_select(0, of.nodes), sums, 1.0, None)
        step = Step(sums, of.pairs)
    step.weight = weight.t()
    return step, gradient


def _types(roots: Sequence[int]) -> list[tuple[int, int, int]]:
    """(type, first row of x, count) of every type."""
    return list(zip(roots[::3], roots[1::3], roots[2::3], strict=True))
