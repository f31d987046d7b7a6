"""TeacherCache: run the teacher once, keep its hidden states node-major."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checks import FLOATS, check_finite, check_tensor, names
from abkd_fast._csr import tensor_bytes
from abkd_fast._storage import load_tensors, save_tensors
from abkd_fast.capture import Recorder, call_model, match_layers
from abkd_fast.data import GraphData
from abkd_fast.metrics import count_parameters
from abkd_fast.ops import Moments, teacher_moments

_KIND = "teacher-cache"
_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


class TeacherCache:
    """A frozen teacher's hidden states and class scores on one graph.

    Attributes:
        states: [N, sum(widths)]; row v holds every layer's state of node v side by side, so
            that node blocks and gathers read contiguous memory. float32, bfloat16 or float64.
        widths: width d_i of every layer.
        logits: [N, C] class scores, or None when the cache was made from states alone.
        fingerprint: SHA-256 of teacher weights and data, or of the states they were given as.
        parameters: the teacher's parameter count, None when only its states are known.
        data: fingerprint of the data it ran on, None when only its states are known.
    """

    def __init__(
        self,
        states: Tensor,
        widths: Sequence[int],
        logits: Tensor | None,
        fingerprint: str,
        parameters: int | None = None,
        data: str | None = None,
    ) -> None:
        """Internal: use :meth:`build`, :meth:`from_states` or :meth:`load`."""
        self.states, self.widths = states, list(widths)
        self.logits, self.fingerprint = logits, fingerprint
        self.parameters, self.data = parameters, data

    @classmethod
    def build(
        cls,
        teacher: nn.Module,
        data: GraphData,
        layers: str | Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        forward: Callable[..., Tensor] | None = None,
    ) -> TeacherCache:
        """Run ``teacher`` once in eval mode and keep the outputs of ``layers``.

        Args:
            teacher: any module that returns class scores [N, C].
            data: graph and features.
            layers: module paths or patterns; None takes the model's own ``hidden_layers``.
            dtype: bfloat16, float32 or float64, in which the states are kept.
            forward: called as ``forward(teacher, data)`` instead of binding the parameters of
                ``teacher.forward`` by name (see :meth:`GraphData.arguments`).
        """
        _check_dtype(dtype)
        was_training = teacher.training
        teacher.eval()
        try:
            with torch.no_grad(), Recorder(teacher, layers) as recorder:
                capture = recorder.collect(lambda: call_model(teacher, data, forward), data.graph)
        finally:
            teacher.train(was_training)
        packed = _pack(capture.states, capture.logits, dtype, data.num_rows)
        identity = fingerprint(teacher, data, recorder.paths, dtype)
        parameters = count_parameters(teacher)
        on = data.fingerprint()
        return cls(packed, capture.widths, capture.logits, identity, parameters, on)

    @classmethod
    def cached(
        cls, path: str | Path, teacher: nn.Module, data: GraphData, **options: Any
    ) -> TeacherCache:
        """Load ``path`` if it was built from this teacher and data, else build and save it.

        ``options`` are those of :meth:`build`.
        """
        path = Path(path)
        paths = match_layers(teacher, options.get("layers"))
        if path.exists():
            cache = cls.load(path)
            dtype = options.get("dtype", torch.float32)
            if cache.fingerprint == fingerprint(teacher, data, paths, dtype):
                return cache
        cache = cls.build(teacher, data, **options)
        cache.save(path)
        return cache

    @classmethod
    def from_states(
        cls,
        states: Sequence[Tensor],
        logits: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> TeacherCache:
        """Pack states [N, d_i] of any origin; raises ValueError on NaN or unequal N."""
        _check_dtype(dtype)
        packed = _pack(states, logits, dtype)
        logits = None if logits is None else logits.detach()
        widths = [state.size(1) for state in states]
        digest = hashlib.sha256(f"{widths} {dtype}".encode())
        for part in (packed, logits):
            if part is not None:
                digest.update(tensor_bytes(part))
        return cls(packed, widths, logits, digest.hexdigest())

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.states.size(0)

    @property
    def num_layers(self) -> int:
        """Number of teacher layers T."""
        return len(self.widths)

    @cached_property
    def moments(self) -> Moments:
        """Means and second moments over all nodes, computed once (see ``ops.layer_pair``)."""
        return teacher_moments(self.states, self.widths)

    @cached_property
    def means(self) -> list[Tensor]:
        """Mean over nodes of every layer, each [d_i]."""
        return list(self.moments.mean.split(self.widths))

    def layer(self, i: int) -> Tensor:
        """View [N, d_i] of layer i."""
        return self.states.split(self.widths, dim=1)[i]

    def check_fits(self, data: GraphData) -> None:
        """Raise ValueError unless this teacher ran on ``data``, as far as is known of it."""
        if self.data is not None and self.data != data.fingerprint():
            raise ValueError(
                f"teacher must have been run on {data.name!r} with this split, got a cache of "
                f"other data (fingerprint {self.data[:12]}); build the cache on this graph"
            )
        rows = data.num_nodes if self.widths else data.num_rows
        if self.num_nodes != rows:
            raise ValueError(
                f"teacher and data must have the same nodes, got {self.num_nodes} teacher rows "
                f"and {rows} nodes in {data.name!r}; build the cache on this graph"
            )
        if self.logits is not None and self.logits.size(1) < data.num_classes:
            raise ValueError(
                f"teacher must score the {data.num_classes} classes of {data.name!r}, "
                f"got {self.logits.size(1)}"
            )

    def save(self, path: str | Path) -> None:
        """Write states, scores and moments to one safetensors file, atomically."""
        tensors = {"states": self.states}
        if self.widths:
            tensors["mean"] = self.moments.mean
            tensors |= {f"second.{i}": second for i, second in enumerate(self.moments.second)}
        if self.logits is not None:
            tensors["logits"] = self.logits
        meta = {
            "widths": self.widths,
            "fingerprint": self.fingerprint,
            "count": self.moments.count if self.widths else None,
            "parameters": self.parameters,
            "data": self.data,
        }
        save_tensors(Path(path), tensors, meta, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> TeacherCache:
        """Read a saved cache; states are memory-mapped. ValueError when the file is damaged."""
        tensors, meta = load_tensors(Path(path), _KIND)
        cache = cls(
            tensors["states"],
            meta["widths"],
            tensors.get("logits"),
            meta["fingerprint"],
            meta["parameters"],
            meta["data"],
        )
        if cache.widths:
            second = [tensors[f"second.{i}"] for i in range(len(cache.widths))]
            cache.moments = Moments(tensors["mean"], second, meta["count"])
        return cache

    def __repr__(self) -> str:
        """Sizes and dtype."""
        dtype = str(self.states.dtype).removeprefix("torch.")
        return f"TeacherCache(nodes={self.num_nodes}, layers={self.num_layers}, {dtype})"


def fingerprint(
    teacher: nn.Module, data: GraphData, paths: Sequence[str], dtype: torch.dtype
) -> str:
    """SHA-256 over the teacher's structure, weights, captured layers, the dtype and the data."""
    digest = hashlib.sha256(f"{teacher} {list(paths)} {dtype} {data.fingerprint()}".encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ValueError(
            f"dtype must be {names(_DTYPES)}, got {names([dtype])}; "
            "bfloat16 halves the memory of float32"
        )


def _pack(
    states: Sequence[Tensor], logits: Tensor | None, dtype: torch.dtype, rows: int | None = None
) -> Tensor:
    """Checked states side by side, [N, sum(widths)]; ``rows`` of logits where they are not N."""
    named = {f"states[{i}]": state for i, state in enumerate(states)}
    if logits is not None:
        named["logits"] = logits
    if not named:
        raise ValueError("states must hold at least one tensor [N, d] when there are no logits")
    first = next(iter(named))
    for name, tensor in named.items():
        check_tensor(name, tensor, dim=2, dtypes=FLOATS)
        expected = named[first].size(0) if rows is None or name != "logits" else rows
        if tensor.size(0) != expected:
            raise ValueError(
                f"{name} must have N={expected} rows as {first} has, got {tensor.size(0)}"
            )
        check_finite(name, tensor)
    empty = named[first].new_empty(named[first].size(0), 0, dtype=dtype)
    return torch.cat([empty, *[state.detach().to(dtype) for state in states]], dim=1)
