"""The section of the registry in docs/benchmarks.md: every op against its fastest peer."""

from __future__ import annotations

from typing import Any

from limits import copy_rate
from registry.ratios import ratios
from sections import figure, figure_line, machine, machine_and_load, table

NONE = "–"
TINY = "tiny"
Row = dict[str, Any]


def line(ours: Row, peer: Row | None, memory: bool, limits: dict[str, Any]) -> list[str]:
    cells = [ours["op"], ours["label"], ours["width"], ours["dtype"], figure(ours["p50"])]
    share = ours["gb_s"] / copy_rate(limits, ours["touched_mb"])
    cells += [figure(ours["gb_s"]), f"{share:.0%}"]
    if peer is None:
        return [*cells, *[NONE] * (4 if memory else 2)]
    cells += [peer["provider"], f"{peer['p50'] / ours['p50']:.1f}x"]
    held = [f"{row['memory']['above_data_mb']:.0f}" if "memory" in row else NONE
            for row in (ours, peer)]  # fmt: skip
    return [*cells, *(held if memory else ())]


def registry_section(report: dict[str, Any]) -> list[str]:
    memory = any("memory" in row for row in report["rows"])
    names = sorted({row["provider"] for row in report["rows"]})
    graphs = sorted({row["graph"] for row in report["rows"]} - {TINY})
    found = list(ratios(report))
    peers = [name for name in names if not name.startswith("abkd_fast")]
    threads = report["threads"]
    left_out = [f"- {gone['spec']}, {gone['provider']}: {gone['why']}"
                for gone in report["left_out"]]  # fmt: skip
    head = ["op", "graph", "width", "dtype", "ours, ms", "GB/s", "of copy", "fastest peer", "ratio"]
    head += ["ours, extra MB", "peer, extra MB"] if memory else []
    return [
        "## Every op against its fastest peer",
        "",
        figure_line("registry", "Time of the fastest peer over ours by op and width"),
        "",
        f"Medians of `make bench-registry`, of its graphs {', '.join(graphs)}:",
        "a line an op, graph, width and type, ours against the",
        f"fastest of all providers that were right ({', '.join(f'`{p}`' for p in peers)}).",
        "*of copy*: the bytes the op must move in our time, over the rate of a copy that touches",
        "as many. *extra MB*: the peak of two steps above what a process held after one.",
        f"{machine(report)} {threads} thread{'s' * (threads > 1)}; load of the machine",
        f"when it ended: {report['environment']['load']:.1f}.",
        "",
        *table(
            head,
            [
                line(ours, peer, memory, report["machine"])
                for ours, peer in found
                if ours["graph"] != TINY
            ],
        ),
        "",
        *(["Not timed:", "", *left_out, ""] if left_out else []),
    ]


def calls_section(report: dict[str, Any]) -> list[str]:
    """The narrowest case of every op on a graph so small that the call is most of it."""
    narrowest: dict[str, tuple[Row, Row | None]] = {}
    for ours, peer in ratios(report):
        before = narrowest.get(ours["op"])
        if ours["graph"] != TINY:
            continue
        if before is None or int(ours["width"]) < int(before[0]["width"]):
            narrowest[ours["op"]] = ours, peer
    if not narrowest:
        return []
    cells = [[op, ours["width"], figure(1e3 * ours["p50"]), *microseconds(peer)]
             for op, (ours, peer) in narrowest.items()]  # fmt: skip
    return [
        f"### What a call costs, {report['environment']['cpu']}",
        "",
        "The same on 500 nodes (synthetic), where checks, dispatch and allocation are most of the",
        "time: medians in microseconds of a call, with *+gradient* of forward and backward.",
        machine_and_load(report),
        "",
        *table(["op", "width", "ours, us", "fastest peer", "its us"], cells),
        "",
    ]


def microseconds(row: Row | None) -> list[str]:
    return [NONE, NONE] if row is None else [row["provider"], figure(1e3 * row["p50"])]
