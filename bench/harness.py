"""What the benchmarks share: turns, allocators, the machine's own limits, memory of a process."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from machines import result

from abkd_fast._backend import backend_of
from abkd_fast.metrics import environment

ALLOCATORS = {
    "default": {},
    "page-keeping": {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
    },
}

Row = dict[str, Any]
COPIES_MB = (1, 4, 16, 64, 1024)


def graph_options(
    description: str, datasets: list[str], widths: list[int], out: str
) -> argparse.Namespace:
    """The flags of a benchmark over graphs and widths, whose threads are set."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=datasets)
    parser.add_argument("--widths", nargs="+", type=int, default=widths)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result(out))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def minor_faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def take_turns(
    steps: Mapping[str, Callable[[], Any]], rounds: int, turn_seconds: float = 0.3, calls: int = 40
) -> dict[str, dict[str, Any]]:
    """Time the sides in turns, so that a slow spell of the machine meets all of them.

    A turn ends after ``turn_seconds`` or ``calls`` calls.

    Returns:
        For every side ``samples_ms`` of all calls and the median of ``minor_faults`` of a call.
    """
    samples: dict[str, list[float]] = {side: [] for side in steps}
    faults: dict[str, list[int]] = {side: [] for side in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for side, step in steps.items():
            turn = time.perf_counter()
            for _ in range(calls):
                before, begin = minor_faults(), time.perf_counter()
                step()
                samples[side].append(round(1e3 * (time.perf_counter() - begin), 4))
                faults[side].append(minor_faults() - before)
                if time.perf_counter() - turn > turn_seconds:
                    break
    return {
        side: {
            "samples_ms": samples[side],
            "median_ms": statistics.median(samples[side]),
            "minor_faults": statistics.median(faults[side]),
        }
        for side in steps
    }


def gemm_rate(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """GFLOP/s of one large product, the best of five."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = a @ b
    return 2e-9 * size**3 / _best(lambda: torch.mm(a, b, out=out))


def copy_bandwidth(megabytes: int) -> float:
    """GB/s of a copy that reads and writes so many MB together, the best of several."""
    source = torch.zeros(megabytes * 125_000)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / _best(lambda: target.copy_(source), max(5, 500 // megabytes))


def machine_limits() -> dict[str, dict[str, float]]:
    """GFLOP/s of large products, GB/s of copies by the MB they touch: caches, then memory."""
    return {
        "gemm_gflop_s": {
            str(dtype).removeprefix("torch."): gemm_rate(dtype)
            for dtype in (torch.float32, torch.bfloat16)
        },
        "copy_gb_s": {str(size): copy_bandwidth(size) for size in COPIES_MB},
    }


def _best(call: Callable[[], Any], calls: int = 5) -> float:
    call()
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def status_mb(key: str) -> float:
    """A line of /proc/self/status, in MB: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))


def peak_above_data(step: Callable[[], Any], calls: int = 2) -> dict[str, float]:
    """Peak resident set of some steps, whole and above what was held before them, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparation
    before = status_mb("VmRSS")
    for _ in range(calls):
        step()
    return {"peak_mb": status_mb("VmHWM"), "above_data_mb": status_mb("VmHWM") - before}


def child(file: str, arguments: list[str], variables: Mapping[str, str] | None = None) -> Any:
    """Run ``file`` with ``arguments`` in a fresh process; its last line of output is JSON."""
    done = subprocess.run(
        [sys.executable, file, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | dict(variables or {}),
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


PEERS = ("scipy", "torch-geometric", "torch-scatter", "torch-sparse", "pyg-lib", "onnxruntime")


def sides() -> dict[str, Any]:
    """What was compared: the commit, "+" with changes on top of it, and versions of peers."""
    found = {name: peer for name in PEERS if (peer := installed_version(name)) is not None}
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = "+" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""
    at = f"{commit}{changed}" if commit else None
    return {"commit": at, "kernels": backend_of("spmm")[1], "peers": found}


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """What git says of this checkout; "" without git or a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_json(path: Path, **content: Any) -> None:
    """The report, with date, environment, what was compared, and load of the machine."""
    report = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment() | sides() | {"load": os.getloadavg()[0]},
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def check_kept(before: Mapping[str, Any], threads: int) -> None:
    """Raise ValueError where rows of a report cannot stand beside those of a run."""
    about = before.get("environment", {})
    absent = [name for name in ("created", "threads", "environment") if name not in before]
    absent += [f"environment.{name}" for name in ("cpu", "load") if name not in about]
    if absent:
        raise ValueError(
            "a report whose rows are kept must have created, threads and environment (cpu, load), "
            f"got none of {', '.join(absent)}; give this run another --out"
        )
    then, now = before["environment"]["cpu"], environment()["cpu"]
    for what, there, here in (("threads", before["threads"], threads), ("processor", then, now)):
        if there != here:
            raise ValueError(
                f"a report whose rows are kept must have the {what} of this run, {here}, got "
                f"{there}; give this run another --out"
            )


def kept_rows(before: Mapping[str, Any], rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that a report keeps, each with the date of its run; and these runs.

    A run is its date, commit and load. Reports of several runs whose rows name none stay so.
    """
    last, rows = run_of(before), list(rows)
    if before.get("earlier") and not any("run" in row for row in before["rows"]):
        return rows, [*before["earlier"], last]
    dated = [{"run": last["created"], **row} for row in rows]
    dates = {row["run"] for row in dated}
    runs = [*before.get("earlier", []), last]
    return dated, [run for run in runs if run["created"] in dates]


def run_of(report: Mapping[str, Any]) -> Row:
    """Date, commit and load of the run that wrote a report."""
    found = report["environment"]
    return {"created": report["created"], "commit": found.get("commit"), "load": found["load"]}
