"""Rows of a tensor in host memory, block by block on the device that computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from abkd_fast._mapped import mapped_file


def blocks_on(x: Tensor, spans: Sequence[slice], device: torch.device) -> Iterator[Tensor]:
    """Yield x[span] on ``device`` for every span of rows; a block lives until the next is asked.

    On x's own device the blocks are views, and the pages of a mapped file are dropped behind them.
    From host memory to a GPU they are copied on a stream of their own, the next one while kernels
    read this one; what reads them must be on the current stream.
    """
    if x.device != device:
        yield from _copied(x, spans, device)
        return
    file = mapped_file(x)
    for span in spans:
        block = x[span]
        yield block
        if file is not None:
            file.drop(block)


@lru_cache(maxsize=16)
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which blocks are copied to a device."""
    return torch.cuda.Stream(device)


def _copied(x: Tensor, spans: Sequence[slice], device: torch.device) -> Iterator[Tensor]:
    copies = _Copies(x, max(span.stop - span.start for span in spans), device)
    copies.start(0, spans[0])
    for k in range(len(spans)):
        if k + 1 < len(spans):
            copies.start(k + 1, spans[k + 1])
        yield copies.wait(k, spans[k])
        copies.release(k)


class _Copies:
    """Two buffers on the device, filled in turn.

    Rows that are not page-locked pass through two page-locked buffers: the driver would copy them
    through its own and make the host wait. So the host copies block k + 1 to such a buffer while
    block k is on its way to the device and kernels read block k - 1.
    """

    def __init__(self, x: Tensor, rows: int, device: torch.device) -> None:
        self.x, self.file = x, mapped_file(x)
        self.stream, self.current = copy_stream(device), torch.cuda.current_stream(device)
        shape = rows, x.size(1)
        self.buffers = [torch.empty(shape, dtype=x.dtype, device=device) for _ in range(2)]
        self.staging = None
        if not x.is_pinned():
            self.staging = [torch.empty(shape, dtype=x.dtype, pin_memory=True) for _ in range(2)]
        self.copied = [torch.cuda.Event() for _ in range(2)]
        self.released = [torch.cuda.Event() for _ in range(2)]
        for buffer, event in zip(self.buffers, self.released, strict=True):
            buffer.record_stream(self.stream)
            event.record(self.current)  # kernels may still read what the memory held before

    def start(self, k: int, span: slice) -> None:
        """Begin to copy block k."""
        rows, slot = self.x[span], k % 2
        if self.staging is not None:
            self.copied[slot].synchronize()  # the copy of block k - 2 has left the buffer
            source = rows
            rows = self.staging[slot][: rows.size(0)].copy_(rows)
            if self.file is not None:
                self.file.drop(source)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.released[slot])
            self.buffers[slot][: rows.size(0)].copy_(rows, non_blocking=True)
            self.copied[slot].record(self.stream)

    def wait(self, k: int, span: slice) -> Tensor:
        """Block k, for kernels that are launched from now on."""
        self.current.wait_event(self.copied[k % 2])
        return self.buffers[k % 2][: span.stop - span.start]

    def release(self, k: int) -> None:
        """The kernels that read block k have been launched."""
        self.released[k % 2].record(self.current)
