"""R-GCN's layer on typed graphs: ours, PyG's layers, and relation by relation in torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import costs
import torch
from costs import Cost
from errors import relative
from gpu_compare import Case, Found, compiled, ours
from registry.catalog import op
from torch import Tensor

if TYPE_CHECKING:
    from abkd_fast import RelationalGraph

# Papers, authors, subjects: what ACM has, for where ABKD_DATA lacks it.
ACM_SIZE = {"paper": 4019, "author": 7167, "subject": 60}
ACM_EDGES = {("author", "paper"): 13407, ("paper", "subject"): 4019}
TINY_SIZE = {"paper": 300, "author": 150, "subject": 50}
TINY_EDGES = {("author", "paper"): 1500, ("paper", "subject"): 300}
Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x, weight, root, bias


@cache
def typed_graph(name: str) -> tuple[RelationalGraph, str]:
    """(graph with reverse relations, label, which says synthetic where it is)."""
    if name == "mag-shaped":
        from bench_relational import load

        return load(name, None), "mag-shaped, synthetic"
    if name == "acm-hetero" and os.environ.get("ABKD_DATA"):
        from bench_relational import load

        try:
            return load(name, Path(os.environ["ABKD_DATA"])), name
        except (OSError, ValueError) as error:
            print(f"{name}: {str(error).splitlines()[0]}; random edges instead")
    if name == "tiny":
        return drawn(TINY_SIZE, TINY_EDGES), "tiny, synthetic"
    return drawn(ACM_SIZE, ACM_EDGES), f"{name} size, synthetic"


def drawn(nodes: dict[str, int], edges: dict[tuple[str, str], int]) -> RelationalGraph:
    """Random edges between the types, and their reverse."""
    from abkd_fast import RelationalGraph

    generator = torch.Generator().manual_seed(0)
    found = {}
    for (source, target), count in edges.items():
        ends = [torch.randint(nodes[kind], (count,), generator=generator)
                for kind in (source, target)]  # fmt: skip
        found[source, "of", target] = torch.stack(ends)
    return RelationalGraph.from_relations(nodes, found).with_reverse()


class Sides:
    """The layer as each provider has it, on the same edges."""

    def __init__(self, graph: RelationalGraph) -> None:
        self.nodes = graph.num_dst
        self.index, self.kinds = graph.homogeneous()
        self.count = graph.num_relations
        of_kind = [(self.kinds == r).nonzero().flatten() for r in range(self.count)]
        self.edges = [tuple(self.index[:, places]) for places in of_kind]
        degrees = [torch.bincount(target, minlength=self.nodes) for _, target in self.edges]
        self.scale = [1 / degree.clamp(min=1).unsqueeze(1) for degree in degrees]

    def gathered(self, x: Tensor, weight: Tensor, root: Tensor, bias: Tensor) -> Tensor:
        """Means by gather and scatter, relation by relation; the definition in float64."""
        out = x @ root + bias
        for r, (source, target) in enumerate(self.edges):
            sums = x.new_zeros(self.nodes, x.size(1)).index_add(0, target, x[source])
            out = out + (sums * self.scale[r].to(x.dtype)) @ weight[r]
        return out

    def products(self) -> Layer:
        """Means as products with one sparse matrix a relation."""
        matrices = []
        for (source, target), scale in zip(self.edges, self.scale, strict=True):
            size = (self.nodes, self.nodes)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
                coo = torch.sparse_coo_tensor(
                    torch.stack([target, source]), scale.flatten()[target], size
                )
                matrices.append(coo.to_sparse_csr())

        def layer(x: Tensor, weight: Tensor, root: Tensor, bias: Tensor) -> Tensor:
            out = x @ root + bias
            for matrix, one in zip(matrices, weight, strict=True):
                out = out + (matrix @ x) @ one
            return out

        return layer

    def pyg(self, name: str, width: int) -> Layer:
        from torch_geometric import nn

        module = getattr(nn, name)(width, width, self.count)
        return lambda x, weight, root, bias: torch.func.functional_call(
            module, {"weight": weight, "root": root, "bias": bias}, (x, self.index, self.kinds)
        )


@op("relational+gradient", widths=(16, 64), quick=(16,), graphs=("acm-hetero", "mag-shaped"),
    load=typed_graph, known=("acm-hetero", "mag-shaped", "tiny"))  # fmt: skip
def relational(graph: RelationalGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """F -> F with root and bias: values and the gradients of x, weights, root and bias."""
    from abkd_fast.ops import relational as mine

    sides = Sides(graph)
    maps = (graph.num_relations, width, width), (width, width)
    weight, root = (torch.randn(shape) / width**0.5 for shape in maps)
    x, dout = (torch.randn(graph.num_dst, width) for _ in range(2))
    inputs = (x, weight, root, torch.randn(width))

    def step(make: Callable[[], Layer], dtype: torch.dtype = dtype) -> Callable[[], Found]:
        layer = make()
        leaves = [t.to(dtype).detach().requires_grad_() for t in inputs]

        def run() -> Found:
            out = layer(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))]

        return run

    peers: dict[str, Callable[[], Layer]] = {
        "PyG": lambda: sides.pyg("RGCNConv", width),
        "PyG fast": lambda: sides.pyg("FastRGCNConv", width),
        "csr @ x": sides.products,
        "gather + scatter": lambda: sides.gathered,
        "torch.compile": lambda: compiled(sides.gathered, "cpu"),
    }
    found = ours("cpu", lambda: step(lambda: lambda *leaves: mine(graph, *leaves)))
    found |= {name: lambda make=make: step(make) for name, make in peers.items()}
    expected = step(lambda: sides.gathered, torch.float64)()
    needs = {"PyG fast": 2 * 4 * graph.num_edges * width**2}  # a weight an edge, and its gradient
    return Case("relational", f"{label}, F={width}, forward+backward", dtype, cost_of(graph, width),
                found, lambda values: relative(values, expected), needs=needs,
                facts={"edges": graph.num_edges, "relations": graph.num_relations})  # fmt: skip


def cost_of(graph: RelationalGraph, width: int) -> Cost:
    """Every relation on the rows that it has edges into, and the root's product on all nodes."""
    parts = zip(graph.stack.counts(), graph.num_edges_of, strict=True)
    whole = costs.linear(graph.num_dst, width, width)
    for rows, edges in parts:
        whole += costs.relational(rows, edges, width)
    return whole
