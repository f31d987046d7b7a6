"""Timing calls: one by one, sides in turns, several clients at once."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checks import first_line
from abkd_fast.graph import CSRGraph
from abkd_fast.latency.samples import Measurement, samples_needed

ENOUGH = samples_needed(0.99)
TURN = 25  # calls of a subject before the next one's turn
FEWEST = 3  # samples of a subject, whatever time they take
FORMS = ("eager", "compile", "cuda_graph")


def measure(
    model: nn.Module | Callable[..., Any],
    inputs: tuple[Any, ...] | Sequence[tuple[Any, ...]] = (),
    *,
    forms: Sequence[str] = ("eager",),
    samples: int = ENOUGH,
    seconds: float = 10.0,
    warmup: int = 10,
    threads: int | None = None,
) -> dict[str, Measurement]:
    """Latency of a model or any callable, in several forms, taking turns.

    Gradients are off, and modules are in eval mode meanwhile. A call ends when its CUDA work has.

    Args:
        model: any ``nn.Module`` or callable.
        inputs: arguments of every call, or a list of such tuples: queries, taken in turn.
        forms: ``"eager"``: as it is; ``"compile"``: ``torch.compile``; ``"cuda_graph"``: captured
            and replayed (CUDA inputs, one tuple). Exported models are callables themselves.
        samples: calls timed in each form; 662 are enough for p99.
        seconds: where these have passed in a form, it ends with the samples it has.
        warmup: calls in each form before the samples, after the first.
        threads: ``torch.set_num_threads`` for the time of the call; None leaves them.

    Returns:
        A :class:`Measurement` for each form.

    Raises:
        ValueError: an unknown form, no samples, seconds that are not finite and > 0, or a CUDA
            graph without CUDA inputs.
    """
    queries = [inputs] if isinstance(inputs, tuple) else list(inputs)
    if not queries:
        raise ValueError("inputs must hold at least one tuple of arguments, got an empty list")
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise ValueError(f"forms must be among {', '.join(FORMS)}, got {list(forms)}")
    with evaluating(model), thread_count(threads):
        calls = {form: _form(form, model, queries) for form in forms}
        return compare(
            calls, samples=samples, seconds=seconds, warmup=warmup, compiled=set(forms) - {"eager"}
        )


def compare(
    subjects: Mapping[str, Callable[[], Any]],
    *,
    samples: int = ENOUGH,
    seconds: float = 10.0,
    warmup: int = 10,
    compiled: Set[str] = frozenset(),
    failed: dict[str, str] | None = None,
) -> dict[str, Measurement]:
    """Time calls without arguments in turns, so that a slow spell of the machine meets all.

    The first call of each is its cold one; for names in ``compiled`` it is the compilation, and
    the second is the cold one. Then ``warmup`` calls, then turns of 25 samples. The first call of a
    turn, which finds the caches full of the others' data, is none of them. A subject that has
    used its ``seconds`` drops out, after 3 samples at least. ``time.perf_counter_ns`` around the
    call; on a machine with a GPU, its work is waited for before and after.

    Args:
        subjects: name -> callable.
        samples: calls timed of each.
        seconds: of timed calls of each, at most.
        warmup: calls of each before, at most: slow ones get fewer.
        compiled: names whose first call compiles.
        failed: where given, subjects of ``compiled`` whose calls before the samples raise an error
            are left out, and it gets the reason.

    Returns:
        Name -> :class:`Measurement`.
    """
    if samples < 1 or warmup < 0:
        raise ValueError(f"samples must be >= 1 and warmup >= 0, got {samples} and {warmup}")
    check_seconds(seconds)
    first, cold, results, warm = {}, {}, {}, dict[str, int]()
    with torch.no_grad():
        for name, call in subjects.items():
            try:
                first[name], results[name] = _timed(call)
                cold[name] = _timed(call)[0] if name in compiled else first[name]
                warm[name] = _warm_up(call, warmup, 0.2 * seconds)
            except Exception as reason:  # of any compiler
                if failed is None or name not in compiled:
                    raise
                failed[name] = first_line(reason)
        timed = {name: call for name, call in subjects.items() if name in warm}
        taken, interrupted = _turns(timed, samples, seconds)
    return {
        name: Measurement(
            name=name,
            samples=tuple(taken[name]),
            interrupted=tuple(interrupted[name]),
            cold=cold[name],
            compile=first[name] if name in compiled else None,
            warmup=warm[name],
            result=results[name],
        )
        for name in timed
    }


def _warm_up(call: Callable[[], Any], calls: int, seconds: float) -> int:
    """How many calls were made."""
    deadline = time.perf_counter() + seconds
    for made in range(1, calls + 1):
        call()
        if time.perf_counter() > deadline:
            return made
    return calls


def _turns(
    subjects: Mapping[str, Callable[[], Any]], samples: int, seconds: float
) -> tuple[dict[str, list[int]], dict[str, list[bool]]]:
    """(samples, interrupted or not) of every subject."""
    taken: dict[str, list[int]] = {name: [] for name in subjects}
    resumed = dict.fromkeys(subjects, 0)
    interrupted: dict[str, list[bool]] = {name: [] for name in subjects}
    waiting = dict(subjects)
    while waiting:
        for name, call in list(waiting.items()):
            resumed[name] += _timed(call)[0]
            for _ in range(min(TURN, samples - len(taken[name]))):
                before = _switches()
                taken[name].append(_timed(call)[0])
                interrupted[name].append(_switches() > before)
                if sum(taken[name][-TURN:]) > 1e9 * seconds / 4:
                    break  # others wait
            used = sum(taken[name]) + resumed[name]
            enough = used > 1e9 * seconds and len(taken[name]) >= FEWEST
            if len(taken[name]) >= samples or enough:
                del waiting[name]
    return taken, interrupted


def after_sweeps(
    call: Callable[[], Any], sweep: Callable[[], Any], calls: int = 15, seconds: float = 1.0
) -> tuple[int, ...]:
    """ns of so many calls, each after a sweep; fewer where ``seconds`` have passed, 3 at least."""
    deadline, spent = time.perf_counter() + seconds, list[int]()
    with torch.no_grad():
        for made in range(calls):
            if made >= FEWEST and time.perf_counter() > deadline:
                break
            sweep()
            spent.append(_timed(call)[0])
    return tuple(spent)


def check_seconds(seconds: float) -> None:
    """Raise ValueError unless they can end a loop."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(
            f"seconds must be finite and > 0, got {seconds}; pass how long to time calls"
        )


