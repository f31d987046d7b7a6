"""A teacher's states on their way into a cache: checked, packed, and what identifies them."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from abkd_fast._checks import FLOATS, check_choice, check_finite, check_tensor, names
from abkd_fast._csr import tensor_bytes
from abkd_fast._machine import device_memory, format_bytes
from abkd_fast._teacher_file import row_spans
from abkd_fast.data import GraphData
from abkd_fast.metrics import count_parameters
from abkd_fast.ops import Moments, teacher_moments

STORAGES = ("memory", "pinned", "mmap")
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


class LayerSpill:
    """Takes the states of one layer after the other, gives back rows of all layers side by side.

    How wide the rows are is known only after the last layer, and a file that is written column by
    column is written as often as there are layers. So the layers lie one after the other in a
    file without a name, which is gone with the process, until their rows are read.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, closed by __exit__
        self.dtype = dtype
        self.num_nodes: int | None = None
        self.widths: list[int] = []
        self._moments: list[Moments] = []

    def add(self, name: str, state: Tensor) -> None:
        """Check a state [N, d], write it in ``dtype``, and add up its moments."""
        check_tensor(name, state, dim=2, dtypes=FLOATS)
        if self.num_nodes is None:
            self.num_nodes = state.size(0)
        if state.size(0) != self.num_nodes:
            raise ValueError(
                f"{name} must have N={self.num_nodes} rows as the layers before, "
                f"got {state.size(0)}"
            )
        state = state.detach().to(self.dtype)
        width = state.size(1)
        self._moments.append(teacher_moments(state, [width]))
        for span in row_spans(self.num_nodes, width * state.element_size()):
            block = state[span]
            check_finite(name, block)
            self._file.write(tensor_bytes(block))
        self.widths.append(width)

    def moments(self) -> Moments | None:
        """Of all layers, None without any."""
        if not self._moments:
            return None
        return Moments(
            torch.cat([part.mean for part in self._moments]),
            [second for part in self._moments for second in part.second],
            self._moments[0].count,
        )

    def rows(self, num_nodes: int) -> Iterator[Tensor]:
        """[N, sum(widths)] in blocks of rows; a block lives until the next is asked for."""
        size = self.dtype.itemsize
        spans = row_spans(num_nodes, sum(self.widths) * size) if self.widths else []
        rows = spans[0].stop if spans else 0
        buffer = torch.empty(rows, sum(self.widths), dtype=self.dtype)
        scratch = torch.empty(rows * max(self.widths, default=0), dtype=self.dtype)
        for span in spans:
            count, start = span.stop - span.start, 0
            for width, columns in zip(self.widths, buffer.split(self.widths, 1), strict=True):
                self._file.seek((num_nodes * start + span.start * width) * size)
                part = scratch[: count * width]
                self._file.readinto(tensor_bytes(part).data)
                columns[:count] = part.view(count, width)
                start += width
            yield buffer[:count]

    def __enter__(self) -> LayerSpill:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def fingerprint(
    teacher: nn.Module, data: GraphData, paths: Sequence[str], dtype: torch.dtype
) -> str:
    """SHA-256 over the teacher's structure, weights, captured layers, the dtype and the data."""
    digest = hashlib.sha256(f"{teacher} {list(paths)} {dtype} {data.fingerprint()}".encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def place_states(states: Tensor, device: torch.device, stream: bool | None) -> Tensor:
    """``states`` on ``device``, or in host memory: where asked for, or a GPU has no room for them.

    A quarter of a GPU's memory is left to the student; a line on stderr says so where they stream.
    """
    if device.type == "cuda" and stream:
        return states.cpu()
    if device.type == "cuda" and states.device != device and stream is None:
        free, total = device_memory(device)
        size = states.numel() * states.element_size()
        if size > free - total // 4:
            print(
                f"abkd_fast: the teacher's states ({format_bytes(size)}) stream from host memory "
                f"to {device}, which has {format_bytes(free)} free",
                file=sys.stderr,
            )
            return states.cpu()
    return states.to(device)


def check_fits(
    data: GraphData, ran_on: str | None, num_nodes: int, logits: Tensor | None, has_states: bool
) -> None:
    """Raise ValueError unless a teacher ran on ``data``, as far as is known of it."""
    if ran_on is not None and ran_on != data.fingerprint():
        raise ValueError(
            f"teacher must have been run on {data.name!r} with this split, got a cache of "
            f"other data (fingerprint {ran_on[:12]}); build the cache on this graph"
        )
    rows = data.num_nodes if has_states else data.num_rows
    if num_nodes != rows:
        raise ValueError(
            f"teacher and data must have the same nodes, got {num_nodes} teacher rows "
            f"and {rows} nodes in {data.name!r}; build the cache on this graph"
        )
    if logits is not None and logits.size(1) < data.num_classes:
        raise ValueError(
            f"teacher must score the {data.num_classes} classes of {data.name!r}, "
            f"got {logits.size(1)}"
        )


def digest_states(packed: Tensor, logits: Tensor | None, widths: Sequence[int]) -> str:
    """SHA-256 of states of any origin."""
    digest = hashlib.sha256(f"{widths} {packed.dtype}".encode())
    for part in (packed, logits):
        if part is not None:
            digest.update(tensor_bytes(part))
    return digest.hexdigest()


def about_teacher(
    teacher: nn.Module, data: GraphData, paths: Sequence[str], dtype: torch.dtype
) -> tuple[str, int, str]:
    """Fingerprint, parameter count and fingerprint of the data."""
    identity = fingerprint(teacher, data, paths, dtype)
    return identity, count_parameters(teacher), data.fingerprint()


def moved(moments: Moments, device: torch.device) -> Moments:
    """The same moments on ``device``."""
    second = [matrix.to(device) for matrix in moments.second]
    return Moments(moments.mean.to(device), second, moments.count)


def check_storage(storage: str) -> None:
    """Raise ValueError unless states can lie there on this machine."""
    check_choice("storage", storage, STORAGES)
    if storage == "pinned" and not torch.cuda.is_available():
        raise ValueError('storage must be memory or mmap without a GPU, got "pinned"')


def check_path(storage: str, path: object) -> None:
    """Raise ValueError unless there is a path just where states go to a file."""
    check_storage(storage)
    if (storage == "mmap") != (path is not None):
        raise ValueError(f'path must be given with storage="mmap" alone, got {path!r}')


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError unless layer_pair reads states of this dtype."""
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype must be {names(DTYPES)}, got {names([dtype])}; "
            "bfloat16 halves the memory of float32"
        )


def pack(
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
    num_nodes, widths = named[first].size(0), [state.size(1) for state in states]
    packed = named[first].new_empty(num_nodes, sum(widths), dtype=dtype)
    for state, columns in zip(states, packed.split(widths, dim=1) if states else (), strict=True):
        columns.copy_(state.detach())
    return packed
