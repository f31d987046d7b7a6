"""What the attention layers share: initialisation, self-loops, inputs, the end of a layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checks import check_choice
from abkd_fast._csr import Structure, outside_inference
from abkd_fast.graph import CSRGraph
from abkd_fast.nn.linear import Linear, linear
from abkd_fast.ops import segment_csr
from abkd_fast.ops.dropout import draw_seed
from abkd_fast.reference.edge_attention import row_sum

Features = Tensor | CSRGraph
FILLS = ("add", "sum", "mean", "min", "max", "mul")


def glorot_linear(in_features: int, out_features: int, bias: bool = False) -> Linear:
    """A linear layer that draws as PyG's with ``weight_initializer="glorot"``."""
    layer = Linear(in_features, out_features, bias)
    reset_linear(layer)
    return layer


def reset_linear(layer: nn.Linear) -> None:
    """Glorot-uniform weight; bias uniform, bound 1/sqrt(in_features)."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.in_features) if layer.in_features else 0.0
        nn.init.uniform_(layer.bias, -bound, bound)


def glorot(vector: Tensor) -> None:
    """Uniform as PyG draws [1, heads, channels]: bound sqrt(6 / (heads + channels))."""
    bound = math.sqrt(6.0 / (vector.size(-2) + vector.size(-1)))
    nn.init.uniform_(vector, -bound, bound)


def check_options(
    heads: int, out_channels: int, dropout: float, fill_value: float | Tensor | str
) -> None:
    """Raise ValueError unless the options that both layers have are in range."""
    for name, value in (("heads", heads), ("out_channels", out_channels)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if isinstance(fill_value, str):
        check_choice("fill_value", fill_value, FILLS)


class AttentionConv(nn.Module):
    """The options of both attention layers, and what a layer ends with: a residual map, a bias."""

    res: Linear | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int,
        concat: bool,
        negative_slope: float,
        dropout: float,
        add_self_loops: bool,
        fill_value: float | Tensor | str,
    ) -> None:
        super().__init__()
        check_options(heads, out_channels, dropout, fill_value)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.negative_slope, self.dropout = concat, negative_slope, dropout
        self.add_self_loops = add_self_loops

    def _add_end(self, bias: bool, residual: bool) -> None:
        width = self.out_channels * (self.heads if self.concat else 1)
        target = self.in_channels if isinstance(self.in_channels, int) else self.in_channels[1]
        self.res = glorot_linear(target, width) if residual else None
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def _reset(
        self, layers: tuple[nn.Linear | None, ...], vectors: tuple[Tensor | None, ...]
    ) -> None:
        for layer in (*layers, self.res):
            if layer is not None:
                reset_linear(layer)
        for vector in vectors:
            if vector is not None:
                glorot(vector)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _dropout(self, seed: Tensor | None, layer: int) -> dict[str, Any]:
        """Arguments of the op: leaky ReLU, and the coefficients' dropout while training."""
        p = self.dropout if self.training else 0.0
        seed = draw_seed() if seed is None and p > 0.0 else seed
        return {"negative_slope": self.negative_slope, "p": p, "seed": seed, "layer": layer}

    def _finish(self, out: Tensor, destination: Features | None) -> Tensor:
        """The layer's output from its heads [N, H, C]."""
        residual = None
        if self.res is not None and destination is not None:
            residual = linear(destination, self.res.weight, None, "none")
        return finish(out, self.concat, residual, self.bias)

    def extra_repr(self) -> str:
        """Widths and heads."""
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


def rows_of(x: Features | tuple[Features, Features | None]) -> tuple[Features, Features | None]:
    """(source rows, destination rows) of a layer's input; one matrix serves both sides."""
    if not isinstance(x, (tuple, list)):
        return x, x
    if len(x) != 2:
        raise ValueError(f"x must be one matrix or a pair (source, destination), got {len(x)}")
    return x[0], x[1]


