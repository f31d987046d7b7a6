"""Class scores of single nodes, from their neighbourhood alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checks import first_line
from abkd_fast._csr import Structure
from abkd_fast._neighborhood import (
    CONVS,
    OperatorRows,
    Search,
    depth,
    feature_rows,
    first_input,
    operator,
    operator_name,
    probes,
)
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.latency.flat import flatten, trim

_FIX = "build it of layers of abkd_fast.nn, with forward(x, graph)"
_GRAPHS = ("graph", "edge_index", "adj_t", "adj")


class NodeServer:
    """Answers "which class scores has this node?" without a pass over the graph.

    A query collects the rows of the operator (A_hat, the mean's weights, ...) that the model's
    layers read, hop by hop, and runs the model on these: edges have the weights of the whole graph,
    so that the scores are those of a full forward pass. Its cost depends on the neighbourhood
    only. Weights are those at construction; build another server after training.

    Safe to call from several threads.

    Args:
        model: a model of ``abkd_fast.nn`` for one type of nodes, or one of your own that takes x,
            or x and a CSRGraph that layers of ``abkd_fast.nn`` read; put in eval mode.
        data: graph and features on the CPU.
        flat: run the ops in one straight line, each on the rows that later layers still read (see
            :mod:`abkd_fast.latency.flat`), where the result agrees with the model's; False runs
            the model itself.
        first_hop: compute A_hat X once, now, and answer with one hop less (GCN with dense x, or
            sparse x whose product stays sparse).

    Attributes:
        hops: depth of the neighbourhoods.
        form: "flat", "flat, all rows" or "model": what serves queries, and ``why``.

    Raises:
        ValueError: the model or the data are of another kind, or the model does not run on a part
            of the graph.
    """

    def __init__(
        self, model: nn.Module, data: GraphData, *, flat: bool = True, first_hop: bool = False
    ) -> None:
        typed = data.x is None or data.relations is not None
        if data.graph.device.type != "cpu" or typed or data._rows != "node":
            raise ValueError(
                "data must be nodes of one type with features on the CPU, where neighbourhoods "
                f"are found, got {data!r} on {data.graph.device}"
            )
        convs = [module for module in model.modules() if isinstance(module, CONVS)]
        self._graph_name = _graph_parameter(model)
        self._model = model.eval()
        self._operator_name = operator_name(convs, data)
        self._operator = operator(self._operator_name, data)
        self.hops = depth(model, convs) - first_hop
        self._features, self._first_hop = first_input(model, convs, data, first_hop), first_hop
        self._search = Search(self._operator)
        self.form, self.why = "model", "flat=False"
        self._line: Callable[..., Tensor] = self._run_model
        asked = probes(self._operator)
        self._check_hops(asked)
        if flat:
            self._flatten(asked)

    @torch.no_grad()
    def __call__(self, nodes: Tensor) -> Tensor:
        """Class scores [B, C] of ``nodes`` [B] int64, distinct.

        Raises:
            ValueError: nodes are no int64 vector.
            RuntimeError: nodes are repeated or unknown.
        """
        return self._line(*self._inputs(nodes))

    def neighbourhood(self, nodes: Tensor) -> tuple[Tensor, CSRGraph]:
        """(n_id [n] int64, operator [n, n]) that the scores of ``nodes`` depend on.

        Rows of the last hop are empty: nothing reads them.
        """
        n_id, _, rowptr, col, value = self._search(nodes, self.hops)
        weights = None if self._operator.value is None else value
        return n_id, CSRGraph(Structure(rowptr, col, n_id.numel()), weights)

    def _inputs(self, nodes: Tensor) -> tuple[Any, ...]:
        """(features ..., rowptr ..., col, value or none, n_0, ..., n_hops)."""
        n_id, found, rowptr, col, value = self._search(nodes, self.hops)
        sizes = found.tolist()
        trimmed = self.form == "flat"
        pointers = [rowptr[: size + 1] for size in sizes[:-1]] if trimmed else [rowptr]
        values = [] if self._operator.value is None else [value]
        return (*feature_rows(self._features, n_id), *pointers, col, *values, *sizes)

    def _call(self, *tensors: Tensor) -> Tensor:
        """The model on (features ..., rowptr, col, value or none); rows of all nodes."""
        x: Tensor | CSRGraph = tensors[0]
        rest = tensors[1:]
        if isinstance(self._features, CSRGraph):
            x_rowptr, x_col, x_value = tensors[:3]
            x = CSRGraph(Structure(x_rowptr, x_col, self._features.num_src), x_value)
            rest = tensors[3:]
        rowptr, col, *value = rest
        structure = Structure(rowptr, col, rowptr.numel() - 1)
        graph = OperatorRows(structure, value[0] if value else None)
        if self._operator_name:
            graph._derived[self._operator_name] = graph
        given: dict[str, Any] = {"x": x}
        if self._graph_name:
            given[self._graph_name] = graph
        if self._first_hop:
            given["aggregated_x"] = x
        return self._model(**given)

    def _run_model(self, *inputs: Any) -> Tensor:
        sizes = inputs[-self.hops - 1 :]
        return self._call(*inputs[: -self.hops - 1])[: sizes[0]]

    def _run_line(self, *inputs: Any) -> Tensor:
        sizes = inputs[-self.hops - 1 :]
        return self._flat(*inputs[: -self.hops - 1])[: sizes[0]]

    def _check_hops(self, probes: list[Tensor]) -> None:
        """Raise ValueError unless one hop more leaves the scores as they are."""
        scores = [self._first_scores(nodes) for nodes in probes]
        self.hops += 1
        further = [self(nodes) for nodes in probes]
        self.hops -= 1
        for near, far in zip(scores, further, strict=True):
            bound = (0.1 if near.element_size() == 2 else 1e-3) * far.abs().max()
            if not bool(((near - far).abs() <= bound).all() | far.isnan().any()):
                raise ValueError(
                    f"model must score nodes by what lies within {self.hops} hops, one for each of "
                    "its layers; one hop more gave other scores. A layer that is called twice, or "
                    "an aggregation outside of a layer, cannot be served"
                )

    def _first_scores(self, nodes: Tensor) -> Tensor:
        """Raise ValueError where the model fails or returns no row a node."""
        try:
            scores = self(nodes)
        except Exception as reason:  # of any model
            raise ValueError(
                f"model must run on the features and the graph of a neighbourhood, got {reason!r} "
                f"from {type(self._model).__name__}; {_FIX}"
            ) from reason
        if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.size(0) != len(nodes):
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"model must return scores [{len(nodes)}, C] of {len(nodes)} nodes, got {shape} "
                f"from {type(self._model).__name__}; {_FIX}"
            )
        return scores

    def _flatten(self, probes: list[Tensor]) -> None:
        """Take the fastest form whose scores are the model's on two other neighbourhoods."""
        expected = [self(nodes) for nodes in probes]
        names = [f"x{i}" for i in range(3 if isinstance(self._features, CSRGraph) else 1)]
        example = self._inputs(probes[-1])[: -self.hops - 1]
        try:
            self._flat = flatten(self._call, *example).forward
            self.form, self._line, self.why = "flat, all rows", self._run_line, "it agrees"
            self._check(probes, expected)
        except Exception as reason:  # sizes of the example, mostly
            self.form, self._line = "model", self._run_model
            self.why = first_line(reason)
            return
        try:
            line = flatten(self._call, *example)
            holders = [node for node in line.graph.nodes if node.op == "placeholder"]
            rows = tuple(holder.target for holder in holders[: len(names)])
            trim(line, holders[len(names)].target, rows, self.hops)
            self.form, self._line = "flat", line.forward
            self._check(probes, expected)
        except Exception as reason:  # NotTrimmable, mostly
            self.form, self._line = "flat, all rows", self._run_line
            self.why = first_line(reason)

    def _check(self, probes: list[Tensor], expected: list[Tensor]) -> None:
        for nodes, scores in zip(probes, expected, strict=True):
            if not torch.allclose(self(nodes), scores, rtol=1e-4, atol=1e-6):
                raise RuntimeError(f"{self.form} gave other scores than the model")


def _graph_parameter(model: nn.Module) -> str | None:
    """The parameter of forward that takes the graph, None where it takes x alone."""
    signature = inspect.signature(model.forward)
    graph = next((name for name in _GRAPHS if name in signature.parameters), None)
    needed = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if "x" not in signature.parameters or needed - {"x", graph}:
        raise ValueError(
            "model must take x, or x and a graph, and nothing else, to answer for single nodes, "
            f"got {type(model).__name__}.forward{signature}; {_FIX}"
        )
    return graph
