"""Timing on a device: calls in turns between events, and the device's own limits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from abkd_fast.metrics import quantiles

Step = Callable[[], Any]


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed_calls(step: Step, calls: int, device: str) -> list[float]:
    """Milliseconds of each call; the device is not waited for in between."""
    if device != "cuda":
        times = []
        for _ in range(calls):
            begin = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - begin))
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]


def take_turns(
    steps: Mapping[str, Step],
    device: str,
    rounds: int = 5,
    turn_ms: float = 40.0,
    within: Callable[[str], AbstractContextManager[None]] = lambda side: nullcontext(),
) -> dict[str, dict[str, Any]]:
    """Time the sides in turns after a warm-up; {p20, p50, p80, n} in milliseconds a side.

    A turn makes as many calls as fill ``turn_ms``, 1 to 50, all of them ``within`` the side's
    context, which is entered off the clock.
    """
    calls = {}
    for side, step in steps.items():
        with within(side):
            step()
            synchronise(device)
            once = min(timed_calls(step, 3, device))
        calls[side] = max(1, min(50, round(turn_ms / max(once, 1e-3))))
    samples: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        for side, step in steps.items():
            with within(side):
                samples[side] += timed_calls(step, calls[side], device)
    return {side: quantiles(times) for side, times in samples.items()}


def limits(device: str, tiny: bool) -> dict[str, float]:
    """Copy bandwidth in GB/s (read and written) and matmul rates in TFLOP/s, all measured here."""
    elements, size = (10**6, 256) if tiny else (2**30, 8192)
    found = {"copy_gb_per_s": _copy_bandwidth(elements, device)}
    for name, dtype, tf32 in [
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("f32", torch.float32, False),
    ]:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found[f"{name}_tflops"] = _matmul_rate(size, dtype, device)
        torch.backends.cuda.matmul.allow_tf32 = before
    return found


def _copy_bandwidth(elements: int, device: str) -> float:
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2e-6 * source.nbytes / _best(lambda: target.copy_(source), device)


def _matmul_rate(size: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2e-9 * size**3 / _best(lambda: a @ b, device)


def _best(step: Step, device: str) -> float:
    for _ in range(3):
        step()
    return min(timed_calls(step, 10, device))


def device_facts(device: str) -> dict[str, Any]:
    """What a reader needs to know of the device and its software."""
    if device != "cuda":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = "unknown"
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": properties.total_memory / 1e9,
        "l2_mb": properties.L2_cache_size / 1e6,
        "driver": driver,
        "cuda": torch.version.cuda,
    }
