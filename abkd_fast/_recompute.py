"""Layers whose forward is run again in the backward, from their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

from abkd_fast import _seeds

T = TypeVar("T")

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_NO_FORWARD = (nn.ParameterList, nn.ParameterDict)
# They change their buffers whenever they run.
_RUNNING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a model is made of: the outermost modules with parameters that are no lists.

    A module that holds a list of modules, or running statistics, is looked into instead.
    """
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, _NO_FORWARD) or not any(True for _ in child.parameters()):
            continue
        if any(isinstance(part, (*_LISTS, *_RUNNING)) for part in child.modules()):
            found += layers_of(child)
        else:
            found.append(child)
    return list(dict.fromkeys(found))


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let a forward of ``model`` keep the inputs of its layers alone.

    Each layer's forward runs a second time when the backward needs what it would have kept, with
    the same random numbers: torch's generators and the seeds of ``ops.dropout`` are set back.
    Batch normalisation runs once, for it counts its calls, and hooks of a layer run once.

    Raises:
        ValueError: in the context, a layer changes its buffers.
    """
    layers = [(layer, layer.__dict__.get("forward")) for layer in layers_of(model)]
    for layer, _ in layers:
        layer.__dict__["forward"] = partial(_run, layer, layer.forward)
    try:
        yield
    finally:
        for layer, replaced in layers:
            del layer.__dict__["forward"]
            if replaced is not None:
                layer.__dict__["forward"] = replaced


def _run(layer: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """``forward`` of a layer, in a way that it can be run again."""
    versions = [buffer._version for buffer in layer.buffers()]
    call = _Call()
    contexts = call.first(), _Again(call)
    out = checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)
    if [buffer._version for buffer in layer.buffers()] != versions:
        raise ValueError(
            "activations must not be 'recompute' for layers that change their buffers, got "
            f"{type(layer).__name__}; bfloat16 runs every layer once"
        )
    return out


class _Call:
    """What the runs of one call of a layer have in common."""

    def __init__(self) -> None:
        self._source = _seeds.current()
        self._count = 0 if self._source is None else self._source.count
        self._decided: list[Any] = []
        self._next = 0

    def once(self, decide: Callable[[], T]) -> T:
        if self._next == len(self._decided):
            self._decided.append(decide())
        self._next += 1
        found: T = self._decided[self._next - 1]
        return found

    @contextmanager
    def first(self) -> Iterator[None]:
        """The run in the forward."""
        global _current
        before, _current = _current, self
        try:
            yield
        finally:
            _current = before

    @contextmanager
    def again(self) -> Iterator[None]:
        """A run in the backward; seeds that it draws come from the generator, which is set back."""
        self._next, count = 0, 0 if self._source is None else self._source.count
        try:
            with self.first(), _seeds.drawing_from(self._source):
                if self._source is not None:
                    self._source.count = self._count
                yield
        finally:
            if self._source is not None:
                self._source.count = count


class _Again(ExitStack):
    """Enters ``_Call.again`` anew whenever it is entered."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self._call = call

    def __enter__(self) -> _Again:
        super().__enter__()
        self.enter_context(self._call.again())
        return self


_current: _Call | None = None


def once(decide: Callable[[], T]) -> T:
    """``decide()``; where a layer runs again, what it was the first time.

    For what depends on more than arguments, so that both runs compute the same.
    """
    return decide() if _current is None else _current.once(decide)
