"""What the registry's entries are: ops by name, where each is timed, cases by name.

A maker turns (graph, label, width, dtype) into a :class:`gpu_compare.Case`: one side a provider,
and how to tell whether its values are right. Makers import what they need when they are called: an
older abkd_fast that lacks an op then leaves out that op only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import gpu_compare
import torch
from gpu_compare import Case
from gpu_graphs import SIZES, load

from abkd_fast import CSRGraph

GRAPHS = ("pubmed", "ogbn-arxiv")  # R-MAT of their sizes where ABKD_DATA lacks them
SINGLE, HALF = torch.float32, torch.bfloat16
Maker = Callable[[Any, str, int, torch.dtype], Case]
Loader = Callable[[str], tuple[Any, str]]


def compile_for_real() -> None:
    """torch.compile with its own backend in this process, not with that of rehearsals."""
    gpu_compare.COMPILERS["cpu"] = "inductor"


@cache
def graph_of(name: str) -> tuple[CSRGraph, str]:
    """(GCN-normalised graph with its transpose, label, which says synthetic where it is)."""
    graph, label = load(name, "cpu")
    graph = graph.gcn_norm()
    graph.t()
    return graph, label


@dataclass(frozen=True)
class Op:
    """A maker, and where it is timed: ``quick`` widths are those of `make bench`.

    Attributes:
        known: graphs that ``load`` has; "tiny" must be one of them.
    """

    make: Maker
    widths: tuple[int, ...]
    quick: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    graphs: tuple[str, ...]
    load: Loader = graph_of
    known: tuple[str, ...] = tuple(SIZES)


@dataclass(frozen=True)
class Spec:
    """One case by name."""

    op: str
    graph: str
    width: int
    dtype: str

    def __str__(self) -> str:
        return "/".join(str(part) for part in asdict(self).values())

    def label(self) -> str:
        """Of the graph."""
        return OPS[self.op].load(self.graph)[1]

    def make(self) -> Case:
        graph, label = OPS[self.op].load(self.graph)
        torch.manual_seed(0)
        return OPS[self.op].make(graph, label, self.width, getattr(torch, self.dtype))

    def providers(self) -> list[str]:
        """Names of the sides that are installed, from a graph of 500 nodes."""
        return list(Spec(self.op, "tiny", self.width, self.dtype).make().sides)


OPS: dict[str, Op] = {}


def op(
    name: str,
    widths: tuple[int, ...],
    quick: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...] = (SINGLE,),
    graphs: tuple[str, ...] = GRAPHS,
    **loads: Any,
) -> Callable[[Maker], Maker]:
    """Enter a maker into the registry."""

    def enter(make: Maker) -> Maker:
        OPS[name] = Op(make, widths, quick, dtypes, graphs, **loads)
        return make

    return enter


def grid(quick: bool, graphs: Sequence[str] | None = None) -> Iterator[Spec]:
    """All cases; ``quick``: the first graph, few widths; ``graphs``: in place of the ops'."""
    for name, entry in OPS.items():
        named = [graph for graph in graphs or () if graph in entry.known]
        for graph in named if graphs else (entry.graphs[:1] if quick else entry.graphs):
            for width in entry.quick if quick else entry.widths:
                for dtype in entry.dtypes:
                    yield Spec(name, graph, width, str(dtype).removeprefix("torch."))
