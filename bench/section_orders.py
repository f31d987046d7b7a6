"""The sections of docs/benchmarks.md on orders of the nodes and on neighbour sampling."""

from __future__ import annotations

from typing import Any

from sections import figure, machine, table


def reorder_section(report: dict[str, Any]) -> list[str]:
    rows = report["rows"]
    methods = list(dict.fromkeys(method for row in rows for method in row["ms"]))
    times = [
        [row["dataset"], str(row["width"])] + [figure(row["ms"][m]["p50"]) for m in methods]
        for row in rows
    ]
    made = [
        [row["dataset"], method, f"{row['seconds'][method]:.2f}", f"{row['distance'][method]:,.0f}"]
        for row in rows
        if row["width"] == rows[0]["width"]
        for method in methods
    ]
    return [
        "## Orders of the nodes",
        "",
        "spmm forward on A_hat with the nodes in different orders, median ms; *original* is the",
        "order of the files. *distance*: mean of |row - column| over the edges; *made*: seconds to",
        f"compute the order. `python bench/bench_reorder.py`. {machine(report)}",
        f"Load of the machine when it ended: {report['environment']['load']:.0f}.",
        "",
        *table(["graph", "width", *methods], times),
        "",
        *table(["graph", "order", "made s", "distance"], made),
        "",
    ]


def sampling_section(report: dict[str, Any]) -> list[str]:
    cells = []
    for row in report["rows"]:
        ours, pyg = row["ms"]["abkd_fast"], row["ms"]["PyG"]
        cells.append(
            [row["dataset"], row["limits"], str(row["batch"]), f"{row['edges']:,}"]
            + [
                f"{side['p50']:.2f} ({side['p20']:.2f} to {side['p80']:.2f})"
                for side in (ours, pyg)
            ]
            + [f"{pyg['p50'] / ours['p50']:.2f}x"]
        )
    return [
        "## Sampling neighbours",
        "",
        "`ops.sample_neighbors` against the sampler of PyG's NeighborLoader (torch-sparse): the",
        "same seed nodes and limits, features left out; median ms and the middle 60 %.",
        f"`python bench/bench_sample_neighbors.py`. {machine(report)}",
        f"Load of the machine when it ended: {report['environment']['load']:.0f}.",
        "",
        *table(["graph", "limits", "nodes", "edges", "abkd_fast", "PyG", "ratio"], cells),
        "",
    ]
