"""What was reached of the machine's limits, op by op, from the JSON reports."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from math import log
from typing import Any

Report = dict[str, Any]
REST = {
    "spmm": "Rows come from caches, up to the width where x leaves them. Below width 32, what each "
    "row costs beside its edges (its loop's end is mispredicted); beyond the last-level cache, "
    "the latency of random rows and of their address translation (see Growth).",
    "conv": "Wide: the product, and Philox's integers for the mask. At width 4, what each row "
    "costs (its loop's end, its stores), not bytes.",
    "dropout": "Philox: some 20 integer operations an element, twice with the backward.",
    "segment_csr": "The rows are read once and nothing is computed: memory, and below width 32 the "
    "mispredicted end of every segment.",
    "rows": "kl_div computes exponentials and adds up in float64; at 3 and 7 classes, what a row "
    "costs beside them. teacher_moments converts the teacher to float64 and multiplies in it, once "
    "a teacher. spmm's maximum compares what every edge brings with what has won so far, and its "
    "gradient reads the winners of every edge's row.",
    "edge_attention": "8x8: what each row and each edge cost beside their features (scores, "
    "exponentials, the mask's random numbers); 3x250: gathered rows, and the dense products.",
    "layer_pair": "The moment form's products are narrow: 16 student columns. Its score and the "
    "gradients of the attention and the maps come on top of the products counted.",
    "step": "The sum of the above, and torch's own operations, Python and autograd: see the table "
    "of Whole steps.",
}


@dataclass(frozen=True)
class Point:
    """One timed case of ours."""

    op: str
    case: str
    gflop: float
    gb: float
    ms: float
    gemm_gflop_s: float
    copy_gb_s: float  # of a copy that touches as much

    @property
    def seconds(self) -> dict[str, float]:
        """The least that the machine's limits allow."""
        return {"product": self.gflop / self.gemm_gflop_s, "copy": self.gb / self.copy_gb_s}

    @property
    def binds(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def share(self) -> float:
        return 1e3 * self.seconds[self.binds] / self.ms


def copy_rate(machine: Report, touched_mb: float) -> float:
    """Of a copy that touches as much: between the sizes measured, linear in log(size).

    Below the smallest and above the largest size it is theirs.
    """
    rates = {int(size): rate for size, rate in machine["copy_gb_s"].items()}
    sizes = sorted(rates)
    place = bisect(sizes, touched_mb)
    if place in (0, len(sizes)):
        return float(rates[sizes[max(place - 1, 0)]])
    below, above = sizes[place - 1 : place + 1]
    share = log(touched_mb / below) / log(above / below)
    return float(rates[below] + share * (rates[above] - rates[below]))


def point(op: str, case: str, row: Report, ms: float, machine: Report) -> Point:
    gemm = machine["gemm_gflop_s"]["float32"]  # what ours computes in, whatever it reads
    rate = copy_rate(machine, row["touched_mb"])
    return Point(op, case, row["gflop"], row["gb"], ms, gemm, rate)


def points(reports: dict[str, Report]) -> list[Point]:
    """All timed cases of ours: with the backward where there is one."""

    def cases(name: str) -> list[Report]:
        return [row for row in reports[name]["rows"] if row.get("what") != "forward"]

    def machine(name: str) -> Report:
        found: Report = reports[name]["machine"]
        return found

    found = []
    for row in cases("spmm"):
        case = f"{row['dataset']}, width {row['width']}"
        found.append(point("spmm", case, row, row["ms"]["abkd_fast"]["p50"], machine("spmm")))
    for row in cases("conv"):
        case = f"{row['dataset']}, width {row['width']}"
        ms = row["sides"]["abkd_fast"]["median_ms"]
        found.append(point("conv", case, row, ms, machine("conv")))
    for row in cases("dropout"):
        ms = row["ms"]["abkd_fast"]["p50"]
        found.append(point("dropout", f"{row['elements']:,}", row, ms, machine("dropout")))
    for row in cases("segment"):
        case = f"{row['dataset']}, width {row['width']}, {row['dtype']}, {row['reduce']}"
        ms = row["ms"]["abkd_fast"]["p50"]
        found.append(point("segment_csr", case, row, ms, machine("segment")))
    for row in cases("rows"):
        if row["op"] == "dropout":  # has a report of its own
            continue
        case = f"{row['op']}: {row['case']}"
        found.append(point("rows", case, row, row["ms"]["abkd_fast"]["p50"], machine("rows")))
    for row in cases("edge_attention"):
        if "gflop" in row:
            case = f"{row['dataset']}, {row['layer']}, {row['shape']}"
            found.append(
                point("edge_attention", case, row, row["median_ms"], machine("edge_attention"))
            )
    for name, op in (("layer_pair", "layer_pair"), ("step", "step")):
        for row in reports[name]["rows"]:
            if "gflop" in row and row["allocator"] == "default":
                case = f"{row['config']}, {row['side']}" if op == "layer_pair" else (
                    f"{row['case']} {row['dataset']}")  # fmt: skip
                found.append(point(op, case, row, row["median_ms"], machine(name)))
    return found
