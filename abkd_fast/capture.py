"""Hidden states of any nn.Module, by module path or pattern."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from abkd_fast._activations import keep
from abkd_fast.column_sums import column_means
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph


@dataclass
class Capture:
    """What one forward pass left behind.

    Attributes:
        states: hidden states in call order, each [N, d_j].
        logits: class scores [N, C].
        names: module path of every state.
        graph: the graph the model ran on, for objectives that compare neighbourhoods.
        share: the share of all nodes that ``means`` are over; None: that of the rows.
    """

    states: list[Tensor]
    logits: Tensor
    names: list[str]
    graph: CSRGraph | None = None
    share: float | None = None

    @property
    def means(self) -> list[Tensor]:
        """Mean over nodes of every state, each [d_j]; differentiable."""
        return [column_means(state) for state in self.states]

    @property
    def widths(self) -> list[int]:
        """Width of every state."""
        return [state.size(1) for state in self.states]


def match_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> list[str]:
    """Module paths of ``model`` that match ``layers``, in definition order.

    Args:
        model: any module.
        layers: module paths or shell patterns ("convs.*", "encoder.layer[0-3]"); None takes
            the model's own ``hidden_layers``.

    Raises:
        ValueError: a pattern matches nothing, or none was given and the model names none.
    """
    if layers is None:
        layers = getattr(model, "hidden_layers", None) or None
    paths = [path for path, _ in model.named_modules() if path]
    if layers is None:
        raise ValueError(
            f"layers must be given for {type(model).__name__}: module paths or patterns among "
            f"{', '.join(paths[:12])}{', ...' if len(paths) > 12 else ''}"
        )
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f"layers must match modules of {type(model).__name__}, got {pattern!r}; "
                f"it has {', '.join(paths[:12])}{', ...' if len(paths) > 12 else ''}"
            )
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def call_model(
    model: nn.Module, data: GraphData, forward: Callable[..., Tensor] | None = None
) -> Tensor:
    """``forward(model, data)``, or the model on the arguments its forward names.

    See :meth:`GraphData.arguments` for the names that are understood.
    """
    return model(*data.arguments(model)) if forward is None else forward(model, data)


class Recorder:
    """Runs a model and keeps the outputs of some of its modules, as long as it runs it.

    A module that is called several times (a shared layer) gives one state a call. Use it as a
    context manager, or call :meth:`close`, to remove the hooks.

    Args:
        model: any module whose forward returns class scores.
        layers: see :func:`match_layers`.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str] | None = None) -> None:
        self.model = model
        self.paths = match_layers(model, layers)
        # Path, what returns the output as long as it is alive, and its changes in place so far.
        self._calls: list[tuple[str, Callable[[], Tensor | None], int]] = []
        self._recording = False
        self._sink: Callable[[str, Tensor], None] | None = None
        modules = dict(model.named_modules())
        self._handles = [
            modules[path].register_forward_hook(self._hook(path)) for path in self.paths
        ]

    def run(self, *args: Any, graph: CSRGraph | None = None) -> Capture:
        """Call ``model(*args)`` and return its states and scores; ``graph`` is handed on."""
        return self.collect(lambda: self.model(*args), graph)

    def collect(self, call: Callable[[], Tensor], graph: CSRGraph | None = None) -> Capture:
        """Make ``call``, which must run the model once, and return its states and scores."""
        logits = self._run(call)
        names = [name for name, _, _ in self._calls]
        states = [state for _, get, _ in self._calls if (state := get()) is not None]
        self._calls.clear()
        return Capture(states, logits, names, graph)

    def stream(self, call: Callable[[], Tensor], sink: Callable[[str, Tensor], None]) -> Tensor:
        """As :meth:`collect`, but hand each state with its path to ``sink`` and keep none.

        Returns the scores. So the states of all layers are never held at once.
        """
        self._sink = sink
        try:
            return self._run(call)
        finally:
            self._sink = None
            self._calls.clear()

    def _run(self, call: Callable[[], Tensor]) -> Tensor:
        """Make ``call`` with the hooks on; its scores, checked."""
        self._calls.clear()
        self._recording = True
        try:
            logits = call()
        finally:
            self._recording = False
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ValueError(
                f"{type(self.model).__name__} must return class scores [N, C], got "
                f"{list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__}"
            )
        self._check_unchanged()
        return logits

    def _check_unchanged(self) -> None:
        for path, get, version in self._calls:
            state = get()
            if state is not None and _version(state) != version:
                raise ValueError(
                    f"the output of {path!r} must not be changed in place after it is captured; "
                    "capture the module that makes the change, or use the out-of-place function"
                )

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _hook(self, path: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if not self._recording:
                return
            if not isinstance(output, Tensor) or output.dim() != 2:
                got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"the output of {path!r} must be a tensor [N, d], got {got}")
            self._keep(path, output)

        return record

    def _keep(self, path: str, output: Tensor) -> None:
        if self._sink is None:
            keep(output)
            self._calls.append((path, lambda: output, _version(output)))
            return
        self._check_unchanged()  # of those that are still alive: the input of this layer
        self._calls = [call for call in self._calls if call[1]() is not None]
        self._sink(path, output)
        self._calls.append((path, weakref.ref(output), _version(output)))


def _version(state: Tensor) -> int:
    """Number of changes in place; inference tensors count none."""
    return 0 if state.is_inference() else state._version
