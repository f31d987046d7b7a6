"""Checks of the arguments of ``ops.relational``."""

from __future__ import annotations

from torch import Tensor

from abkd_fast._checks import FLOATS, check_choice, check_tensor
from abkd_fast.relational_graph import RelationalGraph

ACTIVATIONS = ("none", "relu")
AGGREGATIONS = ("mean", "sum")
ORDERS = ("aggregate_first", "transform_first")


def check_arguments(
    graph: RelationalGraph,
    x: Tensor | None,
    weight: Tensor,
    root: Tensor | None,
    bias: Tensor | None,
    x_root: Tensor | None,
    comp: Tensor | None,
    aggr: str,
    act: str,
    order: str | None,
) -> None:
    """Raise ValueError unless everything fits; see :func:`abkd_fast.ops.relational`."""
    if not isinstance(graph, RelationalGraph):
        raise ValueError(
            f"graph must be a RelationalGraph, got {type(graph).__name__}; "
            "build one with RelationalGraph.from_edge_type() or another from_*() method"
        )
    check_choice("aggr", aggr, AGGREGATIONS)
    check_choice("act", act, ACTIVATIONS)
    if order is not None:
        check_choice("order", order, ORDERS)
    check_tensor("weight", weight, dtypes=FLOATS, device=graph.device)
    dtypes = (weight.dtype,)
    width, width_out = _widths(graph, weight, comp)
    if comp is not None:
        check_tensor("comp", comp, dim=2, dtypes=dtypes, device=graph.device)
        if list(comp.shape) != [graph.num_relations, weight.size(0)]:
            shape = [graph.num_relations, weight.size(0)]
            raise ValueError(f"comp must be [R, B] = {shape}, got {list(comp.shape)}")
    rows = graph.num_src
    if x is not None:
        check_tensor("x", x, dim=2, dtypes=dtypes, device=graph.device)
        rows = x.size(0)
        if list(x.shape) != [graph.num_src, width]:
            raise ValueError(
                f"x must be [num_src={graph.num_src}, in={width}], got {list(x.shape)}"
            )
    elif width != graph.num_src:
        raise ValueError(
            f"weight must have in = num_src = {graph.num_src} rows a relation where x is None, "
            f"got {width}"
        )
    elif weight.dim() == 4:
        raise ValueError("weight must not be in blocks where x is None; use bases (comp)")
    if x_root is not None:
        check_tensor("x_root", x_root, dim=2, dtypes=dtypes, device=graph.device)
        rows, width = x_root.shape
        if x is None:
            raise ValueError("x_root must be left out where x is None")
    if root is not None and rows != graph.num_dst:
        raise ValueError(
            f"x_root must be [N={graph.num_dst}, in_root] where there is a root, got {rows} rows"
        )
    types = len(graph.num_nodes)
    shapes = {"root": [width, width_out], "bias": [width_out]}
    for name, given in (("root", root), ("bias", bias)):
        if given is None:
            continue
        check_tensor(name, given, dtypes=dtypes, device=graph.device)
        wanted = [shapes[name]] if x is None else [shapes[name], [types, *shapes[name]]]
        if list(given.shape) not in wanted:
            shown = " or ".join(map(str, wanted))
            raise ValueError(f"{name} must be {shown}, got {list(given.shape)}")


def _widths(graph: RelationalGraph, weight: Tensor, comp: Tensor | None) -> tuple[int, int]:
    """in and out of the weights."""
    relations = graph.num_relations
    shape = list(weight.shape)
    fits = weight.dim() == 3 and (comp is not None or shape[0] == relations)
    if weight.dim() == 4 and comp is None:
        fits = shape[0] == relations
        shape = [shape[0], shape[1] * shape[2], shape[1] * shape[3]]
    if not fits or weight.numel() == 0 and relations > 0:
        raise ValueError(
            f"weight must be [R={relations}, in, out], bases [B, in, out] with comp, or blocks "
            f"[R={relations}, B, in / B, out / B], got {list(weight.shape)}"
        )
    return shape[1], shape[2]
