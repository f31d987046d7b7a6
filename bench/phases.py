"""Long runs in phases: every phase in a process of its own, with its time, peak and load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import status_mb

SPARE_MB = 1000.0


def in_phase(work: Callable[[], dict[str, Any]]) -> None:
    """Do ``work`` in this process; print what it returns as JSON, with the peak resident size.

    ``start_mb`` is the size before, with the imports; files mapped into memory count where they
    are resident.
    """
    start = status_mb("VmRSS")
    begin = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - begin
    facts = {"phase_s": seconds, "start_mb": start, "peak_mb": status_mb("VmHWM")}
    print(json.dumps(found | facts | {"load": os.getloadavg()[0]}))


def phase(
    file: str,
    arguments: list[str],
    variables: Mapping[str, str] | None = None,
    limit_mb: float | None = None,
) -> dict[str, Any]:
    """Run ``file`` with ``arguments`` in a fresh process; its progress goes to stderr.

    A process that needs more than ``limit_mb`` of resident memory is ended, and the result is
    {"limit_mb", "peak_mb"} without "phase_s".
    """
    begin, peak = time.perf_counter(), 0.0
    command = [sys.executable, file, *arguments]
    environment = os.environ | dict(variables or {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            time.sleep(0.2)
            peak = max(peak, _peak_mb(process.pid))
            if _available_mb() < SPARE_MB:  # before the system must choose whom to end
                process.kill()
                raise SystemExit(f"{' '.join(arguments)}: ended, the machine's memory is used up")
            if limit_mb is not None and peak > limit_mb:
                process.kill()
                process.wait()
                found = {"limit_mb": limit_mb, "peak_mb": peak, "load": os.getloadavg()[0]}
                print(f"{' '.join(arguments)}: does not fit in {limit_mb:,.0f} MB", flush=True)
                return found
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    whole = time.perf_counter() - begin
    shown = {key: value for key, value in result.items() if isinstance(value, float)}
    figures = ", ".join(f"{key} {value:,.1f}" for key, value in shown.items())
    print(f"{' '.join(arguments)}: {figures} ({whole:.0f} s in all)", flush=True)
    return result


def _peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


def _available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("MemAvailable"))
