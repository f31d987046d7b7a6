"""A model as a function of tensors alone: features and the CSR arrays of what its layers read."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from abkd_fast._checks import check_tensor
from abkd_fast._csr import Structure, check_pointers, check_range
from abkd_fast._neighborhood import (
    CONVS,
    OperatorRows,
    aggregated_features,
    depth,
    first_input,
    operator,
    operator_name,
)
from abkd_fast.data import GraphData
from abkd_fast.export.weights import pack, unpack
from abkd_fast.graph import CSRGraph
from abkd_fast.nn import RGCN, GraphClassifier

_CPU = torch.device("cpu")
_FEWEST = 4  # entries of a tensor whose size torch traces as open


@dataclass(frozen=True)
class Signature:
    """What a program takes, in this order.

    Attributes:
        inputs: names of the tensors: x, or x_rowptr, x_col, x_value for sparse features; then
            rowptr, col and, where there are weights, value of the operator.
        operator: the matrix that layers multiply with: "gcn_norm" (A_hat), "mean-DTYPE" (D^-1 A),
            "self_loops", "" (the graph itself).
        hops: layers that read it, the precomputed one not counted.
        num_features: width of x.
        sparse: whether x comes as three arrays.
        first_hop: whether x stands for A_hat X.
        baked: whether the operator is part of the program.
        dtypes: of the inputs, as torch names them.
        num_nodes: of the operator that is part of the program.
    """

    inputs: tuple[str, ...]
    operator: str
    hops: int
    num_features: int
    sparse: bool
    first_hop: bool
    baked: bool
    dtypes: tuple[str, ...] = field(default=())
    num_nodes: int | None = None

    def features(self, data: GraphData) -> Tensor | CSRGraph:
        """X, or A_hat X, of ``data``."""
        x = aggregated_features(data) if self.first_hop else data.x
        if x is None or isinstance(x, CSRGraph) != self.sparse:
            kind = "sparse" if self.sparse else "dense"
            raise ValueError(f"data must have {kind} features as the program, got {data!r}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"data must have {self.num_features} features, got {x.shape[1]}")
        return x

    def graph(self, data: GraphData) -> CSRGraph | None:
        """The operator on the graph of ``data``; None where layers read none."""
        if not self.hops and not self.first_hop:
            return None
        graph = operator(self.operator, data)
        if not self.baked and (graph.value is not None) != ("value" in self.inputs):
            wanted, found = "edge weights", "no edge weights"
            if graph.value is not None:
                wanted, found = found, wanted
            raise ValueError(
                f"data must have {wanted} as the program takes, got {found}; export the student "
                "on such data"
            )
        return graph

    def arguments(self, data: GraphData) -> tuple[Tensor, ...]:
        """The inputs for a pass over the whole graph of ``data``."""
        tensors = parts(self.features(data))
        graph = self.graph(data)
        return tensors if self.baked or graph is None else (*tensors, *parts(graph))

    def checked(self, tensors: Sequence[Tensor], indices: bool = True) -> list[Tensor]:
        """``tensors``, contiguous, as a compiled program reads them.

        Args:
            tensors: the inputs.
            indices: also look at the values of row pointers and columns.

        Raises:
            ValueError: number, type, dtype, device or shape of one is not what the program takes,
                or row pointers and columns are not those of a matrix.
        """
        if len(tensors) != len(self.inputs):
            raise ValueError(
                f"tensors must be {', '.join(self.inputs)}, got {len(tensors)} of them"
            )
        given = {}
        for name, dtype, tensor in zip(self.inputs, self.dtypes, tensors, strict=True):
            dim, dtypes = 2 if name == "x" else 1, [getattr(torch, dtype)]
            given[name] = check_tensor(name, tensor, dim=dim, dtypes=dtypes, device=_CPU)
        if "x" in given and given["x"].size(1) != self.num_features:
            shape = list(given["x"].shape)
            raise ValueError(f"x must have shape [N, {self.num_features}], got {shape}")
        sizes = {name: tensor.numel() for name, tensor in given.items()}
        rows = sizes["x_rowptr"] - 1 if self.sparse else given["x"].size(0)
        if rows < 0:
            raise ValueError("x_rowptr must have at least 1 entry (rows of x + 1), got 0")
        if self.num_nodes not in (None, rows):
            raise ValueError(
                f"x must have {self.num_nodes} rows, the nodes of the graph in the program, got "
                f"{rows}"
            )
        wanted = {
            "rowptr": (rows + 1, "rows of x + 1"),
            "value": (sizes.get("col"), "as col"),
            "x_value": (sizes.get("x_col"), "as x_col"),
        }
        for name, (count, why) in wanted.items():
            if sizes.get(name, count) != count:
                raise ValueError(f"{name} must have {count} entries ({why}), got {sizes[name]}")
        columns = {"x_": (self.num_features, "num_features"), "": (rows, "rows of x")}
        for prefix, size in columns.items() if indices else ():
            if f"{prefix}rowptr" in given:
                col = given[f"{prefix}col"]
                check_pointers(given[f"{prefix}rowptr"], col.numel(), f"{prefix}rowptr")
                check_range(f"{prefix}col", col, *size)
        return [tensor.contiguous() for tensor in given.values()]


def parts(matrix: Tensor | CSRGraph) -> tuple[Tensor, ...]:
    """The tensors of a dense or sparse matrix."""
    if isinstance(matrix, Tensor):
        return (matrix.contiguous(),)
    arrays = (matrix.rowptr, matrix.col)
    return arrays if matrix.value is None else (*arrays, matrix.value)


class Program(nn.Module):
    """``model`` on tensors, for one kind of features and operator.

    Args:
        model: a model of ``abkd_fast.nn`` for single nodes; copied.
        data: what the kinds of its inputs are taken from.
        weights: None leaves them as they are; "bfloat16" or "int8": see :func:`pack`.
        bake_graph: the operator of ``data`` becomes part of the program.
        first_hop: x stands for A_hat X (a GCN's).

    Raises:
        ValueError: the model or the data are of a kind that has no program.
    """

    def __init__(
        self,
        model: nn.Module,
        data: GraphData,
        *,
        weights: str | None = None,
        bake_graph: bool = False,
        first_hop: bool = False,
    ) -> None:
        super().__init__()
        self.signature = _signature(model, data, bake_graph, first_hop)
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.packed = pack(self, self.model, weights)
        graph = self.signature.graph(data) if bake_graph else None
        arrays = () if graph is None else parts(graph)
        for name, part in zip(("rowptr", "col", "value"), arrays, strict=False):
            self.register_buffer(f"graph_{name}", part)

    def forward(self, *tensors: Tensor) -> Tensor:
        """The model's scores [N, C]; see :class:`Signature` for the tensors."""
        signature = self.signature
        x: Tensor | CSRGraph = tensors[0]
        rest = tensors[1:]
        if signature.sparse:
            rowptr, col, value = tensors[:3]
            x, rest = CSRGraph(Structure(rowptr, col, signature.num_features), value), tensors[3:]
        if signature.baked:
            rest = tuple(part for name, part in self.named_buffers() if name.startswith("graph_"))
        arguments: tuple[Any, ...] = (x, None)
        if rest:
            structure = Structure(rest[0], rest[1], rest[0].numel() - 1)
            graph = OperatorRows(structure, rest[2] if len(rest) > 2 else None)
            if signature.operator:
                graph._derived[signature.operator] = graph
            arguments = (x, graph, x) if signature.first_hop else (x, graph)
        return torch.func.functional_call(self.model, unpack(self, self.packed), arguments)

    def example(self, data: GraphData) -> tuple[Tensor, ...]:
        """Inputs to trace with: those of ``data``, or a few made nodes where it has too few."""
        tensors = self.signature.arguments(data)
        sizes = zip(tensors, self.dynamic_shapes()["tensors"], strict=True)
        if all(tensor.size(0) >= _FEWEST for tensor, open_ in sizes if open_):
            return tensors
        return _stand_in(self.signature, tensors)

    def dynamic_shapes(self) -> dict[str, tuple[Any, ...]]:
        """Numbers of nodes, edges and stored features are open, unless the graph is baked in."""
        signature = self.signature
        if signature.baked and not signature.sparse:
            return {"tensors": ({},)}
        nodes = Dim("num_nodes")
        sizes: dict[str, Any] = {"x": nodes, "rowptr": nodes + 1, "x_rowptr": nodes + 1}
        sizes |= dict.fromkeys(("col", "value"), Dim("num_edges"))
        sizes |= dict.fromkeys(("x_col", "x_value"), Dim("num_stored"))
        if signature.baked:
            del sizes["x_rowptr"]
        named = ({0: sizes[name]} if name in sizes else {} for name in signature.inputs)
        return {"tensors": tuple(named)}


def _stand_in(signature: Signature, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs of the kinds of ``tensors``, of different numbers of nodes, entries and edges."""
    rows = signature.num_nodes or 5
    made = []
    for name, tensor in zip(signature.inputs, tensors, strict=True):
        stored = rows + (1 if name.startswith("x_") else 2)
        if name == "x":
            made.append(tensor.new_zeros(rows, signature.num_features))
        elif name.endswith("rowptr"):
            rowptr = torch.arange(rows + 1, dtype=tensor.dtype)
            rowptr[1:] += stored - rows
            made.append(rowptr)
        else:
            made.append(tensor.new_zeros(stored))
    return tuple(made)


def _signature(model: nn.Module, data: GraphData, baked: bool, first_hop: bool) -> Signature:
    refused = next((m for m in model.modules() if isinstance(m, (RGCN, GraphClassifier))), None)
    if refused is not None or data.x is None or data.relations is not None:
        name = type(data if refused is None else refused).__name__
        raise ValueError(
            "only models that score single nodes of one type can be exported (GAT, GCN, GCNII, "
            f"GraphSAGE, MLP), got {name}"
        )
    if data.graph.device.type != "cpu":
        raise ValueError(f"data must be on the CPU, got {data.graph.device}; data.to('cpu')")
    convs = [module for module in model.modules() if isinstance(module, CONVS)]
    x = first_input(model, convs, data, first_hop)
    sparse = isinstance(x, CSRGraph)
    names = ["x_rowptr", "x_col", "x_value"] if sparse else ["x"]
    tensors = parts(x)
    name = operator_name(convs, data)
    if convs and not baked:
        graph = operator(name, data)
        names += ["rowptr", "col"] + ["value"] * (graph.value is not None)
        tensors += parts(graph)
    dtypes = tuple(str(tensor.dtype)[6:] for tensor in tensors)
    hops, width = depth(model, convs) - first_hop, x.shape[1]
    nodes = data.num_nodes if convs and baked else None
    return Signature(tuple(names), name, hops, width, sparse, first_hop, baked, dtypes, nodes)
