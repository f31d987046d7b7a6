"""Time ops that have no benchmark of their own on the CPU, values checked first.

    ABKD_DATA=data python bench/bench_rows.py [--rounds 5]

kl_div, linear, teacher_moments, dropout, and spmm's maximum: the cases of the GPU benchmarks
(bench_gpu_rows.py, bench_gpu_graph.py) at the sizes of PubMed and ogbn-arxiv, and kl_div with
Cora's and OGBN-Mag's number of classes. Forward and backward,
compared with float64, sides in turns. Peers: torch's own; a gather and a scatter, and PyG where it
is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from bench_gpu_graph import extremum_case
from bench_gpu_rows import CLASSES, dropout_case, kl_div_case, linear_case, moments_case
from bench_spmm import load_graph
from gpu_compare import Case, checked
from gpu_graphs import SIZES
from harness import machine_limits, take_turns, write_json
from machines import result

from abkd_fast.metrics import quantiles

LEFT_OUT = ("abkd_fast reference", "torch.compile")  # not peers on a CPU
WIDTHS = (4, 64)
SCORES = {"pubmed": (2_708, 7), "ogbn-arxiv": (20_000, 349)}  # as Cora's; a part of OGBN-Mag's


def cases(name: str, root: Path | None) -> Iterator[Case]:
    nodes, classes = SIZES[name][0], CLASSES[name]
    for size in ((nodes, classes), SCORES[name]):
        for labels in (True, False):
            yield kl_div_case(*size, labels, "cpu")
    for width in WIDTHS:
        yield linear_case(nodes, width, classes, "cpu")
    yield dropout_case(nodes, 64, torch.float32, "cpu")
    if name == "pubmed":  # ogbn-arxiv's teacher takes 2.8 GB
        yield moments_case(nodes, 64, 64, "cpu")
    graph = load_graph(name, root)
    if graph is None:
        print(f"{name}: not found, left out")
        return
    graph = graph.gcn_norm()
    graph.t()
    yield extremum_case(graph, name, 64, "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("rows"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    limits, rows = machine_limits(), []
    for name in ("pubmed", "ogbn-arxiv"):
        for case in cases(name, options.root):
            case.sides = {n: make for n, make in case.sides.items() if n not in LEFT_OUT}
            steps, wrong = checked(case, "cpu")
            times = take_turns(steps, options.rounds, turn_seconds=0.1)
            ms = {side: quantiles(found["samples_ms"]) for side, found in times.items()}
            row = {"op": case.op, "case": case.case, "dtype": str(case.dtype)[6:], "dataset": name}
            rows.append(row | case.facts | case.cost.row() | {"ms": ms, "wrong": sorted(wrong)})
            medians = {side: round(found["p50"], 3) for side, found in ms.items()}
            print(case.op, case.case, medians, wrong, flush=True)
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
