"""The relational layer in plain torch: the definition, the oracle in tests, the fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abkd_fast.reference.spmm import op_spmm
from abkd_fast.relational_graph import RelationalGraph


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
) -> Tensor:
    """One layer, relation by relation; see :func:`abkd_fast.ops.relational`."""
    weight = combined(weight, comp)
    parts = []
    index, edge_type = graph.homogeneous()
    for r in range(graph.num_relations):
        source, target = index[:, edge_type == r]
        messages = weight[r][source] if x is None else x[source] @ weight[r]
        total = weight.new_zeros(graph.num_dst, weight.size(2)).index_add(0, target, messages)
        if aggr == "mean":
            degree = torch.bincount(target, minlength=graph.num_dst).clamp(min=1)
            total = total / degree.unsqueeze(1).to(total.dtype)
        parts.append(total)
    out = torch.stack(parts).sum(0) if parts else weight.new_zeros(graph.num_dst, weight.size(2))
    kinds = torch.arange(len(graph.num_nodes), device=out.device)
    kinds = kinds.repeat_interleave(torch.tensor([*graph.num_nodes.values()], device=out.device))
    if root is not None and x is None:
        out = out + root
    elif root is not None:
        x_root = x if x_root is None else x_root
        assert x_root is not None
        each = root[kinds] if root.dim() == 3 else root.expand(len(kinds), -1, -1)
        out = out + torch.bmm(x_root.unsqueeze(1), each).squeeze(1)
    if bias is not None:
        out = out + (bias if bias.dim() == 1 else bias[kinds])
    return out.relu() if act == "relu" else out


def combined(weight: Tensor, comp: Tensor | None) -> Tensor:
    """[R, in, out] of bases [B, in, out], of blocks [R, B, in / B, out / B], or as it is."""
    if comp is not None:
        return torch.einsum("rb,bio->rio", comp, weight)
    return expanded(weight) if weight.dim() == 4 else weight


def expanded(weight: Tensor) -> Tensor:
    """Block-diagonal [R, in, out] of blocks [R, B, in / B, out / B]."""
    relations, blocks, width, width_out = weight.shape
    eye = torch.eye(blocks, dtype=weight.dtype, device=weight.device)
    full = weight.unsqueeze(3) * eye.view(1, blocks, 1, blocks, 1)
    return full.reshape(relations, blocks * width, blocks * width_out)


def op_relational(
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
    """``out``; see ``csrc/cpu/relational.cpp``."""
    own = x if x_root is None else x_root
    parts = []
    for kind, first, count in _types(roots):
        part = x.new_zeros(count, weight.size(2))
        if root is not None:
            part = own[first : first + count] @ root[kind]
        parts.append(part if bias is None else part + bias[kind])
    out = torch.cat(parts)
    for r, order in enumerate(orders):
        if order >= 0 and pairs[r] < pairs[r + 1]:
            sums, row = _sums(stack, pairs, r, None, x, mean)
            out.index_add_(0, row, sums @ weight[r])
    return out.relu() if relu else out


def op_relational_backward(
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
    dz = dout if out is None else dout.masked_fill(out <= 0, 0)
    dx, dweight = torch.zeros_like(x), torch.zeros_like(weight)
    dx_root = dx if x_root is None else torch.zeros_like(x_root)
    types = _types(roots)
    num_types = types[-1][0] + 1 if root is None else root.size(0)
    droot = dout.new_empty(0) if root is None else torch.zeros_like(root)
    dbias = dout.new_zeros(num_types, dout.size(1))
    own, done = x if x_root is None else x_root, 0
    for kind, first, count in types:
        rows = dz[done : done + count]
        dbias[kind] = rows.sum(0)
        if root is not None:
            droot[kind] = own[first : first + count].t() @ rows
            dx_root[first : first + count] = rows @ root[kind].t()
        done += count
    for r, order in enumerate(orders):
        if order >= 0 and pairs[r] < pairs[r + 1]:
            sums, row = _sums(stack_t, pairs_t, r, value_t, dz, False)
            dweight[r] = x[row].t() @ sums
            dx.index_add_(0, row, sums @ weight[r].t())
    none = dout.new_empty(0)
    return (
        dx if want_x else none,
        dx_root if want_x_root and x_root is not None else none.clone(),
        dweight if want_weight else none.clone(),
        droot if want_root else none.clone(),
        dbias if want_bias else none.clone(),
    )


def _types(roots: Sequence[int]) -> list[tuple[int, int, int]]:
    """(type, first row of x, count) of every type."""
    return list(zip(roots[::3], roots[1::3], roots[2::3], strict=True))


def _sums(
    stack: Sequence[Tensor],
    pairs: Sequence[int],
    r: int,
    value: Tensor | None,
    x: Tensor,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """Sums or means of a relation's pairs, and their rows."""
    ptr, row, col, _ = stack
    ptr = ptr[pairs[r] : pairs[r + 1] + 1]
    edges = slice(int(ptr[0]), int(ptr[-1]))
    weights = None if value is None else value[edges]
    sums = op_spmm(ptr - ptr[0], col[edges], weights, x, mean)
    return sums, row[pairs[r] : pairs[r + 1]].long()
