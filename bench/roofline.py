"""docs/roofline.md: what every op must compute and move, its least time, and what is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import costs
from costs import Cost
from formulas import FORMULAS, Sizes
from gpu_report import PEAKS
from limits import copy_rate
from section_limits import measured
from sections import figure, figure_line, machine, table

Report = dict[str, Any]
WIDTH = 64
GRAPHS = {"pubmed": "PubMed", "ogbn-arxiv": "ogbn-arxiv"}
CLASSES = {"pubmed": 3, "ogbn-arxiv": 40}
SHAPES = {"64x64 -> 4x4": (64, 64, 4, 4), "16x256 -> 4x64": (16, 256, 4, 64)}


WHY = """\
A multiply-add is two operations. Every array counts once a pass; of what a product with a graph
gathers, one row an edge, since nothing makes it stay in a cache; indices and weights take 4 bytes,
features and scores are float32. `layer_pair` counts the products that read the teacher and one
read of it, though its score and gradients take more. An exponential counts as one operation, a
drawn dropout mask as none: both cost more than that."""
FLOOR = """\
*at those rates* = max(operations / rate of a large float32 product of torch's, bytes / rate of a
copy that touches as many bytes), both measured in the run of the command; *reached* = that over the
measured time. The rates are torch's, no bounds of the machine: above 100 %, ours multiplies faster
than that product, or rows come from a nearer cache than the copy's. – : none of the commands below
times it; the [registry](benchmarks.md#every-op-against-its-fastest-peer) times most."""
NO_GPU = """\
No GPU has been measured: `bench/results` holds no `gpu.json`, so no figure stands here.
`make gpu-check PYTHON=python3` on a machine with one writes the file, and `python
bench/write_docs.py` then puts its columns here."""
GPU_FLOOR = """\
The same bytes and operations. *at those rates* = max(bytes / copy bandwidth, operations / rate of a
large product of the type), both measured in the same run: float32 against TF32 products, bfloat16
against bfloat16 ones. Float32 products of `conv` and `layer_pair` are three TF32 products each, so
they end at a third of that rate. Graphs and features that stay in the second-level cache (PubMed's)
are gathered from there and may pass 100 %."""


@dataclass(frozen=True)
class Entry:
    """One line of the table of a CPU: an op at a size, and what was measured of it."""

    op: str
    case: str
    cost: Cost
    report: str
    ms: float | None = None


COMMANDS = {
    "spmm": "bench/bench_spmm.py",
    "conv": "bench/bench_conv.py",
    "segment": "bench/bench_segment.py",
    "rows": "bench/bench_rows.py",
    "layer_pair": "bench/bench_layer_pair.py",
    "step": "bench/bench_step.py",
    "pair_infonce": "bench/bench_pair_infonce.py",
}


def found(report: Report, **wanted: Any) -> Report | None:
    """The row that has these entries, or None."""
    rows = (row for row in report["rows"] if all(row.get(k) == v for k, v in wanted.items()))
    return next(rows, None)


def milliseconds(row: Report | None) -> float | None:
    """Our median in a row of any report."""
    if row is None:
        return None
    if "sides" in row:
        return float(row["sides"]["abkd_fast"]["median_ms"])
    return float(row["ms"]["abkd_fast"]["p50"] if "ms" in row else row["median_ms"])


def sizes_of(reports: dict[str, Report], name: str) -> Sizes:
    """Nodes and edges of the GCN-normalised graph, as its benchmark found them."""
    row = found(reports["spmm"], dataset=name)
    assert row is not None
    return {"N": row["nodes"], "E": row["edges"], "F": WIDTH, "C": CLASSES[name]}


def entries(reports: dict[str, Report]) -> list[Entry]:
    """Every op at the sizes of both graphs, then the whole steps that were measured."""
    lines = [line for name in GRAPHS for line in _graph_entries(reports, name)]
    for row in reports["pair_infonce"]["rows"]:
        if row["pairs"] == 1:
            cost = costs.pair_infonce(row["rows"], row["width"])
            case = f"{row['rows']} rows, F = {row['width']}"
            lines.append(Entry("pair_infonce", case, cost, "pair_infonce", milliseconds(row)))
    order = list(dict.fromkeys(formula.op for formula in FORMULAS))
    lines.sort(key=lambda line: order.index(line.op))
    for row in reports["step"]["rows"]:
        if "gflop" in row and row["allocator"] == "default" and row["dataset"] in GRAPHS:
            parts = (round(1e9 * row["gflop"]), round(1e9 * row["gb"]))
            cost = Cost(*parts, round(1e6 * row["touched_mb"]))
            case = f"{GRAPHS[row['dataset']]}, {row['case']}"
            lines.append(Entry("whole step", case, cost, "step", row["median_ms"]))
    return lines


def _graph_entries(reports: dict[str, Report], name: str) -> list[Entry]:
    sizes, label = sizes_of(reports, name), GRAPHS[name]
    rows = reports["rows"]
    narrow = {**sizes, "F": 4}

    def entry(
        op: str, case: str, n: Sizes, report: str, row: Report | None, kind: str = ""
    ) -> Entry:
        formula = next(f for f in FORMULAS if f.op == op and kind in f.what)
        return Entry(op, f"{label}, {case}", formula.cost(n), report, milliseconds(row))

    def of_rows(op: str, begin: str) -> Report | None:
        same = (r for r in rows["rows"] if r["op"] == op and r["dataset"] == name)
        return next((r for r in same if begin in r["case"]), None)

    lines = []
    for width in (WIDTH, 256):
        n = {**sizes, "F": width}
        row = found(reports["spmm"], dataset=name, width=width, what="forward")
        lines.append(entry("spmm", f"F = {width}", n, "spmm", row))
        row = found(reports["conv"], dataset=name, width=width)
        lines.append(entry("conv", f"F = {width}", n, "conv", row))
    for op in ("edge_attention", "edge_attention_v2", "neighbor_kl", "relational"):
        lines.append(entry(op, f"F = {WIDTH}", sizes, "spmm", None))
    for op in ("sample_neighbors", "neighborhood", "select_rows"):
        lines.append(entry(op, "all edges", sizes, "spmm", None))
    lines.append(entry("spmm max", f"F = {WIDTH}", sizes, "rows", of_rows("spmm max", "")))
    row = of_rows("dropout", "")
    lines.append(entry("dropout", f"F = {WIDTH}", sizes, "rows", row))
    row = found(reports["segment"], dataset=name, width=WIDTH, dtype="float32", reduce="sum",
                what="forward+backward")  # fmt: skip
    lines.append(entry("segment_csr", f"F = {WIDTH}", sizes, "segment", row))
    for n in (narrow, sizes):
        case = f"{n['F']} -> {n['C']}"
        lines.append(entry("linear", case, n, "rows", of_rows("linear", f", {case},")))
    for kind in ("labels", "teacher's scores"):
        case = f"C = {sizes['C']}, {kind}"
        lines.append(entry("kl_div", case, sizes, "rows", of_rows("kl_div", kind), kind))
    for shape, (layers, width, count, student) in SHAPES.items():
        n = {**sizes, "L": layers, "D": layers * width, "S": count * student}
        form = "moment" if shape == "64x64 -> 4x4" else "projection"
        measured_here = reports["layer_pair"]["nodes"] == n["N"]
        row = found(reports["layer_pair"], config=shape, side="abkd_fast", allocator="default",
                    form=form) if measured_here else None  # fmt: skip
        lines.append(entry("layer_pair", f"{shape}, {form} form", n, "layer_pair", row, form))
        if form == "moment":
            row = of_rows("teacher_moments", "")
            lines.append(entry("teacher_moments", f"{layers}x{width}", n, "rows", row))
    return lines


def cpu_line(line: Entry, report: Report) -> list[str]:
    """Cells of one entry, with the limits of the run that measured it."""
    limits, cost = report["machine"], line.cost
    seconds = {
        "product": 1e-9 * cost.flop / limits["gemm_gflop_s"]["float32"],
        "copy": 1e-9 * cost.moved / copy_rate(limits, 1e-6 * cost.touched),
    }
    binds = max(seconds, key=seconds.__getitem__)
    least = 1e3 * seconds[binds]
    cells = [line.op, line.case, figure(1e-6 * cost.flop), figure(1e-6 * cost.moved)]
    cells += [figure(cost.flop / cost.moved), binds, figure(least)]
    if line.ms is None:
        return [*cells, "–", "–"]
    return [*cells, figure(line.ms), f"{least / line.ms:.0%}"]


def gpu_section(name: str, report: Report) -> list[str]:
    """What one GPU reaches, every row of its report."""
    limits, device = report["limits"], report["device"]
    lines = [
        f"### {device['name']}",
        "",
        f"`make gpu-check PYTHON=python3`, {report['created'][:10]}, `bench/results/{name}`. "
        "Measured in the same run: " + ", ".join(f"{k} {figure(v)}" for k, v in limits.items()),
        "",
    ]
    head = [
        "op",
        "case",
        "type",
        "op / byte",
        "at those rates, ms",
        "ours, ms",
        "reached",
        "GB/s",
        "TFLOP/s",
    ]
    cells = []
    for row in report["rows"]:
        ms = row["ms"]["abkd_fast"]["p50"]
        seconds = row["gb"] / limits["copy_gb_per_s"]
        seconds = max(seconds, 1e-3 * row["gflop"] / limits[PEAKS[row["dtype"]]])
        cells.append(
            [row["op"], row["case"], row["dtype"], figure(row["gflop"] / row["gb"])]
            + [figure(1e3 * seconds), figure(ms), f"{1e3 * seconds / ms:.0%}"]
            + [figure(1e3 * row["gb"] / ms), figure(row["gflop"] / ms)]
        )
    return [*lines, *table(head, cells), ""]


def readable(formula: str) -> str:
    return formula.replace("*", " ").replace("N F F", "N F²").replace("D D", "D²")


def page(reports: dict[str, Report], gpus: dict[str, Report]) -> list[str]:
    """The lines of docs/roofline.md from the reports of the CPU and of GPUs by file name."""
    formulas = [[f"`{f.op}`", f.what, readable(f.flop), readable(f.moved)] for f in FORMULAS]
    lines = entries(reports)
    cells = [cpu_line(line, reports[line.report]) for line in lines]
    used: Sequence[str] = list(dict.fromkeys(line.report for line in lines))
    runs = [
        f"- {', '.join(dict.fromkeys(f'`{e.op}`' for e in lines if e.report == name and e.ms))}: "
        f"`python {COMMANDS[name]}`. {machine(reports[name])} "
        f"Load average {reports[name]['environment']['load']:.1f}. "
        f"{measured(reports[name]['machine'])}"
        for name in used
    ]
    head = ["op", "size", "MFLOP", "MB", "op / byte", "binds"]
    head += ["at those rates, ms", "ours, ms", "reached"]
    gpu = [line for name, report in gpus.items() for line in gpu_section(name, report)]
    return [
        "# Rooflines",
        "",
        "What every op must compute and move, what that takes at torch's own rates, and ours.",
        "Written by `bench/write_docs.py` from `bench/costs.py` and the JSON files under",
        "`bench/results`; more cases and peers are in [benchmarks](benchmarks.md).",
        "",
        "## What an op must do",
        "",
        *table(["op", "what", "operations", "bytes"], formulas),
        "",
        "N nodes, E edges with self-loops, F width, C classes; L teacher layers, D and S the",
        "widths of all teacher and all student layers together.",
        "",
        *WHY.splitlines(),
        "",
        "## On the CPU",
        "",
        *FLOOR.splitlines(),
        "",
        figure_line("roofline", "Operations a second against operations a byte"),
        "",
        *table(head, cells),
        "",
        "Commands, machines and limits:",
        "",
        *runs,
        "",
        "## On a GPU",
        "",
        *GPU_FLOOR.splitlines(),
        "",
        *(gpu or [*NO_GPU.splitlines(), ""]),
    ]
