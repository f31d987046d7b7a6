"""The relational layer of R-GCN: aggregate per relation, transform, sum over relations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from abkd_fast._activations import keep
from abkd_fast._backend import register
from abkd_fast.ops._relational_checks import ORDERS, check_arguments
from abkd_fast.ops.linear import linear
from abkd_fast.ops.spmm import spmm
from abkd_fast.reference.relational import expanded, op_relational, op_relational_backward
from abkd_fast.relational_graph import RelationalGraph

_GATHER, _ROW = 8, 8  # cost of a gathered element and of one written, in multiply-adds


def relational(
    graph: RelationalGraph,
    x: Tensor | None,
    weight: Tensor,
    root: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    x_root: Tensor | None = None,
    comp: Tensor | None = None,
    aggr: str = "mean",
    act: str = "none",
    targets_only: bool = False,
    order: str | None = None,
) -> Tensor:
    r"""One relational convolution (Schlichtkrull et al., arXiv 1703.06103, eq. 2).

    .. math::
        out_i = act(\sum_r mean_{j \in N_r(i)} x_j W_r + x_i W_{root(i)} + b_i)

    Relations are taken one after the other, each in the order that costs less: its sums go
    through W_r block by block, or the sources of its edges do and their products are summed. What
    has no edges in a relation costs nothing there. Nothing of size E x F or R x N x F is formed.
    Differentiable once in x, x_root, weight, comp, root and bias. Deterministic, and
    independent of the number of threads.

    Args:
        graph: N destinations and R relations.
        x: [num_src, in] float16/bfloat16/float32/float64, in the order of the graph's types.
            16-bit tensors are computed in float32. None looks x_j W_r up as row j of
            W_r [num_src, out]: nodes without features.
        weight: W [R, in, out]; bases [B, in, out] where ``comp`` is given; or blocks
            [R, B, in / B, out / B], which stand for block-diagonal W_r and are expanded.
        root: [in, out] for all nodes, [types, in, out], or None; [N, out] without x.
        bias: [out] for all nodes, [types, out], or None.
        x_root: [N, in_root] features of the destinations where they are not x.
        comp: [R, B] with W_r = sum_b comp_rb weight_b, or None.
        aggr: ``"mean"`` over the edges of a node in a relation, or their ``"sum"``.
        act: ``"none"`` or ``"relu"``.
        targets_only: compute the nodes of the first type alone.
        order: ``"aggregate_first"`` or ``"transform_first"`` for every relation; None chooses by
            the number of products and of gathered elements.

    Returns:
        [N, out], or [nodes of the first type, out]; dtype of x (of weight without x).

    Raises:
        ValueError: shapes, dtypes or options do not fit.
    """
    check_arguments(graph, x, weight, root, bias, x_root, comp, aggr, act, order)
    if x is None:
        out = _embedded(graph, weight, root, bias, comp, aggr)
        out = out[: _count(graph, targets_only)]
        return out.relu() if act == "relu" else out
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x, weight = x.float(), weight.float()
        root, bias, x_root, comp = (
            None if t is None else t.float() for t in (root, bias, x_root, comp)
        )
    if x_root is x:
        x_root = None
    weight = _combined(weight, comp).contiguous()
    by_type = (root is not None and root.dim() == 3) or (bias is not None and bias.dim() == 2)
    types = len(graph.num_nodes) if by_type else 1
    kept = 1 if targets_only else types  # the gradients have a place for what is computed
    root = None if root is None else root.expand(types, -1, -1)[:kept]
    bias = None if bias is None else bias.expand(types, -1)[:kept]
    options = (_roots(graph, by_type, targets_only), aggr == "mean", act == "relu", order)
    return _apply(graph, x, x_root, weight, root, bias, options, targets_only).to(dtype)


def _apply(
    graph: RelationalGraph,
    x: Tensor,
    x_root: Tensor | None,
    weight: Tensor,
    root: Tensor | None,
    bias: Tensor | None,
    options: tuple[Any, ...],
    targets_only: bool,
) -> Tensor:
    roots, mean, relu, order = options
    pairs, pairs_t = graph.stack.pairs, graph.stack_t.pairs
    orders = _orders(graph, weight, targets_only, order, products=1, again=False)
    stack, stack_t = list(graph.stack.tensors()), list(graph.stack_t.tensors())
    given = (x, x_root, weight, root, bias)
    wants = [t is not None and t.requires_grad for t in given]
    if not (torch.is_grad_enabled() and any(wants)):
        rest = (list(roots), *given, mean, relu, orders)
        return torch.ops.abkd_fast.relational(stack, stack_t, list(pairs), list(pairs_t), *rest)
    both = wants[0] and wants[2]
    back = _orders(graph, weight, targets_only, order, wants[0] + wants[2], again=both)
    value_t = graph.mean_weights(x.dtype) if mean else None
    settings = (pairs, pairs_t, roots, mean, relu, tuple(orders), tuple(back))
    return _Relational.apply(*stack, *stack_t, value_t, *given, settings)


class _Relational(Function):
    """Keeps its inputs, and out where there is ReLU; the sums are formed again."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, settings = arguments
        stack, stack_t, (_, x, x_root, weight, root, bias) = (
            tensors[:4],
            tensors[4:8],
            tensors[8:],
        )
        pairs, pairs_t, roots, mean, relu, orders, _ = settings
        out = torch.ops.abkd_fast.relational(
            stack,
            stack_t,
            list(pairs),
            list(pairs_t),
            list(roots),
            x,
            x_root,
            weight,
            root,
            bias,
            mean,
            relu,
            list(orders),
        )
        keep(weight, root)
        ctx.save_for_backward(*tensors[:-1], out if relu else None)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *stacks, value_t, x, x_root, weight, root, out = ctx.saved_tensors
        pairs, pairs_t, roots, mean, _, _, orders = ctx.settings
        wants = ctx.needs_input_grad[9:14]
        gradients = torch.ops.abkd_fast.relational_backward(
            stacks[:4],
            stacks[4:],
            value_t,
            list(pairs),
            list(pairs_t),
            list(roots),
            dout,
            out,
            x,
            x_root,
            weight,
            root,
            mean,
            list(orders),
            *wants,
        )
        found = (g if want else None for g, want in zip(gradients, wants, strict=True))
        return (*(None,) * 9, *found, None)