def _switches() -> int:
    """Times that the system took a processor from this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def throughput(
    call: Callable[[], Any], clients: Sequence[int] = (1, 2), seconds: float = 1.0
) -> list[dict[str, float]]:
    """Queries a second under a closed loop: every client calls again as soon as it has its answer.

    Args:
        call: one query; must be safe to run in several threads.
        clients: numbers of threads to try.
        seconds: length of each trial.

    Returns:
        For each number of clients {clients, queries_per_s, p50 ms of a query}.

    Raises:
        ValueError: no clients, or seconds that are not finite and > 0.
    """
    check_seconds(seconds)
    rows = []
    for count in clients:
        if count < 1:
            raise ValueError(f"clients must be >= 1, got {count}")
        begin = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            loops = [pool.submit(_client, call, begin + seconds) for _ in range(count)]
            every = sorted(time for loop in loops for time in loop.result())
        passed = time.perf_counter() - begin
        rows.append(
            {
                "clients": count,
                "queries_per_s": len(every) / passed,
                "p50": 1e-6 * every[len(every) // 2],
            }
        )
    return rows


def _client(call: Callable[[], Any], end: float) -> list[int]:
    spent = []
    with torch.no_grad():
        while True:
            spent.append(_timed(call)[0])
            if time.perf_counter() > end:
                return spent


def _timed(call: Callable[[], Any]) -> tuple[int, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter_ns()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter_ns() - begin, result


def _form(
    form: str, model: Callable[..., Any], queries: list[tuple[Any, ...]]
) -> Callable[[], Any]:
    if form == "cuda_graph":
        return captured(model, queries)
    function = torch.compile(model) if form == "compile" else model
    return calling(function, queries)


def calling(function: Callable[..., Any], queries: Sequence[tuple[Any, ...]]) -> Callable[[], Any]:
    """A call without arguments that goes through the queries in turn."""
    if len(queries) == 1:
        only = queries[0]
        return lambda: function(*only)
    turn = cycle(queries)
    return lambda: function(*next(turn))


def captured(model: Callable[..., Any], queries: list[tuple[Any, ...]]) -> Callable[[], Any]:
    """Replays of a CUDA graph of ``model(*inputs)``; its result is overwritten by the next one."""
    devices = {part.device.type for part in queries[0] if isinstance(part, Tensor | CSRGraph)}
    if len(queries) != 1 or "cuda" not in devices:
        raise ValueError(
            "inputs must be one tuple with CUDA tensors for the form cuda_graph, got "
            f"{len(queries)} on {', '.join(sorted(devices)) or 'no device'}"
        )
    graph, results = torch.cuda.CUDAGraph(), list[Any]()

    def call() -> Any:
        if not results:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    model(*queries[0])
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                results.append(model(*queries[0]))
        graph.replay()
        return results[0]

    return call


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Modules in eval mode, each as it was afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
