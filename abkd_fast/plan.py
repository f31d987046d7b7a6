"""What memory a run will need, estimated from shapes before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from abkd_fast._activations import CHOICES
from abkd_fast._checks import check_choice
from abkd_fast._machine import device_memory, format_bytes, host_memory, resident_bytes
from abkd_fast.capture import match_layers
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache

_BUFFERS = 10**8  # blocks on their way (to the disk, the device, float64), libraries not loaded yet


@dataclass(frozen=True)
class MemoryPlan:
    """The largest memory of a run, and what it is made of.

    Attributes:
        where: "memory" of the machine, or a GPU.
        parts: bytes by what they hold.
        available: bytes that there are for them.
        remedies: what makes it smaller.
    """

    where: str
    parts: dict[str, int]
    available: int
    remedies: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes needed."""
        return sum(self.parts.values())

    def check(self) -> MemoryPlan:
        """Return the plan; ValueError unless it fits."""
        if self.total > self.available:
            fix = "; or ".join(self.remedies) or "use a machine with more"
            raise ValueError(f"{self.where} must hold the run, got: {self}; {fix}")
        return self

    def __str__(self) -> str:
        """``needs 11.2 GB, have 22.4 GB (...)``."""
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
        needs, have = format_bytes(self.total), format_bytes(self.available)
        return f"{self.where} needs {needs}, have {have} ({listed})"


def memory_plan(
    data: GraphData,
    student: nn.Module,
    teacher: nn.Module | TeacherCache | None = None,
    *,
    teacher_layers: str | Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    storage: str = "memory",
    activations: str | None = None,
) -> list[MemoryPlan]:
    """Peak memory of building the teacher's cache and training the student, full batch.

    From shapes: nothing is run, and models may be on the meta device. Peak resident sizes of
    whole runs were within half as much again of it. What the process holds already counts as it
    is. Widths of layers are read from their ``out_channels``, ``out_features`` or parameters.

    Args:
        data: graph and features, loaded.
        student: the model to train; without a teacher, on labels alone.
        teacher: a module, whose cache is still to be built, or the cache.
        teacher_layers: as for :meth:`TeacherCache.build`, like dtype and storage.
        dtype: of the teacher's states.
        storage: of the teacher's states.
        activations: what the student's layers keep, as in :class:`TrainConfig`.

    Returns:
        The plan of the host, then that of the GPU if the data are on one.
    """
    run = _Run(data, student, teacher, teacher_layers, dtype, storage, activations)
    device = data.graph.device
    if device.type != "cuda":
        held = {"held now": resident_bytes()}
        parts = held | run.graph() | run.teacher(kept=True) | run.training() | {"buffers": _BUFFERS}
        return [MemoryPlan("memory", parts, host_memory(), run.remedies())]
    free, total = device_memory(device)
    fits = run.states_bytes <= free - total // 4
    held = {"held now": torch.cuda.memory_allocated(device)}
    on_device = held | run.graph() | run.training() | {"buffers": _BUFFERS}
    if storage == "memory" or fits:
        on_device |= run.teacher(kept=True)
    in_host = {"held now": resident_bytes(), "buffers": _BUFFERS}
    in_host |= run.teacher(kept=storage != "memory")
    return [
        MemoryPlan("memory", in_host, host_memory(), run.remedies()),
        MemoryPlan(str(device), on_device, free + held["held now"], run.remedies()),
    ]


