"""The section of neighbor_kl in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from sections import figure, machine_and_load, table


def neighbor_kl_section(report: dict[str, Any]) -> list[str]:
    rows, cells = report["rows"], []
    for row in rows:
        base = "abkd_fast target" if row["side"].endswith("target") else "abkd_fast"
        case = (row["graph"], row["width"])
        ours = next(r for r in rows if (r["graph"], r["width"]) == case and r["side"] == base)
        samples = row["samples_ms"]
        cells.append(
            [row["graph"], f"{row['edges']:,}", str(row["width"]), row["side"]]
            + [figure(row["median_ms"]), f"{figure(min(samples))} to {figure(max(samples))}"]
            + [str(len(samples)), f"{row['median_ms'] / ours['median_ms']:.1f}x"]
            + [f"{row['above_data_mb']:.0f}", f"{row['relative_error']:.0e}"]
        )
    head = ["graph", "edges", "width", "side", "median ms", "range", "n", "times ours", "extra MB"]
    grown = [
        [f"{row['nodes']:,}", f"{row['edges']:,}", f"{row['above_data_mb']:.1f}"]
        + [f"{1e6 * row['above_data_mb'] / row['nodes']:.0f}"]
        for row in report["growth"]
    ]
    return [
        "## neighbor_kl: divergence of neighbourhood softmaxes (LSP)",
        "",
        "Value and student's gradient, float32, rbf, student and teacher equally wide. *plain*:",
        "both ends of every edge gathered, `scatter_reduce` and `index_add`; *torch_scatter*: its",
        "`scatter_log_softmax`; *target*: the teacher's log-probabilities are given, times are",
        "those of ours with a target. *rmat-1m* is synthetic: R-MAT, 2^17 nodes and 2^20 edges.",
        f"`python bench/bench_neighbor_kl.py`. {machine_and_load(report)}",
        "",
        *table([*head, "difference"], cells),
        "",
        "Our memory beside graph, states and teacher, 64 wide (512 bytes a node are the gradient",
        "and its product with the loss's own), on R-MAT graphs of eight edges a node:",
        "",
        *table(["nodes", "edges", "extra MB", "bytes a node"], grown),
        "",
    ]
