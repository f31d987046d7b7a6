"""The section of the machine's limits in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from limits import REST, points
from sections import figure_line, table


def limits_section(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Every op against the machine: what it must compute and move, and how near it comes."""
    found = points(reports)
    lines = [
        "## What is reached of the machine's limits",
        "",
        "Operations and bytes are counted by `bench/costs.py`: every array once a pass, gathered",
        "rows once an edge. The limits were measured in the same run: a large float32 product, and",
        "a copy that touches as many bytes as the op (so that both work in the same cache).",
        "*reached* is the time that the binding one of the two would take, over ours; above 100 %,",
        "ours multiplies faster than torch's product, or gathers from a nearer cache.",
        "",
        figure_line("roofline", "Operations a second against operations a byte"),
        "",
    ]
    head = ["case", "GFLOP", "GB", "GFLOP/s", "of", "GB/s", "of", "binds", "reached"]
    for op, rest in REST.items():
        cells = [
            [p.case, f"{p.gflop:.3g}", f"{p.gb:.3g}", f"{1e3 * p.gflop / p.ms:.3g}"]
            + [f"{p.gemm_gflop_s:.0f}", f"{1e3 * p.gb / p.ms:.3g}", f"{p.copy_gb_s:.0f}"]
            + [p.binds, f"{p.share:.0%}"]
            for p in found
            if p.op == op
        ]
        name = "segment" if op == "segment_csr" else op
        title = "Ops on rows, and spmm's maximum" if op == "rows" else op
        lines += [f"**{title}.** {rest}", "", measured(reports[name]["machine"]), ""]
        lines += [*table(head, cells), ""]
    return lines


def measured(limits: dict[str, dict[str, float]]) -> str:
    rates = [f"{rate:.0f} ({dtype})" for dtype, rate in limits["gemm_gflop_s"].items()]
    copies = [f"{rate:.0f} ({size} MB)" for size, rate in limits["copy_gb_s"].items()]
    return (
        f"In this run: products at {', '.join(rates)} GFLOP/s; copies at {', '.join(copies)} GB/s."
    )
