"""The CPU's targets against what was measured, from the JSON files under bench/results.

    python bench/targets.py [--machine amd-epyc-2-cores]

Prints this machine's table where it has results, else that of the machine that the docs show.
bench/write_docs.py puts all of them into docs/benchmarks.md. Every ratio is one of two sides that
took turns in one run. `make bench-targets` measures all of it again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from limits import copy_rate
from machines import DOCUMENTED, Reports, measured_machines, reports_of, this_machine
from plots import best_ratio, spmm_target
from section_latency import TEACHERS
from section_latency import ratio as latency_ratio
from section_misses import profile
from sections import fastest_best, fastest_pyg, figure, machine_and_load, table

Report = dict[str, Any]
PAIR = "ABKD loss + backward, PubMed size, GCNII "
NARROW, WIDE = "64x64 -> 4x4", "16x256 -> 4x64"


@dataclass(frozen=True)
class Line:
    """One figure and its bounds; without bounds it is there for comparison.

    Attributes:
        report: name of the JSON file, less `.json`.
        needs: where the target is a multiple of a peer: (the peer's ms, our row, its machine).
    """

    what: str
    against: str
    measured: float
    report: str
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    where: str = ""
    needs: tuple[float, Report, Report] | None = None

    @property
    def met(self) -> bool | None:
        if self.low is None and self.high is None:
            return None
        above = self.low is None or self.measured >= self.low
        return above and (self.high is None or self.measured <= self.high)

    def cell(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.0%}"
        if self.unit == "exponent":
            return f"{value:.3f}"
        return f"{figure(value)}{'' if self.unit == 'x' else ' '}{self.unit}"

    def target(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f">= {self.cell(self.low)}"
        return "" if self.high is None else f"<= {self.cell(self.high)}"

    def cells(self) -> list[str]:
        verdict = {True: "yes", False: "no", None: ""}[self.met]
        value = self.cell(self.measured) + (f" ({self.where})" if self.where else "")
        return [self.what, self.against, self.target(), value, verdict]


def lines(reports: Reports) -> list[Line]:
    """Of the reports that there are."""
    parts = {
        "layer_pair": pair_lines,
        "step": step_lines,
        "spmm": spmm_lines,
        "conv": conv_lines,
        "latency": latency_lines,
        "growth": growth_lines,
        "growth_ops": growth_ops_lines,
    }
    return [line for name, part in parts.items() if name in reports for line in part(reports[name])]


def rows_by_side(report: Report, **wanted: Any) -> dict[str, Report]:
    rows = [row for row in report["rows"] if all(row[key] == wanted[key] for key in wanted)]
    return {row["side"]: row for row in rows}


def pair_lines(report: Report) -> Iterator[Line]:
    bounds = {"default": (80, 20), "page-keeping": (30, 6)}
    for allocator, least in bounds.items():
        rows = rows_by_side(report, config=NARROW, allocator=allocator)
        ours = rows["abkd_fast"]
        found = {side: row["median_ms"] for side, row in rows.items()}
        sides = ("eager", fastest_best(found) or "best", "eager indexed")
        for side, low in zip(sides, (*least, None), strict=True):
            yield Line(PAIR + NARROW, f"{side}, {allocator} allocator",
                       found[side] / ours["median_ms"], "layer_pair", low,
                       needs=(found[side], ours, report["machine"]))  # fmt: skip
    rows = rows_by_side(report, config=WIDE, allocator="default")
    found = {side: row["median_ms"] for side, row in rows.items()}
    ours, side = rows["abkd_fast"], fastest_best(found) or "best"
    nodes, layers, width = report["nodes"], *map(int, WIDE.split(" ")[0].split("x"))
    flop = 4e-9 * nodes * layers * width * report["subspace_width"]
    share = 1e3 * flop / ours["median_ms"] / report["machine"]["gemm_gflop_s"]["float32"]
    what = "rate of a large product, counted on 4 N D_t r"
    yield Line(PAIR + WIDE, what, share, "layer_pair", 0.85, unit="%")
    yield Line(PAIR + WIDE, f"{side}, default allocator", found[side] / ours["median_ms"],
               "layer_pair", 2, needs=(found[side], ours, report["machine"]))  # fmt: skip


def step_lines(report: Report) -> Iterator[Line]:
    kinds = {"distil": ("whole distillation step", 40), "teacher": ("teacher training step", 5)}
    for kind, (what, low) in kinds.items():
        for name in ("cora", "pubmed"):
            rows = rows_by_side(report, case=kind, dataset=name, allocator="default")
            ours = rows.pop("abkd_fast")
            found = {side: row["median_ms"] for side, row in rows.items()}
            side = fastest_pyg(found)
            needs = (found[side], ours, report["machine"])
            yield Line(f"{what}, {name}", side, found[side] / ours["median_ms"], "step", low,
                       needs=needs)  # fmt: skip
            indexed = [side for side in found if "indexed" in side]
            for other in (fastest_best(found), min(indexed, key=found.__getitem__, default=None)):
                if other is not None:
                    yield Line(f"{what}, {name}", other, found[other] / ours["median_ms"], "step")
    rows = rows_by_side(report, case="distil", dataset="pubmed", allocator="default")
    peaks = {side: row["above_data_mb"] for side, row in rows.items()}
    mine = peaks.pop("abkd_fast")
    peers = f"the leanest peer takes {figure(min(peaks.values()))} MB"
    yield Line("memory of a PubMed step above the data", peers, mine, "step", high=100, unit="MB")


def spmm_lines(spmm: Report) -> Iterator[Line]:
    def worst(rows: list[Report]) -> tuple[float, str]:
        row = min(rows, key=best_ratio)
        return best_ratio(row), f"least: {row['dataset']}, width {row['width']}, {row['what']}"

    what = "spmm, alone and with its backward, real graphs"
    peers = "the fastest peer, case by case"
    narrow = [row for row in spmm["rows"] if row["width"] <= 128]
    wide = [row for row in spmm["rows"] if row["width"] > 128]
    for rows, widths in ((narrow, "widths up to 128"), (wide, "widths from 256")):
        if rows:
            value, where = worst(rows)
            low = spmm_target(rows[0]["width"])
            yield Line(f"{what}, {widths}", peers, value, "spmm", low, where=where)
    median = statistics.median(best_ratio(row) for row in spmm["rows"])
    yield Line(f"{what}, median of {len(spmm['rows'])} cases", peers, median, "spmm", 2)


def conv_lines(conv: Report) -> Iterator[Line]:
    ratios = {}
    for row in conv["rows"]:
        medians = {side: found["median_ms"] for side, found in row["sides"].items()}
        pyg = [ms for side, ms in medians.items() if side.startswith("pyg")]
        ratios[f"{row['dataset']}, width {row['width']}"] = min(pyg) / medians["abkd_fast"]
    least = min(ratios, key=ratios.__getitem__)
    yield Line("conv forward + backward (no target of its own)", "PyG, its fastest form",
               ratios[least], "conv", where=f"least: {least}")  # fmt: skip


def latency_lines(report: Report) -> Iterator[Line]:
    for row in report["rows"]:
        if row["model"] in TEACHERS or row["query"] == "worst node":
            continue
        value = latency_ratio(row, "eager")
        if value is not None:
            what = f"latency p50 of {row['dataset']} {row['model']}, {row['query']}"
            yield Line(what, "PyG eager, its fastest form", value, "latency", 3)


def growth_lines(report: Report) -> Iterator[Line]:
    slopes = dict(report["slopes"])
    memory = slopes.pop("memory")
    what = "growth of spmm with N: "
    yield Line(what + "memory", "", memory, "growth", 0.95, 1.05, "exponent")
    for kind, value in slopes.items():
        yield Line(f"{what}time, {kind}", "", value, "growth", 0.9, 1.1, "exponent")


def growth_ops_lines(report: Report) -> Iterator[Line]:
    for row in report["slopes"]:
        what = f"growth of {row['op']} with N, R-MAT of degree {row['degree']}: "
        yield Line(what + "memory", "", row["memory"], "growth_ops", 0.95, 1.05, "exponent")
        if row["time"] is not None:
            yield Line(what + "time", "", row["time"], "growth_ops", 0.9, 1.1, "exponent")


# -- why a target is missed ---------------------------------------------------------------------

WHERE = {
    "layer_pair": "What was tried: [layer_pair](#layer_pair-abkd-loss-and-all-gradients).",
    "step": "All operators, on the machine of the tables: [Whole steps](#whole-steps). On "
    "PubMed the pass over the teacher's states (`layer_pair*`) alone takes most of what"
    " 40 times would leave, at the rate of a large product. On Cora much of the step is"
    " calls and memory, not arithmetic. What brought both here: results in kept memory,"
    " the loss of class scores and Adam in one op each, dropout inside the layers, the "
    "teacher's moments computed once. Tried without gain: bfloat16 states of the "
    "teacher ([layer_pair](#layer_pair-abkd-loss-and-all-gradients)), aggregation of "
    "narrow rows without branches ([spmm](#spmm)).",
    "spmm": "What was tried: [spmm](#spmm).",
    "latency": "What a small student costs, and what was done about it: "
    "[latency](latency.md#node-queries).",
    "growth": "What makes an edge dearer, and what was tried: [Growth](#growth). Where the last "
    "level of cache is large (the Xeon reports 480 MB), x leaves it between 10^6 and 10^7 nodes, "
    "and an exponent from 10^6 on has both sides of that.",
    "growth_ops": "Inferred, not measured: hubs of an R-MAT graph stay in caches, and the share of "
    "edges that read them falls as N grows. Where caches serve every source the exponent is near 1 "
    "(*local* above). "
    "[ns an edge](#r-mat-to-a-whole-step) at every size; what was tried: [Growth](#growth).",
}


def reason(line: Line) -> str:
    """What the target would take, by the operations counted and the rates of the same run."""
    begin = f"- {line.what}, {line.against}: " if line.against else f"- {line.what}: "
    if line.needs is None or line.low is None:
        return begin + f"{line.cell(line.measured)}, target {line.target()}."
    peer, ours, limits = line.needs
    product = limits["gemm_gflop_s"]["float32"]
    copy = copy_rate(limits, ours["touched_mb"])
    work, unit, rate, of = ours["gflop"], "GFLOP", product, "a large product of torch's"
    if ours["gb"] / copy > work / product:
        work, unit, rate, of = ours["gb"], "GB", copy, "a copy that touches as much"
    needed = peer / line.low
    return begin + (
        f"{line.low:g} times would be {figure(needed)} ms, {1e3 * work / needed:.0f} {unit}/s of "
        f"what is counted; ours takes {figure(ours['median_ms'])} ms, "
        f"{1e3 * work / ours['median_ms']:.0f} {unit}/s, where {of} reaches {rate:.0f}."
    )


HEAD = ["what", "against", "target", "measured", "met"]


def targets_section(machines: dict[str, Reports]) -> list[str]:
    """Every machine's table with what its misses would take, the documented one's first."""
    text = [
        "## Targets",
        "",
        "What this engine was designed to reach on a CPU, and what it reaches: `python",
        "bench/targets.py`, from the runs below. torch-scatter and torch-sparse are built from",
        "source. Lines without a target are there for comparison.",
        "",
    ]
    for name, reports in machines.items():
        found = lines(reports)
        if found:
            cells = [line.cells() for line in found]
            text += [f"### On {name}", "", *table(HEAD, cells), "", *runs(reports, found), ""]
            if name != DOCUMENTED:
                text += [f"Every side of these runs: [{name}](benchmarks-{name}.md).", ""]
            text += misses(found, reports)
    return text


def misses(found: list[Line], reports: Reports) -> list[str]:
    """What the missed targets would take, where our time goes, and where more of it stands."""
    missed = [line for line in found if line.met is False]
    if not missed:
        return []
    text = [f"{len(missed)} of {sum(line.met is not None for line in found)} are missed:", ""]
    for name in dict.fromkeys(line.report for line in missed):
        text += [reason(line) for line in missed if line.report == name]
        text += ["", *profile(name, reports[name])]
        text += [WHERE[name], ""] if name in WHERE else []
    return text


def runs(reports: Reports, found: list[Line]) -> list[str]:
    """Machine, date and load of every report that has a line, and how steady the machine was."""
    names = list(dict.fromkeys(line.report for line in found))
    rates = [reports[name]["machine"]["gemm_gflop_s"]["float32"]
             for name in names if "machine" in reports[name]]  # fmt: skip
    steady = (
        f"What the machine gave differs from run to run: a large product of torch's went at "
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s."
    )
    return [*(f"- `{name}.json`: {machine_and_load(reports[name])}" for name in names), "", steady]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = this_machine() if this_machine() in measured_machines() else DOCUMENTED
    parser.add_argument("--machine", choices=measured_machines(), default=default)
    reports = reports_of(parser.parse_args().machine)
    shown = Table("what", "against", "target", "measured", "met")
    for line in lines(reports):
        shown.add_row(*line.cells(), style="red" if line.met is False else None)
    console = Console(width=max(150, Console().width))
    console.print(shown)
    for line in lines(reports):
        if line.met is False:
            console.print(reason(line), soft_wrap=True)


if __name__ == "__main__":
    main()