def check_sides(graph: CSRGraph, source: Features, destination: Features | None) -> None:
    """Raise ValueError unless the rows fit the graph."""
    sides = [("x", source, "num_src", graph.num_src)]
    if destination is not None:
        name = "x" if destination is source else "x[1]"
        sides.append((name, destination, "num_dst", graph.num_dst))
    for name, rows, what, count in sides:
        if rows.shape[0] != count:
            raise ValueError(
                f"{name} must have {what}={count} rows, got {rows.shape[0]}; "
                "a graph between two sets of nodes takes a pair (source rows, destination rows)"
            )


@outside_inference
def with_self_loops(graph: CSRGraph) -> CSRGraph:
    """The graph without weights and with exactly one loop a node; computed once and kept.

    Existing loops are removed first, as PyG's layers do. Nodes that are both source and
    destination get one: min(num_src, num_dst) of them. It is the last edge of its row.
    """
    if "self_loops" in graph._derived:
        return graph._derived["self_loops"]
    position, loops, rowptr = _loop_positions(graph)
    col = torch.empty(int(rowptr[-1]), dtype=graph.col.dtype, device=graph.device)
    kept = graph.row() != graph.col
    col[position[kept]] = graph.col[kept]
    col[loops] = torch.arange(len(loops), dtype=col.dtype, device=col.device)
    wide = rowptr[-1] > torch.iinfo(torch.int32).max
    index = torch.int64 if wide else graph.rowptr.dtype
    looped = CSRGraph(Structure(rowptr.to(index), col.to(index), graph.num_src), None)
    graph._derived["self_loops"] = looped
    return looped


def loop_features(graph: CSRGraph, edge_attr: Tensor, fill_value: float | Tensor | str) -> Tensor:
    """``edge_attr`` [E, D] in the order of :func:`with_self_loops`, loops filled as in PyG."""
    position, loops, rowptr = _loop_positions(graph)
    row = graph.row()
    kept = row != graph.col
    attr, row = edge_attr[kept], row[kept]
    looped = with_self_loops(graph)
    filled = _fill(attr, row, graph.num_dst, fill_value)[: len(loops)]
    out = edge_attr.new_zeros(looped.num_edges, edge_attr.size(1))
    return out.index_copy(0, position[kept], attr).index_copy(0, loops, filled)


def _loop_positions(graph: CSRGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Where edges (loops: anywhere) and new loops go, and the new row pointers."""
    row, loops = graph.row(), min(graph.num_src, graph.num_dst)
    kept = (row != graph.col).long()
    nodes = torch.arange(graph.num_dst, device=graph.device)
    degree = torch.zeros_like(nodes).index_add(0, row, kept) + (nodes < loops)
    rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    before = nodes.clamp(max=loops)  # loops in the rows before
    position = kept.cumsum(0) - 1 + before[row]
    return position, rowptr[1 : loops + 1] - 1, rowptr


def _fill(attr: Tensor, row: Tensor, rows: int, fill_value: float | Tensor | str) -> Tensor:
    """Features [rows, D] of the loops."""
    if isinstance(fill_value, str):
        if fill_value in ("add", "sum"):
            return row_sum(attr, row, rows)
        if fill_value == "mul":
            ones = attr.new_ones(rows, attr.size(1))
            return ones.scatter_reduce(0, row.unsqueeze(1).expand_as(attr), attr, "prod")
        indptr = torch.bincount(row, minlength=rows).cumsum(0)
        indptr = torch.cat([indptr.new_zeros(1), indptr])
        return segment_csr(attr, indptr, fill_value)
    fill = torch.as_tensor(fill_value, dtype=attr.dtype, device=attr.device)
    return fill.expand(rows, attr.size(1)) if fill.dim() < 2 else fill.expand(rows, -1)


def transform(rows: Features, weight: Tensor, heads: int, width: int) -> Tensor:
    """Rows W^T as [N, heads, width]."""
    return linear(rows, weight, None, "none").view(-1, heads, width)


def finish(out: Tensor, concat: bool, residual: Tensor | None, bias: Tensor | None) -> Tensor:
    """From heads [N, H, C] to the layer's output: side by side or their mean, residual, bias."""
    out = out.flatten(1) if concat else out.mean(1)
    for term in (residual, bias):
        if term is not None:  # in place where no backward can need out: a layer's memory less
            in_place = not torch.is_grad_enabled() and out.dtype == term.dtype
            out = out.add_(term) if in_place else out + term
    return out
