"""TeacherCache: run the teacher once, keep its hidden states node-major."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checks import names
from abkd_fast._mapped import mapped_file
from abkd_fast._staging import blocks_on
from abkd_fast._storage import write_atomically
from abkd_fast._teacher_file import META, read_cache, read_meta, row_spans, write_cache
from abkd_fast._teacher_states import (
    LayerSpill,
    about_teacher,
    check_dtype,
    check_fits,
    check_path,
    check_storage,
    digest_states,
    fingerprint,
    moved,
    pack,
    place_states,
)
from abkd_fast.capture import Recorder, call_model, match_layers
from abkd_fast.data import GraphData
from abkd_fast.memory import empty_cache
from abkd_fast.ops import Moments, teacher_moments


class TeacherCache:
    """A frozen teacher's hidden states and class scores on one graph.

    The states lie in ``storage``: "memory" (of the device the teacher ran on), "pinned"
    (page-locked host memory) or "mmap" (a file that is read in place). From the last two,
    ``ops.layer_pair`` streams them to a student on a GPU in blocks of nodes.

    Attributes:
        states: [N, sum(widths)]; row v holds every layer's state of node v side by side, so
            that node blocks and gathers read contiguous memory. float32, bfloat16 or float64.
        widths: width d_i of every layer.
        logits: [N, C] class scores, or None when the cache was made from states alone.
        fingerprint: SHA-256 of teacher weights and data, or of the states they were given as.
        parameters: the teacher's parameter count, None when only its states are known.
        data: fingerprint of the data it ran on, None when only its states are known.
        device: where the student is to be; logits and moments are there.
    """

    def __init__(
        self,
        states: Tensor,
        widths: Sequence[int],
        logits: Tensor | None,
        fingerprint: str,
        parameters: int | None = None,
        data: str | None = None,
        moments: Moments | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Internal: use :meth:`build`, :meth:`from_states` or :meth:`load`."""
        self.states, self.widths = states, list(widths)
        self.logits, self.fingerprint = logits, fingerprint
        self.parameters, self.data = parameters, data
        self.device = states.device if device is None else device
        self._moments = moments

    @classmethod
    def build(
        cls,
        teacher: nn.Module,
        data: GraphData,
        layers: str | Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        forward: Callable[..., Tensor] | None = None,
        storage: str = "memory",
        path: str | Path | None = None,
    ) -> TeacherCache:
        """Run ``teacher`` once in eval mode and keep the outputs of ``layers``.

        With storage "mmap" a layer's states go to disk as soon as they are there; in memory are
        those that the teacher itself holds. A build that is stopped leaves ``path`` as it was.

        Args:
            teacher: any module that returns class scores [N, C].
            data: graph and features.
            layers: module paths or patterns; None takes the model's own ``hidden_layers``.
            dtype: bfloat16, float32 or float64, in which the states are kept.
            forward: called as ``forward(teacher, data)`` instead of binding the parameters of
                ``teacher.forward`` by name (see :meth:`GraphData.arguments`).
            storage: "memory", "pinned" or "mmap".
            path: the file of storage "mmap"; its folder needs room for two such files meanwhile.

        Raises:
            ValueError: names the argument, or the layer whose states are not finite.
            OSError: ``path`` could not be written.
        """
        check_dtype(dtype)
        check_path(storage, path)
        was_training = teacher.training
        teacher.eval()
        try:
            with torch.no_grad(), Recorder(teacher, layers) as recorder:
                if path is not None:
                    return cls._build_file(Path(path), recorder, data, dtype, forward)
                capture = recorder.collect(lambda: call_model(teacher, data, forward), data.graph)
        finally:
            teacher.train(was_training)
        packed = pack(capture.states, capture.logits, dtype, data.num_rows)
        about = about_teacher(teacher, data, recorder.paths, dtype)
        cache = cls(packed, capture.widths, capture.logits, *about)
        capture.states.clear()
        empty_cache()  # their memory would be kept for results of the same sizes
        return cache.pinned().to(data.graph.device) if storage == "pinned" else cache

    @classmethod
    def _build_file(
        cls,
        path: Path,
        recorder: Recorder,
        data: GraphData,
        dtype: torch.dtype,
        forward: Callable[..., Tensor] | None,
    ) -> TeacherCache:
        """Run the teacher and write its states to ``path``, layer by layer."""

        def write(temporary: Path) -> None:
            with LayerSpill(path.parent, dtype) as spill:
                model = recorder.model
                logits = recorder.stream(lambda: call_model(model, data, forward), spill.add)
                pack([], logits, dtype)  # its checks
                about = about_teacher(model, data, recorder.paths, dtype)
                empty = torch.empty(logits.size(0), 0, dtype=dtype)
                cache = cls(empty, spill.widths, logits, *about, spill.moments())
                cache._write(temporary, spill.rows(cache.num_nodes), dtype)

        write_atomically(path, write)
        empty_cache()
        return cls(**read_cache(path, mapped=True, verify=False)).to(data.graph.device)

    @classmethod
    def cached(
        cls,
        path: str | Path,
        teacher: nn.Module,
        data: GraphData,
        storage: str = "mmap",
        **options: Any,
    ) -> TeacherCache:
        """Load ``path`` if it was built from this teacher and data, else build and save it.

        ``options`` are those of :meth:`build`. A damaged file is an error, see :meth:`load`.
        """
        check_storage(storage)
        path = Path(path)
        paths = match_layers(teacher, options.get("layers"))
        if path.exists():
            wanted = fingerprint(teacher, data, paths, options.get("dtype", torch.float32))
            if read_meta(path)["fingerprint"] == wanted:
                return cls.load(path, storage).to(data.graph.device)
        if storage == "mmap":
            return cls.build(teacher, data, **options, storage=storage, path=path)
        cache = cls.build(teacher, data, **options, storage=storage)
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
        check_dtype(dtype)
        packed = pack(states, logits, dtype)
        logits = None if logits is None else logits.detach()
        widths = [state.size(1) for state in states]
        return cls(packed, widths, logits, digest_states(packed, logits, widths))

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.states.size(0)

    @property
    def num_layers(self) -> int:
        """Number of teacher layers T."""
        return len(self.widths)

    @property
    def storage(self) -> str:
        """Where the states lie: "memory", "pinned" or "mmap"."""
        if mapped_file(self.states) is not None:
            return "mmap"
        return "pinned" if self.states.is_pinned() else "memory"

    @property
    def streamed(self) -> bool:
        """Whether a pass over the states copies or reads them block by block."""
        return self.states.device != self.device or self.storage == "mmap"

    @cached_property
    def moments(self) -> Moments:
        """Means and second moments over all nodes, computed once (see ``ops.layer_pair``)."""
        return self._moments or self.moments_of(None)

    @property
    def whole_moments(self) -> Moments:
        """Those over all nodes of the graph, which the cache may hold a part of."""
        return self.moments

    def moments_of(self, mask: Tensor | None) -> Moments:
        """Moments over the nodes where ``mask`` [N] holds, None = all; on :attr:`device`."""
        mask = None if mask is None else mask.to(self.states.device)
        return moved(teacher_moments(self.states, self.widths, mask), self.device)

    @cached_property
    def means(self) -> list[Tensor]:
        """Mean over nodes of every layer, each [d_i]."""
        return list(self.whole_moments.mean.split(self.widths))

    def layer(self, i: int) -> Tensor:
        """View [N, d_i] of layer i."""
        return self.states.split(self.widths, dim=1)[i]

    def rows(self, nodes: Tensor) -> Tensor:
        """States [B, sum(widths)] of some nodes, on :attr:`device`."""
        rows = self.states[nodes.to(self.states.device)]
        file = mapped_file(self.states)
        if file is not None:
            file.drop(self.states)
        return rows.to(self.device)

    def pinned(self) -> TeacherCache:
        """The same in page-locked host memory; needs a GPU."""
        states = torch.empty(self.states.shape, dtype=self.states.dtype, pin_memory=True)
        return self._with(states.copy_(self.states), states.device)

    def to(self, device: torch.device | str, stream: bool | None = None) -> TeacherCache:
        """The same for a student on ``device``.

        Args:
            device: where logits and moments go.
            stream: whether the states stay in host memory and stream to a GPU; None copies them
                if a quarter of its memory then stays free, and says so on stderr if not.
        """
        device = torch.empty(0, device=device).device  # with its index
        if self.device == device:
            return self
        return self._with(place_states(self.states, device, stream), device)

    def _with(self, states: Tensor, device: torch.device) -> TeacherCache:
        """These states, and all else on ``device``."""
        known = self.__dict__.get("moments", self._moments)
        moments = None if known is None else moved(known, device)
        logits = None if self.logits is None else self.logits.to(device)
        about = {name: getattr(self, name) for name in META}
        return TeacherCache(states, logits=logits, moments=moments, device=device, **about)

    def check_fits(self, data: GraphData) -> None:
        """Raise ValueError unless this teacher ran on ``data``, as far as is known of it."""
        check_fits(data, self.data, self.num_nodes, self.logits, bool(self.widths))

    def save(self, path: str | Path) -> None:
        """Write states, scores and moments to one safetensors file, atomically."""
        states = self.states
        spans = row_spans(states.size(0), states.size(1) * states.element_size())
        blocks = blocks_on(states, spans, states.device)
        write_atomically(Path(path), lambda to: self._write(to, blocks, states.dtype))

    def _write(self, path: Path, blocks: Iterable[Tensor], dtype: torch.dtype) -> None:
        """``save`` with the states given in blocks of rows."""
        moments = self.moments if self.widths else None
        about = {name: getattr(self, name) for name in META}
        write_cache(
            path, blocks, (self.num_nodes, sum(self.widths)), dtype, self.logits, moments, about
        )

    @classmethod
    def load(cls, path: str | Path, storage: str = "mmap") -> TeacherCache:
        """Read and check a saved cache, in one pass over the file.

        Args:
            path: the file; with storage "mmap" it is read in place and must stay as it is.
            storage: where the states are to lie.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or something else.
        """
        check_storage(storage)
        cache = cls(**read_cache(Path(path), mapped=storage == "mmap", verify=True))
        return cache.pinned() if storage == "pinned" else cache

    def __repr__(self) -> str:
        """Sizes and dtype."""
        sizes = f"nodes={self.num_nodes}, layers={self.num_layers}"
        return f"TeacherCache({sizes}, {names([self.states.dtype])}, {self.storage})"
