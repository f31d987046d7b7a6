"""The models that a profile compares, and the queries that they answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast import data as datasets
from abkd_fast._csr import Structure
from abkd_fast.capture import call_model
from abkd_fast.config import SettingError
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


def model_path(path: str | Path, role: str = "student") -> Path:
    """The model file that a path names: itself, or that of a run's folder.

    Of several seeds the one that is best on validation, as the run's metrics.json says.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    seeds = sorted(path.glob("seed*/student.safetensors"))
    plain = [path / f"{name}.safetensors" for name in (role, "student", "teacher")]
    found = [file for file in plain if file.is_file()]
    if role == "student" and seeds:
        best = path / f"seed{_best_seed(path / 'metrics.json')}" / "student.safetensors"
        return best if best in seeds else seeds[0]
    if found:
        return found[0]
    raise ValueError(
        f"{role} must be a model file or the folder of a run that has one, got {str(path)!r}; "
        "abkd-fast distill and train-teacher write them to their --out"
    )


def _best_seed(metrics: Path) -> int:
    try:
        content = json.loads(metrics.read_text())
        values = content["student"]["val"]["values"]
        return int(content["seeds"][max(range(len(values)), key=values.__getitem__)])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


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


def data_of(
    path: Path | None, dataset: str | None, root: Path | None, trained_on: str
) -> GraphData:
    """The data at ``path``, or a registered set: ``dataset``, else the model's own."""
    if path is not None:
        return datasets.load_path(path)
    name = dataset or trained_on
    if name not in datasets.names():
        raise SettingError(
            f"dataset must be given: {name!r}, which the model was trained on, is none of "
            "the registered ones; pass --dataset NAME or --data PATH"
        )
    return datasets.load(name, root=root)


def check_fits(about: ModelFile, data: GraphData, name: str) -> None:
    """Raise SettingError unless the model ``name`` is of the data's features and classes."""
    sizes = data.num_features, data.num_classes
    if sizes != (about.in_channels, about.out_channels):
        raise SettingError(
            f"data must have the {about.in_channels} features and {about.out_channels} classes of "
            f"{name}, got {sizes[0]} and {sizes[1]} ({data.name})"
        )
