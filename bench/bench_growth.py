"""How time and memory of spmm grow with the graph: random graphs of 10^4 to 10^7 nodes.

    python bench/bench_growth.py [--degree 8] [--width 32]

Synthetic graphs of equal degree. "uniform": sources drawn from all nodes, the worst case for
caches and address translation. "local": sources drawn from a window of 10^5 nodes around the row,
so that every size finds the same share of its sources in caches. Uniform graphs are timed twice, on
features in pages of 4 KB and of 2 MB (torch's THP_MEM_ALLOC_ENABLE). Every kind is timed in a
process of its own, its sizes in turns; memory is the peak resident set of one process a size, above
that of the imports, with graph, features and output. Slopes are least-squares fits of log(cost) on
log(N), the time's over the sizes whose features exceed the last-level cache.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import costs
import numpy as np
import torch
from harness import child, machine_limits, status_mb, take_turns, write_json
from machines import result

from abkd_fast import CSRGraph
from abkd_fast.ops import spmm

SIZES = [10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
BEYOND_CACHE = 1_000_000
WINDOW = 100_000
KINDS = {  # sources, environment
    "uniform, 4 KB pages": ("uniform", {"THP_MEM_ALLOC_ENABLE": "0"}),
    "uniform, 2 MB pages": ("uniform", {"THP_MEM_ALLOC_ENABLE": "1"}),
    "local, 2 MB pages": ("local", {"THP_MEM_ALLOC_ENABLE": "1"}),
}
# Freed blocks go back to the system: the peak is what was live, not what glibc kept.
NO_LEFTOVERS = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def make_graph(num_nodes: int, degree: int, sources: str) -> CSRGraph:
    random = np.random.default_rng(0)
    window = min(WINDOW, num_nodes) if sources == "local" else num_nodes
    col = random.integers(0, window, num_nodes * degree, dtype=np.int32)
    if window < num_nodes:
        first = np.clip(np.arange(num_nodes) - window // 2, 0, num_nodes - window)
        col += first.repeat(degree).astype(np.int32)
    rowptr = torch.arange(num_nodes + 1, dtype=torch.int32) * degree
    return CSRGraph.from_csr(rowptr, torch.from_numpy(col))


def time_sizes(sources: str, degree: int, width: int, rounds: int) -> dict[str, Any]:
    """Times of all sizes, in turns."""
    calls = {
        str(size): partial(spmm, make_graph(size, degree, sources), torch.ones(size, width))
        for size in SIZES
    }
    return take_turns(calls, rounds)


def peak_mb(num_nodes: int, degree: int, width: int) -> float:
    """Of one size, in this process."""
    spmm(CSRGraph.from_edge_index(torch.tensor([[0], [1]]), 2), torch.ones(2, width))
    Path("/proc/self/clear_refs").write_text("5")
    before = status_mb("VmRSS")
    graph, x = make_graph(num_nodes, degree, "uniform"), torch.ones(num_nodes, width)
    for _ in range(5):
        spmm(graph, x)
    return status_mb("VmHWM") - before


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Exponent of N in the cost ``key``."""
    n, cost = np.log([row["num_nodes"] for row in rows]), np.log([row[key] for row in rows])
    return float(np.polyfit(n, cost, 1)[0])


def measure(degree: int, width: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of all kinds and sizes, and the slopes."""
    common = ["--degree", str(degree), "--width", str(width)]
    memory = [child(__file__, [*common, "--memory", str(size)], NO_LEFTOVERS) for size in SIZES]
    rows, slopes = [], {}
    for kind, (sources, variables) in KINDS.items():
        timed = child(__file__, [*common, "--time", sources, "--rounds", str(rounds)], variables)
        found = []
        for size, peak in zip(SIZES, memory, strict=True):
            row = {"kind": kind, "num_nodes": size, "ms": timed[str(size)]["median_ms"]}
            row |= {"min_ms": min(timed[str(size)]["samples_ms"]), "peak_mb": peak}
            row["ns_per_edge"] = 1e6 * row["ms"] / (size * degree)
            found.append(row | costs.spmm(size, size * degree, width).row())
            print(f"{kind}, {size:>10,} nodes: {row['ms']:.2f} ms, {row['ns_per_edge']:.2f} ns an "
                  f"edge, peak {peak:.0f} MB", flush=True)  # fmt: skip
        slopes["memory"] = slope(found, "peak_mb")
        slopes[kind] = slope([row for row in found if row["num_nodes"] >= BEYOND_CACHE], "ms")
        rows += found
    return rows, slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--degree", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=result("growth"))
    parser.add_argument("--time", choices=["uniform", "local"], help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    degree, width = options.degree, options.width
    if options.time:
        print(json.dumps(time_sizes(options.time, degree, width, options.rounds)))
        return
    if options.memory:
        print(json.dumps(peak_mb(options.memory, degree, width)))
        return
    limits = machine_limits()
    rows, slopes = measure(degree, width, options.rounds)
    print("slopes: " + ", ".join(f"{name} {value:.3f}" for name, value in slopes.items()))
    write_json(options.out, degree=degree, width=width, machine=limits, slopes=slopes, rows=rows)


if __name__ == "__main__":
    main()
