"""Build, test, sanitise and time everything on one GPU, in under ten minutes, and write it down.

    make gpu-check PYTHON=python3        (or: python bench/gpu_check.py)

Needs torch >= 2.10 (a CUDA build), triton, numpy, scipy, pytest, setuptools and nvcc; no network,
and nothing is installed: the package is built into build/gpu-check. Every part runs in a process
of its own with a time budget of its own, so one that hangs does not eat the others'. Results go to
bench/results/gpu-<device>.json; failures are listed at the end. Exit code 0: all parts passed;
1: some failed; 2: there is no GPU. A tool that is absent or refuses the device is named as such.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "gpu-check"
BUDGET = 585.0  # of everything, seconds
BENCHES = {
    "limits": 25.0,
    "spmm:pubmed": 30.0,
    "conv:pubmed": 25.0,
    "spmm:ogbn-arxiv": 35.0,
    "conv:ogbn-arxiv": 30.0,
    "spmm:ogbn-products": 60.0,
    "conv:ogbn-products": 45.0,
    "layer_pair:64x64 -> 4x4": 30.0,
    "layer_pair:16x256 -> 4x64": 25.0,
    "layer_pair:2x750 -> 2x256": 25.0,
}
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
class Part:
    """A command with a budget; ``optional`` tools may be absent or refuse the device."""

    name: str
    command: list[str]
    budget: float
    environment: dict[str, str] = field(default_factory=dict)
    optional: bool = False


@dataclass
class Outcome:
    """How a part ended: passed, FAILED, TIMED OUT or not run."""

    name: str
    result: str
    seconds: float
    budget: float
    why: str = ""
    output: str = ""


def run_part(part: Part, deadline: float) -> Outcome:
    """Run one part within its budget and what is left of everyone's."""
    budget = min(part.budget, deadline - time.monotonic())
    if budget < 1:
        return Outcome(part.name, "TIMED OUT", 0, part.budget, "the parts before took all the time")
    if shutil.which(part.command[0]) is None:
        why = f"{part.command[0]} is not installed"
        return Outcome(part.name, "not run" if part.optional else "FAILED", 0, part.budget, why)
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=os.environ | part.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(budget)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children too
            process.wait()
            code = None
        log.seek(0)
        output = log.read()
    outcome = Outcome(part.name, "passed", time.monotonic() - begin, part.budget, "", output)
    if code is None:
        outcome.result, outcome.why = "TIMED OUT", f"stopped after {budget:.0f} s"
    elif part.optional and REFUSALS.search(output):
        outcome.result, outcome.why = "not run", "the tool refuses this device"
    elif code != 0:
        outcome.result, outcome.why = "FAILED", f"exit code {code}"
    return outcome


def parts(device: str, tiny: bool, capability: str, folder: Path) -> list[Part]:
    """Everything, in order."""
    python = [sys.executable, "-P"]
    paths = [str(BUILT)] if device == "cuda" else []
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([*paths, str(ROOT / "bench"), *inherited])
    environment = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    found = []
    if device == "cuda":
        build = [*python, "setup.py", "-q", "build", "--build-lib", str(BUILT)]
        setting = {"ABKD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{capability}+PTX"}
        found.append(Part("build", build, 120, setting))
    pytest = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "tests/gpu"]
    found.append(Part("tests/gpu", pytest, 180, environment))
    sample = [*python, "bench/gpu_sample.py", "--device", device]
    for tool in ("memcheck", "racecheck"):
        checked = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *sample]
        found.append(Part(tool, checked, 50, environment, optional=True))
    for name, budget in BENCHES.items():
        command = [*python, "bench/bench_gpu.py", name, "--device", device]
        command += [*(["--tiny"] if tiny else []), "--out", str(folder / _file_name(name))]
        found.append(Part(name, command, budget, environment))
    return found


def _file_name(part: str) -> str:
    return re.sub(r"\W+", "-", part) + ".json"


def collect(folder: Path, outcomes: list[Outcome]) -> dict[str, Any]:
    """The report: what every benchmark wrote, and how every part ended."""
    report: dict[str, Any] = {"device": {}, "limits": {}, "rows": [], "parts": []}
    for outcome in outcomes:
        path = folder / _file_name(outcome.name)
        if outcome.name in BENCHES and outcome.result == "passed":
            written = json.loads(path.read_text())
            report["rows"] += written.pop("rows", [])
            report |= written
        facts = {"name": outcome.name, "result": outcome.result, "why": outcome.why}
        report["parts"].append(facts | {"seconds": outcome.seconds, "budget": outcome.budget})
        if outcome.name == "tests/gpu" and outcome.output.strip():
            report["parts"][-1]["why"] = outcome.why or outcome.output.strip().splitlines()[-1]
    return report


def probe() -> tuple[str | None, str, str]:
    """(name of the GPU or None, its capability, torch's version)."""
    command = [sys.executable, "-P", "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(f"torch must be importable:\n{done.stderr}")
    name, capability, version = json.loads(done.stdout.splitlines()[-1])
    return name, capability, version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-<device>.json")
    parser.add_argument("--only", nargs="+", help="only these parts (and the build)")
    options = parser.parse_args()
    deadline = time.monotonic() + BUDGET
    name, capability, version = probe()
    if options.device == "cuda" and name is None:
        print(f"gpu-check needs an NVIDIA GPU and a CUDA build of torch; torch {version} sees none")
        raise SystemExit(2)
    if options.device == "cuda":
        shutil.rmtree(BUILT, ignore_errors=True)
    label = re.sub(r"\W+", "-", name or "cpu").strip("-").lower()
    out = options.out or ROOT / "bench" / "results" / f"gpu-{label}.json"
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(options.device, options.tiny, capability, Path(folder)):
            if options.only and part.name not in ("build", *options.only):
                continue
            outcomes.append(run_part(part, deadline))
            print(f"{part.name}: {outcomes[-1].result} {outcomes[-1].why}", flush=True)
        report = collect(Path(folder), outcomes)
    finish(report, outcomes, out)


def finish(report: dict[str, Any], outcomes: list[Outcome], out: Path) -> None:
    """Write the JSON, print the table, then what failed; exits with 1 if anything did."""
    sys.path[:0] = [str(ROOT / "bench")]
    from gpu_report import table

    report = {"format": 1, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **report}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"\nwritten: {out}")
    failed = [outcome for outcome in outcomes if outcome.result in ("FAILED", "TIMED OUT")]
    for outcome in failed:
        print(f"\n{outcome.name}: {outcome.result}, {outcome.why}\n{outcome.output[-3000:]}")
    if failed:
        print("\nfailed: " + ", ".join(outcome.name for outcome in failed))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
