"""The models that a profile compares, and the queries that they answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._csr import Structure
from abkd_fast._trained import model_path
from abkd_fast.capture import call_model
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.latency.flat import flatten
from abkd_fast.latency.measure import captured
from abkd_fast.latency.server import NodeServer
from abkd_fast.model_file import ModelFile, load_model

FORMS = ("eager", "flat", "compile", "cuda_graph")
FULL, ONE, WORST = "full graph", "one node", "worst node"
Call = Callable[[], Any]


@dataclass
class Subject:
    """A model under measurement.

    Attributes:
        name: shown; unlike that of any other subject.
        role: "teacher" or "student".
        model: in eval mode.
        about: what its file says, None for a model from memory.
        source: path of the file, or None.
        prepare: ns by what was prepared.
        left_out: why a form is missing.
    """

    name: str
    role: str
    model: nn.Module
    about: ModelFile | None = None
    source: str | None = None
    prepare: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def load_subjects(students: Sequence[str | Path], teacher: str | Path | None) -> list[Subject]:
    """Read the models; the teacher first, names made distinct by numbers."""
    wanted = [("teacher", teacher)] if teacher is not None else []
    subjects: list[Subject] = []
    for role, path in [*wanted, *(("student", student) for student in students)]:
        assert path is not None
        file = model_path(path, role)
        begin = time.perf_counter_ns()
        model, about = load_model(file)
        spent = time.perf_counter_ns() - begin
        alike = sum(other.name.split(" #")[0] == about.spec for other in subjects)
        name = f"{about.spec} #{alike + 1}" if alike else about.spec
        subjects.append(Subject(name, role, model, about, str(file), {"load": spent}))
    return subjects


def full_graph_calls(
    subject: Subject, data: GraphData, forms: Sequence[str]
) -> Iterator[tuple[str, Call]]:
    """(form, call) of a forward pass over the whole graph."""
    model = subject.model
    for form in forms:
        if form == "eager":
            yield form, lambda: call_model(model, data)
        elif form == "compile":
            yield form, partial(torch.compile(model), *data.arguments(model))
        elif form == "cuda_graph":
            yield form, captured(model, [data.arguments(model)])
        else:
            begin = time.perf_counter_ns()
            try:
                call = flat_forward(model, data)
            except (RuntimeError, ValueError) as reason:
                subject.left_out[form] = str(reason).splitlines()[0]
                continue
            subject.prepare["flatten"] = time.perf_counter_ns() - begin
            yield form, call


def flat_forward(model: nn.Module, data: GraphData) -> Call:
    """A forward pass over the graph of ``data`` as one straight line of op calls.

    See :mod:`abkd_fast.latency.flat`; features may change in place, weights and graph may not.

    Raises:
        ValueError: the features are no matrix, or the scores are not the model's.
        RuntimeError: the model cannot be traced.
    """
    x, *rest = data.arguments(model)
    if not isinstance(x, Tensor | CSRGraph) or data.x is None:
        raise ValueError(f"data must have features, got {data!r}")
    parts = [x] if isinstance(x, Tensor) else [x.rowptr, x.col, x.value]
    width = x.shape[1]

    def forward(*parts: Tensor) -> Tensor:
        whole: Tensor | CSRGraph = parts[0]
        if len(parts) == 3:
            rowptr, col, value = parts
            whole = CSRGraph(Structure(rowptr, col, width), value)
        return model(whole, *rest)

    with torch.no_grad():
        expected = model(x, *rest)
        line = flatten(forward, *parts).forward
        if not torch.allclose(line(*parts), expected, rtol=1e-4, atol=1e-6):
            raise ValueError(f"{type(model).__name__} gave other scores in one line")
    return torch.no_grad()(lambda: line(*parts))


def node_queries(data: GraphData, batch: int, count: int, seed: int) -> dict[str, list[Tensor]]:
    """The nodes that are asked for, by kind of query; drawn once, for every model the same."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(data.num_nodes, (count,), generator=generator)
    batch = min(batch, data.num_nodes)
    batches = [torch.randperm(data.num_nodes, generator=generator)[:batch] for _ in range(16)]
    worst = data.graph.rowptr.diff().argmax()
    return {
        ONE: list(drawn[:, None]),
        WORST: [worst[None]],
        f"{batch} nodes": batches,
    }


def node_call(server: NodeServer, queries: Sequence[Tensor]) -> Call:
    """Queries one after the other, in turn."""
    if len(queries) == 1:
        return lambda: server(queries[0])
    turn = cycle(queries)
    return lambda: server(next(turn))
