"""Two reports side by side: which of our rows got slower, beyond a threshold and the noise."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Report = dict[str, Any]
FIELDS = ("op", "graph", "width", "dtype")


def counts(provider: str) -> bool:
    """Whether it is kernels of ours: the default and back ends by name, not plain torch."""
    return provider.startswith("abkd_fast") and provider != "abkd_fast reference"


def specs(row: dict[str, Any]) -> set[str]:
    """Names of a row's case: with the graph's label, and with its name, which left_out has."""
    found = {row["spec"]}
    return found | {"/".join(row[f] for f in FIELDS)} if {*FIELDS} <= {*row} else found


@dataclass(frozen=True)
class Pair:
    """A case and provider in both reports: quantiles in ms before and after."""

    spec: str
    provider: str
    before: dict[str, float]
    after: dict[str, float]

    @property
    def ratio(self) -> float:
        """Median after over median before."""
        return self.after["p50"] / self.before["p50"]

    def verdict(self, threshold: float) -> str:
        """Slower: ratio beyond the threshold, and p20 after above p80 before. Faster: likewise.

        So four fifths of the new samples are slower than four fifths of the old ones: samples that
        overlap more than that are noise, whatever their medians.
        """
        if self.ratio > threshold and self.after["p20"] > self.before["p80"]:
            return "slower"
        if self.ratio < 1 / threshold and self.after["p80"] < self.before["p20"]:
            return "faster"
        return ""

    def line(self) -> str:
        a, b = self.before, self.after
        who = self.spec if self.provider == "abkd_fast" else f"{self.spec}, {self.provider}"
        return (
            f"slower: {who}: {a['p50']:.3g} -> {b['p50']:.3g} ms, {self.ratio:.2f} times "
            f"({a['p20']:.3g} to {a['p80']:.3g} before, {b['p20']:.3g} to {b['p80']:.3g} after)"
        )


def read(path: Path) -> Report:
    """A report, checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no report of `abkd-fast bench --out`.
    """
    try:
        report: Report = json.loads(path.read_text())
        wrong = fault(report)
    except (ValueError, RecursionError) as error:
        wrong = f"no JSON ({error})"
    if wrong:
        raise ValueError(
            f"{path} must be a report of `abkd-fast bench --out`, got {wrong}; time it again"
        )
    return {"left_out": [], **report}


def fault(report: Any) -> str:
    """What a report is instead of one; "" where nothing is wrong."""
    if not isinstance(report, dict):
        return f"another JSON, {type(report).__name__} in place of an object"
    if not isinstance(report.get("environment", {}), dict):
        return f"another JSON, environment = {report['environment']!r}"
    for name, known in (("rows", is_row), ("left_out", is_left_out)):
        found = report.get(name, [] if name == "left_out" else None)
        if not isinstance(found, list):
            return f"another JSON, {name} = {found!r:.60}"
        for place, row in enumerate(found):
            if not (isinstance(row, dict) and known(row)):
                return f"another JSON, {name}[{place}] = {row!r:.60}"
    return ""


def is_row(row: dict[str, Any]) -> bool:
    """Whether it names a case and a provider, and has quantiles above 0."""
    named = all(isinstance(row.get(name), str) for name in ("spec", "provider"))
    given = [f for f in FIELDS if f in row]
    times = [row.get(name) for name in ("p20", "p50", "p80")]
    return (
        named
        and all(isinstance(row[f], str) for f in given)
        and all(isinstance(t, int | float) and math.isfinite(t) and t > 0 for t in times)
    )


def is_left_out(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(name), str) for name in ("spec", "provider", "why"))


def pairs(before: Report, after: Report) -> list[Pair]:
    """Rows of both reports."""
    known = {(row["spec"], row["provider"]): row for row in before["rows"]}
    found = [(row, known.get((row["spec"], row["provider"]))) for row in after["rows"]]
    return [Pair(b["spec"], b["provider"], a, b) for b, a in found if a is not None]


def only_in(one: Report, other: Report) -> list[str]:
    names = [{f"{r['spec']}, {r['provider']}" for r in report["rows"]} for report in (one, other)]
    return sorted(names[0] - names[1])


def slower(before: Report, after: Report, threshold: float) -> list[Pair]:
    """Rows of our kernels that got slower."""
    mine = [p for p in pairs(before, after) if counts(p.provider)]
    return [pair for pair in mine if pair.verdict(threshold) == "slower"]


def became_wrong(before: Report, after: Report) -> list[str]:
    """A line for each case of our kernels that was timed before and is left out after."""
    why = {gone["spec"]: gone["why"] for gone in after.get("left_out", [])
           if counts(gone["provider"])}  # fmt: skip
    found: dict[str, str] = {}
    for row in before["rows"]:
        for spec in specs(row) & {*why} if counts(row["provider"]) else ():
            found[row["spec"]] = f"wrong: {row['spec']}: {why[spec]}"
    return [*found.values()]


def check_same(before: Report, after: Report) -> None:
    """Raise ValueError where the reports are of other numbers of threads or processors."""
    threads = before.get("threads"), after.get("threads")
    if threads[0] != threads[1]:
        raise ValueError(
            f"reports must be of as many threads, got {threads[0]} and {threads[1]}; time one of "
            "them again with the other's OMP_NUM_THREADS"
        )
    cpus = [report.get("environment", {}).get("cpu") for report in (before, after)]
    if None not in cpus and cpus[0] != cpus[1]:
        raise ValueError(
            f"reports must be of the same processor, got {cpus[0]} and {cpus[1]}; time both on one"
        )


def compare(before: Report, after: Report, threshold: float, console: Console) -> int:
    """Print ratios and a line for each row of ours that is slower or wrong; 1 where there is one.

    Peers' rows are a control: they hold none of our code, so what they moved by is the machine's.

    Raises:
        ValueError: the reports have no row of ours in common, or are of other numbers of threads
            or processors.
    """
    check_same(before, after)
    found, wrong = pairs(before, after), became_wrong(before, after)
    mine = [p for p in found if counts(p.provider)]
    if not mine and not wrong:
        raise ValueError("reports must have a row of abkd_fast in common, got none")
    table = Table("case", "provider", "before ms", "after ms", "after / before", "verdict")
    for pair in (p for p in found if p.provider.startswith("abkd_fast")):
        medians = [f"{side['p50']:.3g}" for side in (pair.before, pair.after)]
        table.add_row(pair.spec, pair.provider, *medians, f"{pair.ratio:.2f}",
                      pair.verdict(threshold))  # fmt: skip
    console.print(table)
    rest = [p.ratio for p in found if not p.provider.startswith("abkd_fast")]
    if rest:
        console.print(
            f"peers: {statistics.median(rest):.2f} times, median of {len(rest)} rows; 1.00 where "
            "the machine is as fast as it was"
        )
    for label, names in (("before", only_in(before, after)), ("after", only_in(after, before))):
        for name in names:
            console.print(f"only {label}: {name}")
    worse = slower(before, after, threshold)
    for line in [*wrong, *(pair.line() for pair in worse)]:
        console.print(line, style="red", soft_wrap=True)
    verdict = f"{len(worse)} of {len(mine)} rows slower" if worse else "no row slower"
    console.print(f"{verdict} (threshold {threshold:g}, and p20 after above p80 before)")
    return 1 if worse or wrong else 0
