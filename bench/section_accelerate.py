"""The section of docs/benchmarks.md on accelerated PyG models."""

from __future__ import annotations

from typing import Any

from sections import figure, machine, table

NOTE = """\
A step is forward, backward and Adam of PyG's model as it is and after `accelerate(model)`, on dense
features and an edge_index. *fastest* compares the fastest steps of either side, which a busy
machine disturbs least; *difference* is the largest of scores and gradients. What is not the
layers', above all torch's dropout, costs both sides the same. GCN's and GraphSAGE's first layer
gets the bag of words as it is, every step the same tensor, and multiplies it as a sparse matrix;
GCNII's is a Linear behind a dropout."""


def accelerate_section(report: dict[str, Any]) -> list[str]:
    cells = []
    for row in report["rows"]:
        theirs, ours = (row["sides"][side]["samples_ms"] for side in ("pyg", "accelerated"))
        medians = [row["sides"][side]["median_ms"] for side in ("pyg", "accelerated")]
        cells.append(
            [
                row["dataset"],
                row["model"],
                f"{figure(medians[0])} ({figure(min(theirs))} to {figure(max(theirs))})",
                f"{figure(medians[1])} ({figure(min(ours))} to {figure(max(ours))})",
                f"{len(theirs)}, {len(ours)}",
                f"{medians[0] / medians[1]:.1f}x",
                f"{min(theirs) / min(ours):.1f}x",
                f"{row['difference']:.0e}",
            ]
        )
    head = ["graph", "model", "PyG, median ms", "accelerated", "n", "ratio", "fastest"]
    return [
        "## accelerate: training steps of PyG's models",
        "",
        f"`python bench/bench_accelerate.py`. {machine(report)} Load of the machine when it ended:",
        f"{report['environment']['load']:.0f}.",
        "",
        *table([*head, "difference"], cells),
        "",
        NOTE,
        "",
    ]
