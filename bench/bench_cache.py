"""Memory of a teacher's cache in memory and on disk: building it, loading it, reading it.

    python bench/bench_cache.py [--nodes 60000] [--folder DIR] [--threads 1] [--rounds 3]

"read": a teacher of 2 x 750 float32 (random numbers), a student of 2 x 16, three calls of
``layer_pair`` with backward; then the time of such a pass with a student of 2 x 256, the median of
the rounds, the file cached by the system. "build": the states of a GCN 128 -> 750 -> 750 -> 40 with
random weights on a synthetic graph (degree-corrected block model, mean degree 14). Every line is a
fresh process; sizes are resident sizes at the end of a step and its peak, torch included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import child, status_mb, write_json
from machines import result
from torch import Tensor

from abkd_fast import TeacherCache
from abkd_fast.data import dcsbm
from abkd_fast.nn import GCN
from abkd_fast.ops import layer_pair

WIDTHS = [750, 750]
STORAGES = ("mmap", "memory")


def one_pass(cache: TeacherCache, states: list[Tensor], maps: list[Tensor]) -> None:
    """The loss on all pairs of layers, and its gradients."""
    loss, _ = layer_pair(cache.states, cache.widths, states, *maps)
    loss.backward()


def student(nodes: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """States of two layers; attention and maps to 64 columns."""
    states = [torch.randn(nodes, width, requires_grad=True) for _ in range(2)]
    maps = [torch.full((2, 2), 0.5), torch.randn(sum(WIDTHS), 64), torch.randn(2 * width, 64)]
    return states, [m.requires_grad_() for m in maps]


def write(nodes: int, path: Path) -> dict[str, Any]:
    """The file that is read."""
    states = [torch.randn(nodes, width) for width in WIDTHS]
    TeacherCache.from_states(states).save(path)
    return {"states_mb": 4e-6 * nodes * sum(WIDTHS)}


def read(nodes: int, path: Path, storage: str, rounds: int) -> dict[str, Any]:
    """Peaks after each step, and the time of a pass."""
    found = {"imported_mb": status_mb("VmRSS")}
    cache = TeacherCache.load(path, storage)
    found["loaded_peak_mb"] = status_mb("VmHWM")
    given = student(nodes, 16)
    for _ in range(3):
        one_pass(cache, *given)
    found["passes_peak_mb"] = status_mb("VmHWM")
    given, samples = student(nodes, 256), []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        one_pass(cache, *given)
        samples.append(1e3 * (time.perf_counter() - begin))
    return found | {"pass_ms": statistics.median(samples[1:])}  # the first finds no warm memory


def build(nodes: int, path: Path, storage: str) -> dict[str, Any]:
    """Resident size before the teacher runs, and the peak of its run."""
    graph = dcsbm(nodes, 40, mean_degree=14.0, num_features=128)
    graph.fingerprint()
    graph.graph.gcn_norm()
    torch.manual_seed(0)
    teacher = GCN(128, 750, 3, 40)
    before = status_mb("VmHWM")
    held = status_mb("VmRSS")
    TeacherCache.build(teacher, graph, storage=storage, path=path if storage == "mmap" else None)
    peak = status_mb("VmHWM")
    return {"peak_before_mb": before, "before_mb": held, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=60_000)
    parser.add_argument("--folder", type=Path, help="where the files are; default: a temporary one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=result("cache"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        what, storage = options.worker
        steps = {
            "write": lambda *given: write(*given[:2]),
            "read": lambda *given: read(*given, options.rounds),
            "build": build,
        }
        path = options.folder / f"{'read' if what == 'write' else what}.safetensors"
        found = steps[what](options.nodes, path, storage)
        print(json.dumps(found | {"load": os.getloadavg()[0]}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shared = ["--nodes", str(options.nodes), "--threads", str(options.threads)]
        shared += ["--rounds", str(options.rounds), "--folder", folder, "--worker"]
        about = child(__file__, [*shared, "write", "mmap"])
        rows = []
        for what in ("read", "build"):
            for storage in STORAGES:
                row = {"what": what, "storage": storage}
                rows.append(row | child(__file__, [*shared, what, storage]))
                print(rows[-1], flush=True)
    write_json(
        options.out,
        data="random numbers; synthetic graph (dcsbm, mean degree 14)",
        num_nodes=options.nodes,
        states_mb=about["states_mb"],
        threads=options.threads,
        rows=rows,
    )


if __name__ == "__main__":
    main()
