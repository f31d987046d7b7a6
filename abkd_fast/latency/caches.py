"""What caches do to a time: a sweep that empties them, and the bandwidth of copies of any size."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MEGABYTE = 1_000_000
LARGEST = 256 * MEGABYTE
_UNKNOWN = 64 * MEGABYTE
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def last_level(folder: Path = _CACHES) -> int | None:
    """Bytes of the processor's largest cache, None where the system does not say."""
    sizes = []
    for file in folder.glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG]?)", file.read_text().strip())
        if found:
            sizes.append(int(found[1]) * _UNITS[found[2]])
    return max(sizes, default=None)


def sweep_bytes(device: torch.device) -> int:
    """Twice the last-level cache, 256 MB at most; 64 MB where its size is not known."""
    if device.type == "cuda":
        level: int | None = torch.cuda.get_device_properties(device).L2_cache_size
    else:
        level = last_level()
    return min(2 * level, LARGEST) if level else _UNKNOWN


def cache_sweep(device: torch.device) -> Callable[[], Any]:
    """A call that reads and writes so many bytes of its own."""
    buffer = torch.zeros(sweep_bytes(device) // 4, device=device)
    return lambda: buffer.add_(1.0)


def copy_size(moved: int) -> int:
    """Bytes that a copy touches beside a pass that moves so many: 1 MB to 256 MB."""
    return min(max(moved, MEGABYTE), LARGEST)


def copy_bandwidth(device: torch.device, touched: int) -> float:
    """GB/s of a copy that reads half of so many bytes and writes the other, at its fastest.

    Of 100 copies, or as many as end within 0.15 s, 3 at least.
    """
    source = torch.zeros(touched // 8, device=device)
    target, best = torch.zeros_like(source), float("inf")
    deadline = time.perf_counter() + 0.15
    for made in range(100):
        if made >= 3 and time.perf_counter() > deadline:
            break
        begin = time.perf_counter_ns()
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter_ns() - begin)
    return 2 * source.nbytes / best
