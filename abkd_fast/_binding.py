"""Call any model on a GraphData: match the parameters of its forward by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from abkd_fast.data.graph_data import GraphData

_KNOWN: dict[str, Callable[[GraphData], Any]] = {
    "x": lambda data: data.dense_x,
    "aggregated_x": lambda data: data.aggregated_x,
    "graph": lambda data: data.graph,
    "edge_index": lambda data: data.edge_index,
    "edge_weight": lambda data: data.adj_t.values(),
    "adj_t": lambda data: data.adj_t,
    "adj": lambda data: data.adj_t,
    "relations": lambda data: data.relations,
    "other_x": lambda data: data.other_x,
}
_OF_GRAPHS: dict[str, Callable[[Any], Any]] = {  # of graph-level data
    "graph_ptr": lambda data: data.graph_ptr,
    "batch": lambda data: data.batch,
}
_FIX = "pass forward=lambda model, data: ... to call it your way"


def bind_arguments(
    data: GraphData, model: torch.nn.Module, without: tuple[str, ...] = ()
) -> tuple[Any, ...]:
    """Positional arguments of ``model.forward``; see :meth:`GraphData.arguments`.

    Parameters ``without`` keep their defaults where they have one.
    """
    given = _KNOWN | (_OF_GRAPHS if hasattr(data, "graph_ptr") else {})
    parameters = _parameters(model, given)
    ours = type(model).__module__.split(".")[0] == "abkd_fast" and "edge_index" not in parameters
    sparse = "graph" in parameters or ours
    last = max(position for position, name in enumerate(parameters) if name in given)
    bound = []
    for name, parameter in list(parameters.items())[: last + 1]:
        if name in without and not _required(parameter):
            bound.append(parameter.default)
        elif name == "x" and sparse:
            bound.append(data.x)
        elif name == "edge_weight" and data.graph.value is None and not _required(parameter):
            bound.append(parameter.default)
        elif name in given:
            bound.append(given[name](data))
        else:
            bound.append(parameter.default)
    return tuple(bound)


def _parameters(
    model: torch.nn.Module, given: Mapping[str, Callable[..., Any]]
) -> dict[str, inspect.Parameter]:
    """The named parameters of forward, checked to be callable with what we know."""
    signature = inspect.signature(model.forward)
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {n: p for n, p in signature.parameters.items() if p.kind not in catch_all}
    for name, parameter in parameters.items():
        bindable = name in given and parameter.kind != inspect.Parameter.KEYWORD_ONLY
        if _required(parameter) and not bindable:
            raise ValueError(
                f"parameters of {type(model).__name__}.forward must be positional and named among "
                f"{', '.join(given)}, or have defaults, got {name!r}; {_FIX}"
            )
    known = {n: p for n, p in parameters.items() if p.kind != inspect.Parameter.KEYWORD_ONLY}
    if not any(name in given for name in known):
        raise ValueError(
            f"{type(model).__name__}.forward must take at least one of {', '.join(given)}, got "
            f"{signature}; {_FIX}"
        )
    return known


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty
