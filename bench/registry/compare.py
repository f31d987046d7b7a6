"""Two reports side by side: which of our rows got slower, beyond a threshold and the noise."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Report = dict[str, Any]


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
        return (
            f"slower: {self.spec}: {a['p50']:.3g} -> {b['p50']:.3g} ms, {self.ratio:.2f} times "
            f"({a['p20']:.3g} to {a['p80']:.3g} before, {b['p20']:.3g} to {b['p80']:.3g} after)"
        )


def read(path: Path) -> Report:
    report: Report = json.loads(path.read_text())
    if not all({"spec", "provider", "p20"} <= {*row} for row in report.get("rows", [{}])):
        raise ValueError(f"{path} must be a report of `abkd-fast bench --out`, got another JSON")
    return report


def pairs(before: Report, after: Report) -> list[Pair]:
    """Rows of both reports."""
    known = {(row["spec"], row["provider"]): row for row in before["rows"]}
    found = [(row, known.get((row["spec"], row["provider"]))) for row in after["rows"]]
    return [Pair(b["spec"], b["provider"], a, b) for b, a in found if a is not None]


def only_in(one: Report, other: Report) -> list[str]:
    names = [{f"{r['spec']}, {r['provider']}" for r in report["rows"]} for report in (one, other)]
    return sorted(names[0] - names[1])


def slower(before: Report, after: Report, threshold: float) -> list[Pair]:
    """Rows of ours that got slower."""
    mine = [p for p in pairs(before, after) if p.provider.startswith("abkd_fast")]
    return [pair for pair in mine if pair.verdict(threshold) == "slower"]


def compare(before: Report, after: Report, threshold: float, console: Console) -> int:
    """Print a table of ratios and a line for each slowed row of ours; 1 where there is one.

    Peers' rows are a control: they hold none of our code, so what they moved by is the machine's.

    Raises:
        ValueError: the reports have no row of ours in common, or other numbers of threads.
    """
    found = pairs(before, after)
    mine = [p for p in found if p.provider.startswith("abkd_fast")]
    if not mine:
        raise ValueError("reports must have a row of abkd_fast in common, got none")
    threads = before.get("threads"), after.get("threads")
    if threads[0] != threads[1]:
        raise ValueError(f"reports must be of as many threads, got {threads[0]} and {threads[1]}")
    table = Table("case", "provider", "before ms", "after ms", "after / before", "verdict")
    for pair in mine:
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
    for pair in worse:
        console.print(pair.line(), style="red", soft_wrap=True)
    verdict = f"{len(worse)} of {len(mine)} rows slower" if worse else "no row slower"
    console.print(f"{verdict} (threshold {threshold:g}, and p20 after above p80 before)")
    return 1 if worse else 0
