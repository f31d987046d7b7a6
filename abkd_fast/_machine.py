"""Memory of this machine: how much there is, how much is left."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_UNITS = ("B", "KB", "MB", "GB", "TB")
_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")  # lines of number:controllers:path


def format_bytes(size: float) -> str:
    """Three digits and a unit of 1000s, as in 11.2 GB."""
    unit = 0
    while size >= 999.5 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def host_memory() -> int:
    """Bytes that this process could have: what is available and what it holds already.

    The file cache and swap count as available; limits of control groups (containers, jobs) count.
    """
    held = resident_bytes()
    free = _field(Path("/proc/meminfo"), "MemAvailable:", 1024)
    if free is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free += _field(Path("/proc/meminfo"), "SwapFree:", 1024) or 0
    return held + min([free, *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """Bytes that each control group of this process, and each around it, can still take."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return []
    left = []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":  # version 2
            mount, names = _MOUNT, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = _MOUNT / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in (mount / part for part in (inner, *inner.parents)):
            limit = _number(group / names[0])
            if limit is not None:
                used = _number(group / names[1]) or 0
                cached = _field(group / "memory.stat", names[2] + " ", 1) or 0
                left.append(max(limit - used + cached, 0))
    return left


def resident_bytes() -> int:
    """Resident size of this process now."""
    try:
        pages = [int(part) for part in Path("/proc/self/statm").read_text().split()]
    except OSError:
        return 0
    return pages[1] * os.sysconf("SC_PAGE_SIZE")


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU that this process can still take, and all it has."""
    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept, total


def _field(path: Path, name: str, unit: int) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(name)), None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
