"""Time spmm against torch's and scipy's sparse products on real graphs, values checked first.

    ABKD_DATA=data python bench/bench_spmm.py [--datasets cora pubmed] [--widths 16 64 256]

Every side multiplies the same GCN-normalised graph (int32 indices, float32 weights) by the same
features. Sides take turns, so a slow spell of the machine meets all of them; medians are printed
in milliseconds with their ratio to ours; the JSON file has p20, p50, p80 and n.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from abkd_fast import CSRGraph, data
from abkd_fast.metrics import environment, quantiles
from abkd_fast.ops import spmm

Side = Callable[[Tensor], Tensor]


def sides(graph: CSRGraph) -> dict[str, Side]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
        matrix = graph.to_torch()
    scipy_matrix = graph.to_scipy()
    return {
        "abkd_fast": lambda x: spmm(graph, x),
        "torch.sparse.mm": lambda x: torch.sparse.mm(matrix, x, "sum"),
        "csr @ x": lambda x: matrix @ x,
        "scipy": lambda x: torch.from_numpy(scipy_matrix @ x.numpy()),
    }


def forward_backward(side: Side) -> Side:
    def step(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        side(leaf).backward(x)
        assert leaf.grad is not None
        return leaf.grad

    return step


def check(runs: dict[str, Side], graph: CSRGraph, x: Tensor, backward: bool) -> None:
    matrix = graph.to_scipy().astype("float64")
    expected = torch.from_numpy((matrix.T if backward else matrix) @ x.double().numpy())
    for name, run in runs.items():
        torch.testing.assert_close(
            run(x).double(), expected, atol=1e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def samples(runs: dict[str, Side], x: Tensor, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call; the sides take turns until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times["abkd_fast"]) < 20:
        for name, run in runs.items():
            begin = time.perf_counter()
            run(x)
            times[name].append(1e3 * (time.perf_counter() - begin))
    # The first calls warm caches.
    return {name: [round(t, 4) for t in values[3:]] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["cora", "pubmed"])
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--seconds", type=float, default=2.0, help="per row of the table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=Path("bench/results/spmm-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.datasets:
        graph = data.load(name, root=options.root).graph.gcn_norm()
        graph.t()
        all_sides = sides(graph)
        print(f"{name}: {graph}")
        for width in options.widths:
            x = torch.randn(graph.num_src, width)
            for backward in (False, True):
                runs = all_sides
                if backward:
                    runs = {n: forward_backward(s) for n, s in all_sides.items() if n != "scipy"}
                check(runs, graph, x, backward)
                times = samples(runs, x, options.seconds)
                medians = {n: statistics.median(values) for n, values in times.items()}
                ours = medians["abkd_fast"]
                what = "forward+backward" if backward else "forward"
                cells = [f"{n} {m:.3f} ms ({m / ours:.2f}x)" for n, m in medians.items()]
                print(f"  F={width:<4} {what:<17}" + "  ".join(cells), flush=True)
                rows.append(
                    {"dataset": name, "width": width, "what": what}
                    | {"ms": {n: quantiles(values) for n, values in times.items()}}
                )
    report = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
