"""How time and memory of spmm grow with the graph: random graphs of 10^4 to 10^7 nodes.

    python bench/bench_growth.py [--degree 8] [--width 32]

Synthetic: every node has ``degree`` sources, drawn uniformly, the worst case for caches. Every
size runs in a fresh process: memory is the peak resident set above the size of the imports, with
graph, features and output; time is the median forward pass. Slopes are least-squares fits of
log(cost) on log(N), the time's over the sizes whose features exceed the last-level cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import child, copy_bandwidth, status_mb, write_json
from rich.console import Console
from rich.table import Table

from abkd_fast import CSRGraph
from abkd_fast.ops import spmm

SIZES = [10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
BEYOND_CACHE = 1_000_000


def measure(num_nodes: int, degree: int, width: int) -> dict[str, Any]:
    """Time and memory of one size, in this process."""
    spmm(CSRGraph.from_edge_index(torch.tensor([[0], [1]]), 2), torch.ones(2, width))
    Path("/proc/self/clear_refs").write_text("5")
    before = status_mb("VmRSS")
    col = torch.from_numpy(
        np.random.default_rng(0).integers(0, num_nodes, num_nodes * degree, dtype=np.int32)
    )
    rowptr = torch.arange(num_nodes + 1, dtype=torch.int32) * degree
    graph = CSRGraph.from_csr(rowptr, col)
    x = torch.ones(num_nodes, width)
    samples = []
    start = time.perf_counter()
    while len(samples) < 5 or time.perf_counter() - start < 1:
        begin = time.perf_counter()
        out = spmm(graph, x)
        samples.append(time.perf_counter() - begin)
        del out
    return {
        "num_nodes": num_nodes,
        "num_edges": num_nodes * degree,
        "ms": 1e3 * statistics.median(samples),
        "ns_per_edge": 1e9 * statistics.median(samples) / (num_nodes * degree),
        "peak_mb": status_mb("VmHWM") - before,
        # Graph, output, and one read of a feature row an edge.
        "bytes": 4 * (num_nodes + num_nodes * degree + num_nodes * width * (1 + degree)),
    }


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Exponent of N in the cost ``key``."""
    n, cost = np.log([row["num_nodes"] for row in rows]), np.log([row[key] for row in rows])
    return float(np.polyfit(n, cost, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--degree", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("bench/results/growth-cpu.json"))
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options.size, options.degree, options.width)))
        return
    common = ["--degree", str(options.degree), "--width", str(options.width)]
    rows = [child(__file__, [*common, "--size", str(size)]) for size in SIZES]
    table = Table(title=f"spmm forward, {options.degree} edges a node, width {options.width}")
    for name in ("nodes", "ms", "ns an edge", "peak MB", "GB/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['num_nodes']:,}", f"{row['ms']:.2f}", f"{row['ns_per_edge']:.2f}",
            f"{row['peak_mb']:.0f}", f"{1e-6 * row['bytes'] / row['ms']:.1f}",
        )  # fmt: skip
    console = Console(width=100)
    console.print(table)
    beyond = [row for row in rows if row["num_nodes"] >= BEYOND_CACHE]
    slopes = {"memory": slope(rows, "peak_mb"), "time": slope(beyond, "ms")}
    console.print(f"slopes: memory {slopes['memory']:.3f}, time {slopes['time']:.3f}")
    write_json(
        options.out,
        degree=options.degree,
        width=options.width,
        machine={"copy_gb_per_s": copy_bandwidth()},
        slopes=slopes,
        rows=rows,
    )


if __name__ == "__main__":
    main()
