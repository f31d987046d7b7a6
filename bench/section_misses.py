"""Where the time goes on a machine that misses targets, from its JSON reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limits import copy_rate
from plots import best_ratio
from sections import figure, table

Report = dict[str, Any]
NARROW_AND_WIDE = (1.5, 1.2)  # spmm's targets at widths up to 128 and from 256 on
SHOWN = 6  # operators of a step


def spmm_target(row: Report) -> float:
    return NARROW_AND_WIDE[row["width"] > 128]


def pair_profile(report: Report) -> list[str]:
    """What does not depend on the nodes, and the rate at which the rest is computed."""
    rate = report["machine"]["gemm_gflop_s"]["float32"]
    lines = []
    for config, found in report.get("by_nodes", {}).items():
        row = next(r for r in report["rows"] if r["config"] == config and "gflop" in r)
        one, few, all_nodes = sorted(map(int, found))
        fixed = found[str(one)]
        gflop_s = {
            size: 1e3 * row["gflop"] * size / row["nodes"] / (found[str(size)] - fixed)
            for size in (few, all_nodes)
        }
        lines.append(
            f"- {config}: {figure(fixed)} ms with one node; what {few:,} nodes add is computed at "
            f"{gflop_s[few]:.0f} GFLOP/s (the teacher in caches), what {all_nodes:,} add at "
            f"{gflop_s[all_nodes]:.0f} (from memory); a large product of torch's at {rate:.0f}."
        )
    return ["Our time by the number of nodes:", "", *lines, ""] if lines else []


def step_profile(report: Report) -> list[str]:
    """Shares of our steps by operator; what no operator has is Python, autograd, cold caches."""
    lines = []
    for row in report["rows"]:
        if "breakdown" not in row or row["allocator"] != "default" or row["case"] == "latency":
            continue
        parts = sorted(row["breakdown"].items(), key=lambda part: -part[1])
        whole = row["median_ms"]
        named = [f"{name} {ms / whole:.0%}" for name, ms in parts[:SHOWN]]
        smaller = sum(ms for _, ms in parts[SHOWN:])
        rest = max(whole - sum(ms for _, ms in parts), 0)
        lines.append(
            f"- {row['case']} {row['dataset']}, {figure(whole)} ms: {', '.join(named)}, smaller "
            f"ones {smaller / whole:.0%}, no operator {rest / whole:.0%}."
        )
    return ["Shares of our steps by operator:", "", *lines, ""] if lines else []


def spmm_profile(report: Report) -> list[str]:
    """The cases behind their target, and how near each is to a copy of what it touches."""
    limits = report["machine"]
    cells = []
    for row in sorted(report["rows"], key=best_ratio):
        if best_ratio(row) >= spmm_target(row):
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
    sizes = ", ".join(f"{size} MB {rate:.0f}" for size, rate in limits["copy_gb_s"].items())
    head = ["graph", "width", "what", "ours, ms", "ratio", "fastest peer", "touched, MB"]
    return [
        f"{len(cells)} of {len(report['rows'])} cases are behind their target. *of copy*: our GB/s "
        f"over those of a copy that touches as much (here {sizes}); from about 100 % on,",
        "caches are what every side waits for.",
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
