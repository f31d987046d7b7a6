"""How time and memory of the ops and of a step grow: R-MAT graphs of 10^4 to 10^7 nodes.

    python bench/bench_growth_ops.py [--sizes 10000 ... 10000000]

Synthetic graphs (rmat_rows.py) of mean degree 10, F = 64: spmm; conv, a layer 64 -> 64 of means
and ReLU; layer_pair, forward and backward, teacher 4 x 16, student 2 x 16; and one step
of a Distiller, GCN student 2 x 16 of 64 features, KD + ABKD. spmm and conv, both forward, at mean
degree 50 too. Every case is a process of its own. Memory is its peak resident set with graph and
inputs, above what it held before them with torch loaded and the op run once on a small graph; below
10^6 nodes in one more process that gives freed blocks back at once. Features of spmm and conv lie
on huge pages, where the system has them. Slopes are least-squares fits
of log(cost) on log(N), the time's from 10^6 nodes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_growth import BEYOND_CACHE, NO_LEFTOVERS, SIZES, slope
from harness import machine_limits, status_mb, write_json
from machines import result
from phases import phase
from rmat_rows import rmat_rows

import abkd_fast as af
from abkd_fast.config import TrainConfig
from abkd_fast.data import GraphData
from abkd_fast.nn import GCN
from abkd_fast.ops import conv, layer_pair, spmm

FEATURES, TEACHER, STUDENT, R, CLASSES = 64, [16] * 4, [16] * 2, 64, 8
CASES = [(op, 10) for op in ("spmm", "conv", "layer_pair", "step")] + [("spmm", 50), ("conv", 50)]
SECONDS, CALLS = 1.5, 20  # of timing
LIMIT_MB = 20_000
Call = Callable[[], list[float]]  # its seconds


def timed(call: Callable[[], object]) -> list[float]:
    begin = time.perf_counter()
    call()
    return [time.perf_counter() - begin]


def features(nodes: int) -> torch.Tensor:
    """On huge pages, as the states are that layers hand to each other."""
    x = torch.ones(nodes, FEATURES)
    af.use_huge_pages(x)
    return x


def spmm_case(nodes: int, degree: int) -> Call:
    graph, x = rmat_rows(nodes, degree), features(nodes)
    return partial(timed, partial(spmm, graph, x))


def conv_case(nodes: int, degree: int) -> Call:
    graph = rmat_rows(nodes, degree)
    counts = graph.rowptr.diff().numpy()
    mean = np.repeat(1.0 / np.maximum(counts, 1, dtype=np.float32), counts)
    graph = graph.with_value(torch.from_numpy(mean))
    x, weight = features(nodes), torch.eye(FEATURES)
    return partial(timed, lambda: conv(graph, x, weight, act="relu"))


def layer_pair_case(nodes: int, degree: int) -> Call:
    torch.manual_seed(0)
    teacher = torch.empty(nodes, sum(TEACHER)).normal_()
    students = [torch.empty(nodes, width).normal_().requires_grad_() for width in STUDENT]
    maps = [[torch.randn(width, R).requires_grad_() for width in widths]
            for widths in (TEACHER, STUDENT)]  # fmt: skip
    attention = torch.full((len(TEACHER), len(STUDENT)), 0.5, requires_grad=True)

    def both_ways() -> None:
        loss, _ = layer_pair(teacher, TEACHER, students, attention, *maps)
        loss.backward()
        for leaf in (*students, *maps[0], *maps[1], attention):
            leaf.grad = None

    return partial(timed, both_ways)


def step_case(nodes: int, degree: int) -> Call:
    """Two steps of a Distiller after a first one, validation not in their time."""
    graph = rmat_rows(nodes, degree)
    torch.manual_seed(0)
    y, part = torch.randint(CLASSES, (nodes,)), torch.arange(nodes) % 3
    masks = [part == i for i in range(3)]
    x = torch.empty(nodes, FEATURES).normal_()
    data = GraphData(x, graph, y, *masks, name="rmat-synthetic", synthetic=True)
    states = [torch.empty(nodes, width).normal_() for width in TEACHER]
    cache = af.TeacherCache.from_states(states, torch.empty(nodes, CLASSES).normal_())
    states.clear()
    student = GCN(FEATURES, STUDENT[0], len(STUDENT) + 1, CLASSES)
    config = TrainConfig(epochs=3, patience=None)
    distiller = af.Distiller(
        cache, student, data, af.KD() + af.ABKD(), config=config, callbacks=[]
    )  # fmt: skip

    def steps() -> list[float]:
        return [1e-3 * record["step_ms"] for record in distiller.fit().history[1:]]

    return steps


MAKE: dict[str, Callable[[int, int], Call]] = {
    "spmm": spmm_case,
    "conv": conv_case,
    "layer_pair": layer_pair_case,
    "step": step_case,
}


def measure_one(op: str, nodes: int, degree: int) -> dict[str, Any]:
    """Time and memory of one case, in this process."""
    MAKE[op](100, degree)()
    before = status_mb("VmRSS")
    call = MAKE[op](nodes, degree)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparation
    samples, begin = call(), time.perf_counter()
    if op != "step":  # whose fit has its own first step, and is long
        samples = call()
        while len(samples) < CALLS and time.perf_counter() - begin < SECONDS:
            samples += call()
    return {
        "ms": 1e3 * statistics.median(samples),
        "samples": len(samples),
        "peak_mb": status_mb("VmHWM") - before,
        "load": os.getloadavg()[0],
    }


def measure(op: str, nodes: int, degree: int, threads: int) -> dict[str, Any]:
    """A row of the report."""
    flags = ["--one", op, "--nodes", str(nodes), "--degree", str(degree)]
    flags += ["--threads", str(threads)]
    found = phase(__file__, flags, limit_mb=LIMIT_MB)
    row = {"op": op, "degree": degree, "num_nodes": nodes, **found}
    if "ms" not in found:
        return row
    if nodes < BEYOND_CACHE:
        row["peak_mb"] = phase(__file__, flags, NO_LEFTOVERS)["peak_mb"]
    row["ns_per_edge"] = 1e6 * found["ms"] / (nodes * degree)
    row["ns_per_node"] = 1e6 * found["ms"] / nodes
    row["bytes_per_node"] = 1e6 * row["peak_mb"] / nodes
    print(f"{op}, degree {degree}, {nodes:>10,} nodes: {row['ms']:,.2f} ms, "
          f"{row['ns_per_edge']:.2f} ns an edge, {row['bytes_per_node']:,.0f} bytes a node, "
          f"load {row['load']:.1f}", flush=True)  # fmt: skip
    return row


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of N of every op and degree with enough sizes."""
    found = []
    for op, degree in CASES:
        own = [r for r in rows if (r["op"], r["degree"]) == (op, degree) and "ms" in r]
        large = [row for row in own if row["num_nodes"] >= BEYOND_CACHE]
        if len(own) > 1:
            memory = slope(own, "peak_mb")
            time_slope = slope(large, "ms") if len(large) > 1 else None
            found.append({"op": op, "degree": degree, "memory": memory, "time": time_slope})
            print(f"{op}, degree {degree}: slope of memory {memory:.3f}, of time from 10^6 nodes "
                  f"on {time_slope}")  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=result("growth_ops"))
    parser.add_argument("--one", choices=[*MAKE], help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--degree", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure_one(options.one, options.nodes, options.degree)))
        return
    limits, rows = machine_limits(), []
    for nodes in options.sizes:  # the largest last; the report so far is on the disk
        for op, degree in CASES:
            rows.append(measure(op, nodes, degree, options.threads))
            write_json(options.out, threads=options.threads, machine=limits,
                       complete=False, rows=rows, slopes=[])  # fmt: skip
    write_json(options.out, threads=options.threads, machine=limits, complete=True, rows=rows,
               slopes=slopes(rows))  # fmt: skip


if __name__ == "__main__":
    main()