class _Run:
    """Bytes of the parts of a run."""

    def __init__(
        self,
        data: GraphData,
        student: nn.Module,
        teacher: nn.Module | TeacherCache | None,
        teacher_layers: str | Sequence[str] | None,
        dtype: torch.dtype,
        storage: str,
        activations: str | None,
    ) -> None:
        if activations is not None:
            check_choice("activations", activations, CHOICES)
        self.activations = activations
        self.data, self.student, self.storage, self.dtype = data, student, storage, dtype
        self.num_nodes = data.num_nodes
        self.is_built = isinstance(teacher, TeacherCache)
        self.teacher_widths: list[int] = []
        if isinstance(teacher, TeacherCache):
            self.teacher_widths, self.dtype = teacher.widths, teacher.states.dtype
        elif teacher is not None:
            modules = dict(teacher.named_modules())
            paths = match_layers(teacher, teacher_layers)
            self.teacher_widths = [layer_width(modules[path]) for path in paths]
        self.states_bytes = self.num_nodes * sum(self.teacher_widths) * self.dtype.itemsize

    def graph(self) -> dict[str, int]:
        """Normalised and transposed adjacency, and the transpose of sparse features."""
        # rowptr, col and value, and the transpose's with the order of its edges.
        edges = self.data.graph.num_edges + self.num_nodes
        size = 28 * edges + 16 * self.num_nodes
        x = self.data.x
        if isinstance(x, CSRGraph):
            size += 16 * x.num_edges + 8 * x.num_src
        return {"graph": size}

    def teacher(self, kept: bool) -> dict[str, int]:
        """States, and what the run of the teacher takes beyond what training takes later."""
        if not self.teacher_widths or self.is_built:
            return {}
        run, states = 4 * 4 * self.num_nodes * max(self.teacher_widths), 0
        if self.storage != "mmap":
            run += 4 * self.num_nodes * sum(self.teacher_widths)
            states = self.states_bytes if kept else 0
        run = max(run - sum(self.training().values()), 0)
        return {"teacher states": states, "teacher run": run}

    def training(self) -> dict[str, int]:
        """Student states and gradients, parameters and the optimiser's."""
        layers = [m for m in self.student.modules() if list(m.parameters(recurse=False))]
        widths = [layer_width(layer) for layer in layers]
        hidden = 4 * self.num_nodes * sum(widths)
        widest = 4 * self.num_nodes * max(widths, default=0)
        # A layer's output, and what its gradient is computed from.
        output = bases = hidden
        if self.activations == "bfloat16":
            bases = hidden // 2 + 4 * widest  # a layer's own, in float32 again
            output = hidden if self.teacher_widths else hidden // 2  # or states to be compared
        elif self.activations == "recompute":
            bases = min(hidden, 2 * widest)  # of one layer
        parameters = sum(p.numel() * p.element_size() for p in self.student.parameters())
        if self.teacher_widths:  # projections of width 64, two a layer, and second moments
            parameters += 4 * 128 * (sum(self.teacher_widths) + sum(widths))
            parameters += 8 * sum(width**2 for width in self.teacher_widths)
        return {
            "student states": output + bases,
            "gradients": (hidden if self.teacher_widths else 0) + 6 * widest,
            "parameters": 4 * parameters,  # with gradients and Adam's two averages
        }

    def remedies(self) -> tuple[str, ...]:
        """What makes the run smaller, the best first."""
        found = []
        if self.teacher_widths and not self.is_built and self.storage != "mmap":
            found = ['keep the teacher\'s states on disk (storage="mmap", --cache.storage mmap)']
            if self.dtype != torch.bfloat16:
                found.append("in bfloat16 (dtype=torch.bfloat16, --cache.dtype bfloat16)")
        if self.activations is None:
            found.append(
                'run the student\'s layers again in the backward (activations="recompute", '
                "--train.activations recompute)"
            )
        return tuple(found)


def layer_width(layer: nn.Module) -> int:
    """Columns of what a layer returns, as far as its attributes and parameters tell."""
    for name in ("out_channels", "out_features", "channels"):
        width = getattr(layer, name, None)
        if isinstance(width, int):
            heads = getattr(layer, "heads", 1) if getattr(layer, "concat", False) else 1
            return width * heads
    own = [parameter for parameter in layer.parameters() if parameter.dim() == 2]
    return max((min(parameter.shape) for parameter in own), default=0)
