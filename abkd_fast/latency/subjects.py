"""The models that a profile compares, and the queries that they answer."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from abkd_fast._binding import bind_arguments
from abkd_fast._csr import Structure
from abkd_fast._trained import model_path
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.latency.flat import flatten
from abkd_fast.latency.measure import captured
from abkd_fast.model_file import ModelFile, load_model, save_model
from abkd_fast.nn import ModelSpec

if TYPE_CHECKING:
    from abkd_fast.export import Exported

EXPORTED = ("torch-export", "aoti")
FORMS = ("eager", "flat", "compile", *EXPORTED, "cuda_graph")
FULL, ONE, WORST = "full graph", "one node", "worst node"
Call = Callable[..., Any]


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
        exported: programs of the forms that are some, once they were made.
    """

    name: str
    role: str
    model: nn.Module
    about: ModelFile | None = None
    source: str | None = None
    prepare: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    exported: dict[str, Exported] = field(default_factory=dict)


def load_subjects(students: Sequence[str | Path], teacher: str | Path | None) -> list[Subject]:
    """Read the models; the teacher first, names made distinct by numbers."""
    _load_nothing()
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


def _load_nothing() -> None:
    """Pay for the imports of loading, which are no model's."""
    about = ModelFile("gcn-1x1", 1, 1, {}, "", "")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_model(file, ModelSpec.parse(about.spec).build(1, 1), about)
        load_model(file)


def start_tools(forms: Sequence[str], device: torch.device) -> None:
    """Let a layer of four weights pay for what a process imports and builds once for its forms."""
    tiny = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(device)  # a product and a kernel
    x = torch.ones(2, 2, device=device)
    with torch.no_grad():
        tiny(x)
        flatten(tiny, x)
        with suppress(Exception):  # what is missing is missed by the forms, with its reason
            if {"compile", "aoti"} & set(forms):
                with _compilers_anew():
                    torch.compile(_of_its_own(tiny))(x)
            if set(EXPORTED) & set(forms):
                torch.export.export(tiny, (x,))


def _of_its_own(model: nn.Module) -> Call:
    """The model in code of its own: torch.compile keeps what it made by code, not by module."""

    def forward(*arguments: Any) -> Any:
        return model(*arguments)

    forward.__code__ = forward.__code__.replace()
    return forward


@contextmanager
def _compilers_anew() -> Iterator[None]:
    """Compilers meanwhile find nothing that an earlier model or process compiled."""
    from torch._inductor.utils import fresh_cache

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, fresh_cache(dir=folder):
        yield


def full_graph_calls(
    model: nn.Module,
    data: GraphData,
    forms: Sequence[str],
    exported: dict[str, Exported] | None = None,
) -> dict[str, Call]:
    """Forward passes over the whole graph, from the features on, by form.

    The first call of any form but "eager" makes it: compiles, traces or captures; ``exported``
    then holds its program.
    """
    programs = {} if exported is None else exported
    arguments = from_features(model, data)
    makers: dict[str, Callable[[], Call]] = {
        "eager": lambda: partial(model, *arguments),
        "flat": lambda: flat_forward(model, data),
        "compile": lambda: partial(torch.compile(_of_its_own(model)), *arguments),
        "cuda_graph": lambda: captured(model, [arguments]),
    }
    makers |= {name: partial(exported_forward, model, data, name, programs) for name in EXPORTED}
    compilers = ("compile", "aoti")
    return {
        form: _made_once(makers[form], _compilers_anew if form in compilers else nullcontext)
        for form in forms
    }


def from_features(model: nn.Module, data: GraphData) -> tuple[Any, ...]:
    """Arguments of a pass that starts from X; A_hat X, which the data may know, is not given."""
    return bind_arguments(data, model, without=("aggregated_x",))


def _made_once(
    make: Callable[[], Call], meanwhile: Callable[[], AbstractContextManager[Any]]
) -> Call:
    made: list[Call] = []

    def call() -> Any:
        if made:
            return made[0]()
        with meanwhile():
            one = make()
            result = one()
        made.append(one)
        return result

    return call


def exported_forward(
    model: nn.Module, data: GraphData, form: str, programs: dict[str, Exported]
) -> Call:
    """A pass of the program that ``abkd-fast export --format FORM`` writes, put into ``programs``.

    Raises:
        ValueError: the model cannot be exported.
    """
    from abkd_fast.export import export_student

    with TemporaryDirectory() as folder:
        program = export_student(model, data, Path(folder) / "student.pt2", format=form)
    programs[form] = program
    return partial(program, *program.signature.arguments(data))


def flat_forward(model: nn.Module, data: GraphData) -> Call:
    """A forward pass over the graph of ``data`` as one straight line of op calls.

    See :mod:`abkd_fast.latency.flat`; features may change in place, weights and graph may not.

    Raises:
        ValueError: the model takes no x, the data have none, or the scores are not the model's.
        RuntimeError: the model cannot be traced.
    """
    arguments, names = from_features(model, data), list(inspect.signature(model.forward).parameters)
    place = names.index("x") if "x" in names else len(arguments)
    if place >= len(arguments) or data.x is None:
        raise ValueError(f"the model must take x and the data have it, got {names} and {data!r}")
    x = arguments[place]
    parts: list[Any] = [x] if isinstance(x, Tensor) else [x.rowptr, x.col, x.value]

    def forward(*parts: Tensor) -> Tensor:
        whole: Tensor | CSRGraph = parts[0]
        if len(parts) == 3:
            rowptr, col, value = parts
            whole = CSRGraph(Structure(rowptr, col, x.shape[1]), value)
        scores = model(*arguments[:place], whole, *arguments[place + 1 :])
        if not isinstance(scores, Tensor):
            raise ValueError(f"the model must return scores, got {type(scores).__name__}")
        return scores

    inputs = (parts, [*parts[:-1], 0.5 * parts[-1]])  # as they are, and others
    with torch.no_grad():
        expected = [forward(*given) for given in inputs]  # before tracing: makes what graphs keep
        line = flatten(forward, *parts).forward
        for given, scores in zip(inputs, expected, strict=True):
            if not torch.allclose(line(*given), scores, rtol=1e-4, atol=1e-6):
                raise ValueError(f"{type(model).__name__} gave other scores in one line")
    return torch.no_grad()(lambda: line(*parts))


def node_queries(data: GraphData, batch: int, count: int, seed: int) -> dict[str, list[Tensor]]:
    """``count`` queries of each kind but the worst, drawn once, for every model the same.

    Quantiles over queries need as many independent ones as they need samples.
    """
    generator, nodes = np.random.default_rng(seed), data.num_nodes
    drawn = torch.from_numpy(generator.integers(nodes, size=count))
    batch = min(batch, nodes)
    batches = [
        torch.from_numpy(generator.choice(nodes, batch, replace=False)) for _ in range(count)
    ]
    worst = data.graph.rowptr.diff().argmax()
    return {
        ONE: list(drawn[:, None]),
        WORST: [worst[None]],
        f"{batch} nodes": batches,
    }


def node_call(server: Callable[[Tensor], Tensor], queries: Sequence[Tensor]) -> Call:
    """Queries one after the other, in turn."""
    if len(queries) == 1:
        return lambda: server(queries[0])
    turn = cycle(queries)
    return lambda: server(next(turn))
