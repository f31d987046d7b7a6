"""The section of relational in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from sections import figure, machine, ours_of, table


def relational_section(report: dict[str, Any]) -> list[str]:
    rows = report["rows"]
    cells = []
    for row in rows:
        ours = ours_of(rows, row, ("case",))
        more = row["above_data_mb"] / ours["above_data_mb"]
        cells.append(
            [row["case"], f"{row['edges']:,}", str(row["relations"]), row["side"]]
            + [figure(row["median_ms"]), f"{row['median_ms'] / ours['median_ms']:.1f}x"]
            + [f"{row['above_data_mb']:.0f}", f"{more:.1f}x", f"{row['relative_error']:.0e}"]
        )
    head = ["layer", "edges", "relations", "side", "median ms", "times ours"]
    return [
        "## relational: one R-GCN layer, forward and backward",
        "",
        "float32; gradients of x, all weights, root and bias. *pyg*: RGCNConv, *pyg fast*:",
        "FastRGCNConv (left out where its weights, one an edge, take more than 2 GB). *mag-shaped*",
        "is synthetic: OGBN-Mag's types and relations with reverses at a twentieth of its size,",
        "edges drawn at random. Without features, 48 MB are the gradient of the weights itself.",
        f"`python bench/bench_relational.py`. {machine(report)}",
        "",
        *table([*head, "extra MB", "times ours", "difference"], cells),
        "",
    ]
