"""Where the time goes on a machine that misses targets, from its JSON reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limits import copy_rate
from plots import best_ratio, spmm_target
from sections import figure, table

Report = dict[str, Any]
SHOWN = 6  # operators of a step


def pair_profile(report: Report) -> list[str]:
    """What does not depend on the nodes, and the rate at which the rest is computed."""
    rate = report["machine"]["gemm_gflop_s"]["float32"]
    lines = []
    for config, found in report.get("by_nodes", {}).items():
        row = next(r for r in report["rows"] if r["config"] == config and r["side"] == "abkd_fast")
        one, *more = sorted(int(size) for size in found if size != "read")
        parts = [f"{figure(found[str(one)])} ms with one node"]
        for size in more:
            added, share = found[str(size)] - found[str(one)], size / row["nodes"]
            if added > 0.1 * found[str(one)]:  # else it is noise
                parts.append(
                    f"{size:,} nodes ({share * row['gb'] * 1e3:.0f} MB) add {figure(added)} ms, "
                    f"{1e3 * share * row['gflop'] / added:.0f} GFLOP/s"
                )
        if "read" in found:
            parts.append(f"to read the teacher (torch.sum) takes {figure(found['read'])} ms")
        lines.append(f"- {config}: {'; '.join(parts)}.")
    head = f"Our time by the number of nodes (a large product of torch's: {rate:.0f} GFLOP/s):"
    return [head, "", *lines, ""] if lines else []


def step_profile(report: Report) -> list[str]:
    """Shares of our steps by operator."""
    lines = []
    for row in report["rows"]:
        if "breakdown" not in row or row["allocator"] != "default" or row["case"] == "latency":
            continue
        parts = sorted(row["breakdown"].items(), key=lambda part: -part[1])
        named_ms = sum(ms for _, ms in parts)
        whole = max(row["median_ms"], named_ms)  # the profiler slows small operators down
        named = [f"{name} {ms / whole:.0%}" for name, ms in parts[:SHOWN]]
        smaller = sum(ms for _, ms in parts[SHOWN:])
        rest = whole - named_ms
        lines.append(
            f"- {row['case']} {row['dataset']}, {figure(row['median_ms'])} ms: {', '.join(named)}, "
            f"smaller ones {smaller / whole:.0%}, the rest {rest / whole:.0%}."
        )
    head = (
        "Our steps by operator (torch.profiler); *the rest* is Python, autograd and caches that "
        "other sides left cold:"
    )
    return [head, "", *lines, ""] if lines else []


def spmm_profile(report: Report) -> list[str]:
    """The cases behind their target, and how near each is to a copy of what it touches."""
    limits = report["machine"]
    cells = []
    for row in sorted(report["rows"], key=best_ratio):
        if best_ratio(row) >= spmm_target(row["width"]):
            continue
        times = {name: found["p50"] for name, found in row["ms"].items()}
        ours = times.pop("abkd_fast")
        rate = 1e3 * row["gb"] / ours
        share = rate / copy_rate(limits, row["touched_mb"])
        cells.append([
            row["dataset"], str(row["width"]), row["what"], f"{ours:.3f}",
            f"{best_ratio(row):.2f}x", min(times, key=times.__getitem__),
            f"{row['touched_mb']:.1f}", f"{rate:.0f}", f"{share:.0%}",
        ])  # fmt: skip
    if not cells:
        return []
    sizes = ", ".join(f"{rate:.0f} of {size} MB" for size, rate in limits["copy_gb_s"].items())
    head = ["graph", "width", "what", "ours, ms", "ratio", "fastest peer", "touched, MB"]
    return [
        f"{len(cells)} of {len(report['rows'])} cases are behind their target. GB/s counts a row "
        "of x for every edge; *of copy* is that over the rate of a copy that touches as much "
        f"({sizes}), which rows that are read again from nearer caches exceed:",
        "",
        *table([*head, "GB/s", "of copy"], cells),
        "",
    ]


def growth_profile(report: Report) -> list[str]:
    """What an edge costs from a million nodes on."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in report["rows"]):
        rows = [r for r in report["rows"] if r["kind"] == kind and r["num_nodes"] >= 1_000_000]
        found = [f"{r['ns_per_edge']:.2f} at {r['num_nodes']:,}" for r in rows]
        lines.append(f"- {kind}: {', '.join(found)} nodes.")
    return ["Nanoseconds an edge:", "", *lines, ""]


PROFILES: dict[str, Callable[[Report], list[str]]] = {
    "layer_pair": pair_profile,
    "step": step_profile,
    "spmm": spmm_profile,
    "growth": growth_profile,
}


def profile(name: str, report: Report) -> list[str]:
    return PROFILES[name](report) if name in PROFILES else []
