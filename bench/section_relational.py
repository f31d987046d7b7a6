"""The section of relational in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from sections import figure, machine_and_load, ours_of, table


def relational_section(report: dict[str, Any]) -> list[str]:
    rows = report["rows"]
    cells = []
    for row in rows:
        ours = ours_of(rows, row, ("case",))
        more = row["above_data_mb"] / ours["above_data_mb"]
        cells.append(
            [row["case"], f"{row['edges']:,}", str(row["relations"]), row["side"]]
            + [figure(row["median_ms"]), f"{row['median_ms'] / ours['median_ms']:.1f}x"]
            + [f"{row['above_data_mb']:.0f}", f"{more:.1f}x", f"{row['gradients_mb']:.1f}"]
            + [f"{row['relative_error']:.0e}"]
        )
    head = ["layer", "edges", "relations", "side", "median ms", "times ours"]
    return [
        "## relational: one R-GCN layer, forward and backward",
        "",
        "float32; gradients of x, all weights, root and bias. *pyg*: RGCNConv, *pyg fast*:",
        "FastRGCNConv (left out where its weights, one an edge, take more than 2 GB). *mag-shaped*",
        "is synthetic: OGBN-Mag's types and relations with reverses at a twentieth of its size,",
        "edges drawn at random. *gradients MB*: what the step hands back, a part of *extra*.",
        f"`python bench/bench_relational.py`. {machine_and_load(report)}",
        "",
        *table([*head, "extra MB", "times ours", "gradients MB", "difference"], cells),
        "",
        *floor(rows),
    ]


def floor(rows: list[dict[str, Any]]) -> list[str]:
    """What the gradients themselves take where nodes have no features."""
    bare = [row for row in rows if "no features" in row["case"]]
    if not bare:
        return []
    ours = ours_of(bare, bare[0], ("case",))
    peer = min((row for row in bare if row is not ours), key=lambda row: row["above_data_mb"])
    least = ours["gradients_mb"]
    above = [row["above_data_mb"] - least for row in (ours, peer)]
    return [
        "Without features the weights are looked up. Their dense gradient, which `.grad` and",
        f"weight decay need, is {least:.1f} MB with the root's and written once. A third of",
        f"{peer['side']}'s is {peer['above_data_mb'] / 3:.1f} MB. Above the gradients ours takes",
        f"{above[0]:.0f} MB (the output; the graph's rows of all weights and their transpose,",
        f"which the first step makes and keeps), {peer['side']} {above[1]:.0f} MB.",
        "",
    ]