def _orders(
    graph: RelationalGraph,
    weight: Tensor,
    targets_only: bool,
    order: str | None,
    products: int,
    again: bool,
) -> list[int]:
    """For every relation: -1 not computed, 0 sums go through the weight, 1 the sources do.

    ``products`` is the number of products of every row; ``again``: sums are formed a second time.
    """
    width, width_out = weight.size(1), weight.size(2)
    product = products * width * width_out
    first = graph.node_types[0]
    counts = (graph.stack.counts(), graph.stack_t.counts(), graph.num_edges_of)
    found = []
    for targets, sources, edges, relation in zip(*counts, graph.relations, strict=True):
        if targets_only and relation[2] != first:
            found.append(-1)
        elif order is not None:
            found.append(ORDERS.index(order))
        else:
            sums = targets * (product + _ROW * width_out) + (1 + again) * _GATHER * edges * width
            rows = sources * (product + _ROW * (width + width_out))
            found.append(int(rows + _GATHER * edges * width_out < sums))
    return found


def _embedded(
    graph: RelationalGraph,
    weight: Tensor,
    root: Tensor | None,
    bias: Tensor | None,
    comp: Tensor | None,
    aggr: str,
) -> Tensor:
    """Rows of W_r instead of x_j W_r: one sparse product with all W_r below each other."""
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    lookup = graph.lookup(exact if aggr == "mean" else None)
    if comp is None:
        out = spmm(lookup, weight.reshape(-1, weight.size(2)))
    else:
        out = weight.new_zeros(graph.num_dst, weight.size(2))
        bases = graph.lookup_bases(exact if aggr == "mean" else None)
        relation = lookup.col.long() // graph.num_src
        for b in range(weight.size(0)):
            share = comp[:, b].to(exact)[relation]
            value = share if lookup.value is None else share * lookup.value
            out = out + spmm(bases.with_value(value), weight[b])
    out = out if root is None else out + root
    return out if bias is None else out + bias


def _combined(weight: Tensor, comp: Tensor | None) -> Tensor:
    """W [R, in, out]."""
    if comp is not None:
        bases, width, width_out = weight.shape
        flat = weight.reshape(bases, width * width_out).t()
        return linear(comp, flat).view(comp.size(0), width, width_out)
    return expanded(weight) if weight.dim() == 4 else weight


def _count(graph: RelationalGraph, targets_only: bool) -> int:
    return next(iter(graph.num_nodes.values())) if targets_only else graph.num_dst


def _roots(graph: RelationalGraph, by_type: bool, targets_only: bool) -> tuple[int, ...]:
    """(type, first row of x, count) of the types that are computed, one after the other."""
    if not by_type:
        return (0, 0, _count(graph, targets_only))
    found: list[int] = []
    start = 0
    for kind, count in enumerate(graph.num_nodes.values()):
        if kind == 0 or not targets_only:
            found += [kind, start, count]
        start += count
    return tuple(found)


def _like_rows(*arguments: Any) -> Tensor:
    roots, x, weight = arguments[4], arguments[5], arguments[7]
    return x.new_empty(sum(roots[2::3]), weight.size(2))


def _like_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    roots, dout, x, x_root, weight, root = (arguments[i] for i in (5, 6, 8, 9, 10, 11))
    want_x, want_x_root, want_weight, want_root, want_bias = arguments[14:]
    types = roots[-3] + 1 if root is None else root.size(0)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if want_x else x.new_empty(0),
        x.new_empty(x_root.shape) if want_x_root else x.new_empty(0),
        x.new_empty(weight.shape) if want_weight else x.new_empty(0),
        x.new_empty(root.shape) if want_root else x.new_empty(0),
        x.new_empty(types, dout.size(1)) if want_bias else x.new_empty(0),
    )


register("relational", op_relational, _like_rows)
register("relational_backward", op_relational_backward, _like_gradients)
