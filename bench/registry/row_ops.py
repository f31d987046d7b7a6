"""Ops on rows, of as many nodes as a graph has: losses, moments, dropout, linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import costs
import torch
from errors import relative
from gpu_compare import Case, Found, ours
from registry.catalog import HALF, SINGLE, op

from abkd_fast import CSRGraph

CLASSES, LAYERS = 40, 8


@op("layer_pair+gradient", widths=(64, 256), quick=(64,), graphs=("pubmed",))
def layer_pair(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """Teacher of 8 layers, student of 4 x 4; random states of the graph's nodes."""
    from bench_layer_pair import CONFIGS, PEERS, count_work, make_step

    sizes = (graph.num_dst, LAYERS, width, 4, 4)
    config = f"{label} {LAYERS}x{width} -> 4x4"
    CONFIGS[config] = sizes

    def side(name: str) -> Callable[[], Any]:
        def make() -> Callable[[], Found]:
            step = make_step(name, config)
            return lambda: list(step().values())

        return make

    found = ours("cpu", side("abkd_fast")) | {name: side(name) for name in PEERS}
    work = count_work(config, "abkd_fast")
    cost = costs.Cost(*(round(work[k] * unit) for k, unit in
                        (("gflop", 1e9), ("gb", 1e9), ("touched_mb", 1e6))))  # fmt: skip
    return Case("layer_pair", config, dtype, cost, found,
                lambda values: relative(values, side("eager")()()))  # fmt: skip


@op("teacher_moments", widths=(64, 256), quick=(64,), graphs=("pubmed",))
def teacher_moments(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import moments_case

    return moments_case(graph.num_dst, LAYERS, width, "cpu")


@op("dropout+gradient", widths=(64, 256), quick=(64,), dtypes=(SINGLE, HALF))
def dropout(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import dropout_case

    return dropout_case(graph.num_dst, width, dtype, "cpu")


@op("linear+gradient", widths=(4, 64, 256), quick=(64,))
def linear(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import linear_case

    return linear_case(graph.num_dst, width, CLASSES, "cpu")


@op("kl_div labels+gradient", widths=(3, 40), quick=(3,))
def kl_div_labels(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import kl_div_case

    return kl_div_case(graph.num_dst, width, True, "cpu")


@op("kl_div scores+gradient", widths=(3, 40), quick=(40,))
def kl_div_scores(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import kl_div_case

    return kl_div_case(graph.num_dst, width, False, "cpu")


@op("pair_infonce+gradient", widths=(64, 256), quick=(64,), graphs=("pubmed",))
def pair_infonce(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """One pair of layers on 4096 random rows of unit length, or as many as there are nodes."""
    from bench_pair_infonce import ROWS, Sides

    rows = min(ROWS, graph.num_dst)
    sides = Sides(1, width, rows)
    names = {"eager": "eager", "cross_entropy": "cross_entropy", "torch.compile": "compiled"}
    found = ours("cpu", lambda: lambda: sides.step("abkd_fast"))
    found |= {name: lambda side=side: lambda: sides.step(side) for name, side in names.items()}
    expected = Sides(1, width, rows, torch.float64).step("eager")
    cost = costs.pair_infonce(rows, width)
    return Case("pair_infonce", f"{rows} rows, F={width}, forward+backward", dtype, cost, found,
                lambda values: relative(values, expected))  # fmt: skip
