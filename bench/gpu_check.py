"""Build, test, sanitise and time everything on one GPU, in under ten minutes, and write it down.

    make gpu-check PYTHON=python3        (or: python bench/gpu_check.py)

Needs torch >= 2.10 (a CUDA build), triton, numpy, scipy, pytest, setuptools and nvcc; no network,
and nothing is installed: the package is built into build/gpu-check. Every part runs in a process
of its own, for its own budget or what is left of everyone's 585 seconds, whichever is less; a part
for which nothing is left is named and not run. bench/results/<device>/gpu.json is written anew
after every part, with the rows that stopped parts had finished, so what ends this program loses
nothing; "finished" in it says whether it got to its end.

Exit code 0: all parts passed; 1: some failed, or had no time; 2: there is no GPU. A tool that is
absent or refuses the device is named as such.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from gpu_parts import BENCHES, BUILT, ROOT, Part, file_name, parts  # noqa: E402
from gpu_report import table  # noqa: E402

BUDGET = 585.0  # of everything, seconds
LEAST = 1.0  # seconds; with less a part is not begun
REAPING = 5.0  # seconds that a killed process may take to be gone
NOT_PASSED = ("FAILED", "TIMED OUT", "NO TIME")
REFUSALS = re.compile(
    r"Device not supported|not supported on this (?:device|platform)|No attach", re.I
)
PROBE = """
import json, torch
there = torch.cuda.is_available() and torch.version.cuda is not None
major, minor = torch.cuda.get_device_capability() if there else (0, 0)
name = torch.cuda.get_device_name() if there else None
print(json.dumps([name, f"{major}.{minor}", torch.__version__]))
"""


@dataclass
class Outcome:
    """How a part ended: passed, FAILED, TIMED OUT, NO TIME (everyone's was up) or not run."""

    name: str
    result: str
    seconds: float
    budget: float
    why: str = ""
    output: str = ""


def run_part(part: Part, deadline: float) -> Outcome:
    """Run one part within its budget and what is left until the deadline of all."""
    left = deadline - time.monotonic()
    if left < LEAST:
        return Outcome(part.name, "NO TIME", 0, part.budget, "the parts before took all the time")
    if shutil.which(part.command[0]) is None:
        why = f"{part.command[0]} is not installed"
        return Outcome(part.name, "not run" if part.optional else "FAILED", 0, part.budget, why)
    begin, limit = time.monotonic(), min(part.budget, left)
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        code = _wait(part, limit, log)
        log.seek(0)
        output = log.read()
    outcome = Outcome(part.name, "passed", time.monotonic() - begin, part.budget, "", output)
    if code is None and limit < part.budget:
        outcome.result, outcome.why = "NO TIME", f"stopped after the {limit:.0f} s that were left"
    elif code is None:
        outcome.result, outcome.why = "TIMED OUT", f"stopped after {limit:.0f} s"
    elif part.optional and REFUSALS.search(output):
        outcome.result, outcome.why = "not run", "the tool refuses this device"
    elif code != 0:
        outcome.result, outcome.why = "FAILED", f"exit code {code}"
    return outcome


def _wait(part: Part, limit: float, log: Any) -> int | None:
    """Exit code, or None where the limit was reached; nothing the part started is left."""
    process = None
    try:
        with signals_later():
            process = subprocess.Popen(
                part.command,
                cwd=ROOT,
                env=os.environ | part.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when this program is told to stop
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver may hold on to it
                process.wait(REAPING)


@contextmanager
def signals_later() -> Iterator[None]:
    """Within, what would stop this program waits: a process it starts must be known first."""
    seen: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(stop, lambda number, frame: seen.append(number)) for stop in stops]
    try:
        yield
    finally:
        for stop, handler in zip(stops, before, strict=True):
            signal.signal(stop, handler)
    for number in seen:
        signal.raise_signal(number)


def add(report: dict[str, Any], outcome: Outcome, folder: Path) -> None:
    """Put how a part ended, and the rows it finished, into the report."""
    path = folder / file_name(outcome.name)
    if outcome.name in BENCHES and path.exists():
        written = json.loads(path.read_text())
        report["rows"] += written.pop("rows", [])
        report |= written
    facts = {"name": outcome.name, "result": outcome.result, "why": outcome.why}
    report["parts"].append(facts | {"seconds": outcome.seconds, "budget": outcome.budget})
    if outcome.name == "tests/gpu" and outcome.output.strip():
        report["parts"][-1]["why"] = outcome.why or outcome.output.strip().splitlines()[-1]


def write(report: dict[str, Any], out: Path) -> None:
    """All of it or what was there before: the file is never half written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(out)


def run_all(chosen: list[Part], deadline: float, folder: Path, out: Path) -> list[Outcome]:
    """Run the parts in order; the report is on disk after each."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report: dict[str, Any] = {"format": 1, "created": created, "finished": False}
    report |= {"device": {}, "limits": {}, "rows": [], "parts": []}
    outcomes = []
    for part in chosen:
        outcomes.append(run_part(part, deadline))
        add(report, outcomes[-1], folder)
        report["finished"] = len(outcomes) == len(chosen)
        write(report, out)
        print(f"{part.name}: {outcomes[-1].result} {outcomes[-1].why}", flush=True)
    print(table(report))
    print(f"\nwritten: {out}")
    return outcomes


def probe() -> tuple[str | None, str, str]:
    """(name of the GPU or None, its capability, torch's version)."""
    command = [sys.executable, "-P", "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise SystemExit(f"torch must be importable:\n{done.stderr}")
    name, capability, version = json.loads(done.stdout.splitlines()[-1])
    return name, capability, version


def main() -> None:
    deadline = time.monotonic() + BUDGET
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>/gpu.json")
    parser.add_argument("--only", nargs="+", help="only these parts (and the build)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    name, capability, version = probe()
    if options.device == "cuda" and name is None:
        print(f"gpu-check needs an NVIDIA GPU and a CUDA build of torch; torch {version} sees none")
        raise SystemExit(2)
    if options.device == "cuda":
        shutil.rmtree(BUILT, ignore_errors=True)
    label = re.sub(r"\W+", "-", name or "cpu").strip("-").lower()
    out = options.out or ROOT / "bench" / "results" / label / "gpu.json"
    with tempfile.TemporaryDirectory() as folder:
        chosen = parts(options.device, options.tiny, capability, Path(folder))
        if options.only:
            chosen = [part for part in chosen if part.name in ("build", *options.only)]
        outcomes = run_all(chosen, deadline, Path(folder), out)
    finish(outcomes)


def finish(outcomes: list[Outcome]) -> None:
    """Print what did not pass, with the end of its output; exits with 1 if anything did not."""
    failed = [outcome for outcome in outcomes if outcome.result in NOT_PASSED]
    for outcome in failed:
        print(f"\n{outcome.name}: {outcome.result}, {outcome.why}\n{outcome.output[-3000:]}")
    if failed:
        print("\nnot passed: " + ", ".join(outcome.name for outcome in failed))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
