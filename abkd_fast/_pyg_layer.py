"""What the accelerated PyG layers share: when our ops cannot serve a layer or a call."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from abkd_fast._checks import FLOATS
from abkd_fast._pyg_graphs import SPARSE, is_edge_index
from abkd_fast.graph import CSRGraph
from abkd_fast.relational_graph import RelationalGraph

_STEPS = ("forward", "message", "aggregate", "message_and_aggregate", "update", "edge_update")
_HOOKS = tuple(
    f"_{step}_forward_{when}"
    for step in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("pre_hooks", "hooks")
)


class Accelerated(pyg.MessagePassing):
    """What the accelerated layers share."""

    reductions: tuple[str, ...] = ("add", "sum")

    @classmethod
    def obstacle(cls, conv: Any) -> str | None:
        """Why a layer of PyG's class cannot be replaced, or None."""
        if conv.aggr not in cls.reductions:
            return f"aggr={conv.aggr!r} is none of {', '.join(cls.reductions)}"
        if conv.node_dim not in (-2, 0):
            return f"node_dim={conv.node_dim} is not -2"
        if conv.decomposed_layers != 1:
            return f"decomposed_layers={conv.decomposed_layers} is not 1"
        changed = [step for step in _STEPS if step in conv.__dict__]
        if changed:
            return f"{', '.join(changed)} of this object was replaced"
        return _tapped(conv)

    def call_obstacle(self, x: Any, edges: Any, weight: Any = None) -> str | None:
        """Why our ops cannot serve a call with edges as :func:`adjacency` takes them, or None."""
        if why := self.features_obstacle(x):
            return why
        if weight is not None and weight.dtype != x.dtype:
            return f"edge_weight is {weight.dtype}, x is {x.dtype}"
        return _edges_obstacle(edges, self.flow)

    def features_obstacle(self, x: Any) -> str | None:
        """Why our ops cannot serve a call with these features, or None."""
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.dim() != 2:
            return "x is not a dense tensor [N, F]"
        if x.dtype not in FLOATS or x.device.type not in ("cpu", "cuda"):
            return f"x is {x.dtype} on {x.device.type}"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on"
        if torch.jit.is_tracing():
            return "a trace would keep this graph for good"
        if any(parameter.dtype != x.dtype for parameter in self.parameters()):
            return f"x is {x.dtype}, the parameters are not"
        return _tapped(self)

    def pair_obstacle(self, source: Any, root: Any, edges: Any, size: Any) -> str | None:
        """Why our ops cannot serve a call with rows of both sides (root may be None), or None."""
        if root is not None and root is not source:
            if self.flow != "source_to_target":
                return f"flow is {self.flow} with a pair of x"
            if why := self.call_obstacle(root, edges):
                return why
        if why := self.call_obstacle(source, edges):
            return why
        sizes = (source.size(0), None if root is None else root.size(0))
        for wanted, found in zip(size or (None, None), sizes, strict=True):
            if None not in (wanted, found) and wanted != found:
                return f"size is {size}, x has {found} rows"
        return None


def _tapped(conv: Any) -> str | None:
    """Whether somebody watches single messages, which our ops do not make."""
    if conv.explain:
        return "explain mode is on"
    if any(getattr(conv, hooks) for hooks in _HOOKS):
        return "hooks watch its messages"
    return None


def _edges_obstacle(edges: Any, flow: str) -> str | None:
    if isinstance(edges, CSRGraph) or is_edge_index(edges):
        return None
    if isinstance(edges, Tensor):
        if edges.layout not in SPARSE:
            return f"edge_index is {edges.dtype} {list(edges.shape)}"
        if edges.requires_grad:
            return "a torch sparse tensor requires grad"
    elif not hasattr(edges, "csr"):
        return f"edge_index is a {type(edges).__name__}"
    return None if flow == "source_to_target" else f"flow is {flow} with a sparse matrix"


def notice(layer: nn.Module, why: str, edges: Any) -> None:
    """Warn that PyG's own forward serves a call; it does not take graphs of ours."""
    if isinstance(edges, (CSRGraph, RelationalGraph)):
        kind = type(edges).__name__
        raise ValueError(f"{layer} takes a {kind} only where our ops serve it, and {why}")
    warnings.warn(f"PyG's own {type(layer).__name__} serves a call: {why}", stacklevel=3)


def fused(lin: nn.Module) -> bool:
    """Whether ``lin`` is x W^T + b and nothing listens or changes its weight on the way."""
    watched = lin._forward_hooks or lin._forward_pre_hooks
    return type(lin) in (pyg.Linear, nn.Linear) and not watched


def lazy(conv: nn.Module) -> bool:
    """Whether the first call is still to give the layer its widths."""
    return any(is_lazy(parameter) for parameter in conv.parameters())
