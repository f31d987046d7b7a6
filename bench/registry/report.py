"""From pytest-benchmark's JSON to ours: a row a case and provider, with its turns' samples."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from harness import child, kept_rows
from limits import copy_rate
from registry.compare import FIELDS, specs
from rich.console import Console
from rich.table import Table

from abkd_fast.metrics import quantiles

Row = dict[str, Any]


def fold(benchmarks: list[Row], record: dict[str, Any]) -> dict[str, Any]:
    """Rows, what was left out and why, threads and the machine's limits."""
    turns: dict[tuple[str, str], list[list[float]]] = {}
    for found in benchmarks:
        info = found["extra_info"]
        samples = [round(1e3 * s, 5) for s in found["stats"]["data"]]
        turns.setdefault((info["spec"], info["provider"]), []).append(samples)
    rows = []
    for (spec, provider), samples in turns.items():
        name = dict(zip(FIELDS, spec.split("/"), strict=True))
        row = record["cases"][spec] | name | {"provider": provider}
        row["spec"] = "/".join([row["op"], row["label"], row["width"], row["dtype"]])
        rows.append(row | {"turns_ms": samples} | timed(samples, row, record["machine"]))
    return {
        "rows": rows,
        "left_out": record["left_out"],
        "threads": record["threads"],
        "machine": record["machine"],
    }


def timed(turns: list[list[float]], row: Row, machine: dict[str, Any] | None) -> Row:
    """Quantiles of all samples, and what the median reaches of a copy that touches as much."""
    found = quantiles(list(chain.from_iterable(turns)))
    rate = 1e3 * row["gb"] / found["p50"]
    share = {"of_copy": rate / copy_rate(machine, row["touched_mb"])} if machine else {}
    return found | {"gb_s": rate} | share


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of several processes: their turns one after the other."""
    rows: dict[tuple[str, str], Row] = {}
    for report in reports:
        for row in report["rows"]:
            key = row["spec"], row["provider"]
            known = rows.setdefault(key, row | {"turns_ms": []})
            known["turns_ms"] = known["turns_ms"] + row["turns_ms"]
    first = reports[0]
    for row in rows.values():
        row |= timed(row["turns_ms"], row, first["machine"])
    return first | {"rows": list(rows.values())}


def with_kept(found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A report, and of an earlier one all cases that this one does not have."""
    gone, timed = ({row["spec"] for row in found[name]} for name in ("left_out", "rows"))
    named = gone.union(*map(specs, found["rows"]))
    kept = {
        "rows": [r for r in before["rows"] if r["spec"] not in timed and not specs(r) & gone],
        "left_out": [r for r in before["left_out"] if r["spec"] not in named],
    }
    if not any(kept.values()):
        return found
    dated, runs = kept_rows(before, kept["rows"] + kept["left_out"])
    count = len(kept["rows"])
    joined = {"rows": dated[:count] + found["rows"], "left_out": dated[count:] + found["left_out"]}
    return found | joined | {"earlier": runs}


def add_memory(rows: list[Row], bench: Path) -> None:
    """Peak of two steps of every row in a fresh process, above what was held before.

    A process that fails, for want of memory perhaps, is named, and its row goes without.
    """
    for row in rows:
        spec = "/".join(row[f] for f in FIELDS)
        try:
            row["memory"] = child(str(bench), ["--memory-of", spec, row["provider"]])
        except SystemExit as failure:
            last = str(failure).strip().splitlines()[-1:]
            print(f"no memory of {spec}, {row['provider']}: {''.join(last)}", flush=True)


def show(report: dict[str, Any], console: Console) -> None:
    """A line a provider, times as often as ours; then what was not timed, and why."""
    columns = ("case", "provider", "p20 ms", "p50 ms", "p80 ms", "n", "x ours", "GB/s", "of copy")
    memory = any("memory" in row for row in report["rows"])
    table = Table(*columns, *(["extra MB"] if memory else []), title="ops by provider")
    mine = {r["spec"]: r["p50"] for r in report["rows"] if r["provider"] == "abkd_fast"}
    last = None
    for row in report["rows"]:
        if last not in (None, row["spec"]):
            table.add_section()
        times = [f"{row[key]:.3g}" for key in ("p20", "p50", "p80")]
        ratio = f"{row['p50'] / mine[row['spec']]:.2f}" if row["spec"] in mine else ""
        cells = [row["provider"], *times, str(row["n"]), ratio]
        cells += [f"{row['gb_s']:.3g}", f"{row['of_copy']:.0%}" if "of_copy" in row else ""]
        held = f"{row['memory']['above_data_mb']:.0f}" if "memory" in row else ""
        cells += [held] if memory else []
        table.add_row("" if last == row["spec"] else row["spec"], *cells)
        last = row["spec"]
    if report["rows"]:
        console.print(table)
    for gone in report["left_out"]:
        line = f"not timed: {gone['spec']}, {gone['provider']}: {gone['why']}"
        console.print(line, style="red", soft_wrap=True)
