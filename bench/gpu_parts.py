"""The parts of `make gpu-check`: what runs, in which order, and how long each may take."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "gpu-check"
BENCHES = {  # seconds; the order is that of importance, since the last may find no time left
    "limits": 25.0,
    "step:pubmed": 50.0,
    "layer_pair:64x64 -> 4x4": 35.0,
    "spmm:ogbn-arxiv": 40.0,
    "conv:ogbn-arxiv": 35.0,
    "step:ogbn-arxiv": 45.0,
    "spmm:pubmed": 30.0,
    "conv:pubmed": 25.0,
    "reduce:ogbn-arxiv": 40.0,
    "rows:ogbn-arxiv": 35.0,
    "layer_pair:16x256 -> 4x64": 25.0,
    "layer_pair:2x750 -> 2x256": 25.0,
    "spmm:ogbn-products": 60.0,
    "conv:ogbn-products": 45.0,
    "reduce:pubmed": 30.0,
    "rows:pubmed": 25.0,
}
SANITIZERS = ("memcheck", "racecheck")
FIRST = 5  # benchmarks that come before the sanitizers


@dataclass
class Part:
    """A command with a budget; ``optional`` tools may be absent or refuse the device."""

    name: str
    command: list[str]
    budget: float
    environment: dict[str, str] = field(default_factory=dict)
    optional: bool = False


def parts(device: str, tiny: bool, capability: str, folder: Path) -> list[Part]:
    """Everything, in order: build, tests, what matters most, sanitizers, the rest."""
    python = [sys.executable, "-P"]
    paths = [str(BUILT)] if device == "cuda" else []
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([*paths, str(ROOT / "bench"), *inherited])
    environment = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    found = []
    if device == "cuda":
        build = [*python, "setup.py", "-q", "build", "--build-lib", str(BUILT)]
        setting = {"ABKD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{capability}+PTX"}
        found.append(Part("build", build, 300, setting))
    pytest = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "tests/gpu"]
    found.append(Part("tests/gpu", pytest, 180, environment))
    sample = [*python, "bench/gpu_sample.py", "--device", device]
    checked = [
        Part(tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *sample], 50,
             environment, optional=True)
        for tool in SANITIZERS
    ]  # fmt: skip
    benches = []
    for name, budget in BENCHES.items():
        command = [*python, "bench/bench_gpu.py", name, "--device", device]
        command += [*(["--tiny"] if tiny else []), "--out", str(folder / file_name(name))]
        benches.append(Part(name, command, budget, environment))
    return [*found, *benches[:FIRST], *checked, *benches[FIRST:]]


def file_name(part: str) -> str:
    """Where a benchmark writes its rows."""
    return re.sub(r"\W+", "-", part) + ".json"
