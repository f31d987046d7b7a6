"""Which op of a model costs what: time, bytes and memory of every op call of a forward pass."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from abkd_fast.latency.measure import evaluating


@dataclass(frozen=True)
class OpCost:
    """One op call of a forward pass.

    Attributes:
        op: name, ``abkd_fast.conv``.
        layer: path of the module that made the call, "" for the model itself.
        ms: median time of the call, dispatch included.
        moved: bytes: every argument read and every result written once; of features that a graph
            reads, one row an edge. What caches serve again counts again.
    """

    op: str
    layer: str
    ms: float
    moved: int


@dataclass(frozen=True)
class Breakdown:
    """Cost of a forward pass by op call, in the order of the calls.

    Attributes:
        calls: every op call.
        activations: largest number of bytes of op results that were alive at once.
    """

    calls: tuple[OpCost, ...]
    activations: int

    @property
    def moved(self) -> int:
        """Bytes moved by all calls."""
        return sum(call.moved for call in self.calls)

    def by_layer(self) -> list[OpCost]:
        """Summed over consecutive calls of a module; ``op`` is the one that took longest."""
        rows: list[OpCost] = []
        for call in self.calls:
            if rows and rows[-1].layer == call.layer:
                before = rows[-1]
                longest = max(before, call, key=lambda cost: cost.ms)
                total = before.ms + call.ms, before.moved + call.moved
                rows[-1] = replace(longest, ms=total[0], moved=total[1])
            else:
                rows.append(call)
        return rows

    def by_op(self) -> list[tuple[str, int, float]]:
        """(op, calls, ms) of every op, the most expensive first."""
        total: dict[str, list[float]] = {}
        for call in self.calls:
            total.setdefault(call.op, []).append(call.ms)
        rows = [(op, len(times), sum(times)) for op, times in total.items()]
        return sorted(rows, key=lambda row: -row[2])


def breakdown(
    model: nn.Module | Callable[[], Any],
    call: Callable[[], Any] | None = None,
    *,
    repeats: int = 15,
) -> Breakdown:
    """Time every op call of ``call()``; median over ``repeats`` passes that make the same calls.

    The watching costs some 10 us a call outside of the times, so their sum is less than the
    latency of an unwatched pass by what Python does between the ops, and comparable with it.

    Args:
        model: whose modules name the layers; or a callable without arguments.
        call: what to run; default: ``model()``.
        repeats: passes, after one that warms up.
    """
    run = model if call is None else call
    watch = _Watch()
    with torch.no_grad(), evaluating(model), _layers(model, watch):
        run()
        passes = []
        for _ in range(repeats):
            with watch:
                run()
            passes.append(watch.take())
    first = passes[0]
    names = [(cost.op, cost.layer) for cost in first]
    same = [one for one in passes if [(cost.op, cost.layer) for cost in one] == names]
    times = [statistics.median(column) for column in zip(*([c.ms for c in p] for p in same))]  # noqa: B905
    calls = tuple(replace(cost, ms=ms) for cost, ms in zip(first, times, strict=True))
    return Breakdown(calls, watch.peak)


@contextmanager
def _layers(model: object, watch: _Watch) -> Iterator[None]:
    """Tell the watch which module runs."""
    modules = model.named_modules() if isinstance(model, nn.Module) else []
    handles = []
    for path, module in modules:
        if path:
            handles.append(module.register_forward_pre_hook(watch.enter(path)))
            handles.append(module.register_forward_hook(watch.leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_UNWRITTEN = ("empty.memory_format", "empty_like", "new_empty", "abkd_fast.empty_output")
_SOURCES = {  # the argument whose rows edges read
    "abkd_fast.conv": 3,
    "abkd_fast.spmm": 3,
    "abkd_fast.spmm_extremum": 3,
    "abkd_fast.edge_attention": 2,
    "abkd_fast.edge_attention_v2": 2,
}


class _Watch(TorchDispatchMode):
    """Notes time, bytes and results of every op call."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._costs: list[OpCost] = []
        self._path: list[str] = []
        self._alive: dict[int, int] = {}

    def enter(self, path: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._path.append(path)

        return hook

    def leave(self, *_: object) -> None:
        self._path.pop()

    def take(self) -> list[OpCost]:
        """The costs of the pass that ended."""
        costs, self._costs = self._costs, []
        self._alive.clear()
        return costs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        _synchronise()
        begin = time.perf_counter_ns()
        result = func(*args, **(kwargs or {}))
        _synchronise()
        spent = 1e-6 * (time.perf_counter_ns() - begin)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        written = self._follow(given, made)
        name = str(func).removesuffix(".default").removeprefix("aten.")
        if func._schema.is_mutable:  # in place, or into out
            written += _mutated(func, args, kwargs or {})
        read = [leaf for leaf in given if not any(leaf is out for out in _outs(kwargs))]
        moved = 0
        if written and name not in _UNWRITTEN:
            moved = _gathered(func, args) + _bytes(read) + _bytes(written)
        layer = self._path[-1] if self._path else ""
        self._costs.append(OpCost(name, layer, spent, moved))
        return result

    def _follow(self, given: Iterable[Tensor], made: Iterable[Tensor]) -> list[Tensor]:
        """The results that are in memory of their own; counted until they die."""
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        new = []
        for tensor in made:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if storage.nbytes() and address not in known:
                new.append(tensor)
                self._alive[address] = storage.nbytes()
                weakref.finalize(tensor, self._alive.pop, address, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return new


def _gathered(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes of the rows that edges read, instead of one reading of x where they read x itself."""
    name = str(func).removesuffix(".default")
    if name not in _SOURCES:
        return 0
    edges, x = args[1].numel(), args[_SOURCES[name]]
    if name == "abkd_fast.conv" and not args[10] and args[4] is not None:
        width = args[4].size(1)  # x W is written, then gathered
        return (edges + x.size(0)) * width * x.element_size()
    return edges * x[:1].nbytes - x.nbytes


def _mutated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an op writes to, whether it returns them or not."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.is_write:
            found += [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    return found


def _outs(kwargs: dict[str, Any] | None) -> list[Tensor]:
    """Tensors that an op writes only."""
    return [leaf for leaf in tree_leaves((kwargs or {}).get("out")) if isinstance(leaf, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
