"""Seeds of a step in one tensor, which a captured step reads anew at every replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# An operator of its own, so that compilers draw where eager draws, from the same generator.
torch.library.define(
    "abkd_fast::draw_seed", "() -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)


@torch.library.impl("abkd_fast::draw_seed", "CompositeExplicitAutograd")
def _draw() -> Tensor:
    return torch.randint(2**63 - 1, ())


@torch.library.register_fake("abkd_fast::draw_seed")
def _like_seed() -> Tensor:
    return torch.empty((), dtype=torch.int64)


class SeedBuffer:
    """The seeds that one step draws, in the order in which it draws them.

    Until :meth:`fix`, seeds are drawn as ever, and counted. From then on the step reads them from
    one tensor on the device, which :meth:`fill` draws beforehand: the same seeds in the same
    order.
    """

    def __init__(self) -> None:
        self.count = 0
        self._host: Tensor | None = None
        self._device: Tensor | None = None

    def take(self) -> Tensor:
        """The next seed [] int64."""
        index, self.count = self.count, self.count + 1
        if self._device is None:
            return torch.ops.abkd_fast.draw_seed()
        if index >= len(self._device):
            raise RuntimeError(f"the step draws more seeds than the {len(self._device)} before")
        return self._device[index]

    def fix(self, device: torch.device) -> None:
        """Keep as many seeds as were counted on the device from now on."""
        self._host = torch.empty(self.count, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = self._host.to(device, copy=True)

    def fill(self) -> None:
        """Draw the seeds of the next step."""
        assert self._host is not None and self._device is not None
        for seed in self._host:
            seed.copy_(torch.ops.abkd_fast.draw_seed())
        self._device.copy_(self._host, non_blocking=True)
        self.count = 0


_current: SeedBuffer | None = None


def current() -> SeedBuffer | None:
    """The buffer that seeds are taken from, None outside of :func:`drawing_from`."""
    return _current


@contextmanager
def drawing_from(buffer: SeedBuffer | None) -> Iterator[None]:
    """Take seeds from ``buffer``, or draw them; one step at a time in a process."""
    global _current
    before, _current = _current, buffer
    try:
        yield
    finally:
        _current = before
