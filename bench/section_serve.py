"""The tables of docs/export.md: queries to exported students."""

from __future__ import annotations

from typing import Any

from section_latency import times
from sections import figure, machine, table

BUSY = [
    "**Other work held every core**: quantiles beyond the median, and HTTP, whose client and",
    "server are threads that each wait for a core, tell of that more than of the programs. The",
    "least time is that of an undisturbed call.",
]


def serve_section(report: dict[str, Any]) -> list[str]:
    cells = [
        [row["dataset"], row["model"], name, *times(side)]
        for row in report["rows"]
        for name, side in row["sides"].items()
    ]
    loops = [
        [row["dataset"], row["model"], str(loop["clients"])]
        + [f"{loop['queries_per_s']:.0f}", figure(loop["p50"])]
        for row in report["rows"]
        for loop in row["clients"]
    ]
    load, cores = report["environment"]["load"], report["environment"]["cores"]
    busy = BUSY if load > cores else []
    head = ["graph", "model", "side", "p50", "p90", "p99", "min", "calm p50", "n"]
    return [
        f"`python bench/bench_serve.py`, random weights. {machine(report)} Load of the",
        f"machine when it ended: {report['environment']['load']:.0f}. One node a query, drawn",
        "uniformly; ms (a dash: too few samples for the quantile; *calm*: calls that the system",
        "did not interrupt; in brackets how many it did). arxiv is OGBN-Arxiv's real graph with",
        "synthetic features.",
        *busy,
        "",
        *table(head, cells),
        "",
        "Clients of the HTTP server in a closed loop, in the server's process:",
        "",
        *table(["graph", "model", "clients", "queries/s", "p50 of a query, ms"], loops),
        "",
    ]
