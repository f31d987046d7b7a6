"""Write docs/benchmarks.md, and the README's table, from the JSON under bench/results.

Run: python bench/write_docs.py
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
Rows = list[Row]


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bench/results" / name).read_text())


def machine(report: dict[str, Any]) -> str:
    found = report["environment"]
    return (
        f"{found['cpu']}, {found['threads']} of {found['cores']} cores, torch {found['torch']}, "
        f"Python {found['python']}, {report['created'][:10]}."
    )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def ours_of(rows: Rows, row: Row, keys: Sequence[str]) -> Row:
    """Our row of the same case."""
    return next(
        r for r in rows if r["side"] == "abkd_fast" and all(r[key] == row[key] for key in keys)
    )


def figure(value: float) -> str:
    """Three digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def timed_cells(rows: Rows, row: Row, keys: Sequence[str]) -> list[str]:
    """Side, median, range, ratio to ours, faults, memory, difference."""
    ratio = row["median_ms"] / ours_of(rows, row, keys)["median_ms"]
    samples = row["samples_ms"]
    return [
        row["side"],
        figure(row["median_ms"]),
        f"{figure(min(samples))} to {figure(max(samples))}",
        str(len(samples)),
        f"{ratio:.1f}x",
        f"{row['minor_faults']:.0f}",
        f"{row['above_data_mb']:.0f}" if "above_data_mb" in row else "",
        f"{row['relative_error']:.0e}",
    ]


TIMED = ["side", "median ms", "range", "n", "times ours", "faults", "extra MB", "difference"]


def layer_pair_section(report: dict[str, Any]) -> list[str]:
    keys = ("config", "allocator")
    rows = report["rows"]
    cells = [
        [row["config"], row["allocator"], *timed_cells(rows, row, keys)] for row in report["rows"]
    ]
    limits = []
    for row in rows:
        if row["side"].startswith("abkd_fast") and row["allocator"] == "default":
            rate = 1e3 * row["gflop"] / row["median_ms"]
            limits.append(
                [row["config"], row["side"], row["form"], f"{row['gflop']:.1f}"]
                + [f"{row['gb']:.2f}", f"{rate:.0f} of {row['gemm_gflops']:.0f}"]
                + [f"{1e3 * row['gb'] / row['median_ms']:.0f} of {row['copy_gb_per_s']:.0f}"]
            )
    return [
        "## layer_pair: ABKD loss and all gradients",
        "",
        f"Subspace width 64, float32, `python bench/bench_layer_pair.py`. {machine(report)}",
        "",
        *table(["teacher -> student", "allocator", *TIMED], cells),
        "",
        "*eager*: one matmul a layer, then D row by row over the stacked student projections.",
        "*eager indexed*: the same with the teacher projections stacked and indexed, whose",
        "backward fills a whole gradient a layer. *best*: batched matmuls and the expanded square,",
        "left to autograd. *frozen*: the teacher's maps need no gradient. Sources: `bench/peers/`.",
        "",
        "What must be done, what the machine can do (float32 product, copy), and what was reached:",
        "",
        *table(
            ["teacher -> student", "side", "form", "GFLOP", "GB read", "GFLOP/s", "GB/s"], limits
        ),
        "",
        "*bf16* halves what is read from memory; its products are those of float32. AVX512-BF16's",
        "dot product takes bfloat16 on both sides, so the student's factor would have to be split",
        "into a sum of bfloat16 terms. Tried on the moment form's two products in cache (240",
        "nodes, 4096 teacher columns, 16 student columns, one thread), with the largest error over",
        "the largest entry: the float32 kernel 250 GFLOP/s and 4e-07; two terms 0.96 times its",
        "speed and 2e-06; three terms 0.62 times and 5e-07.",
        "",
    ]


def step_section(report: dict[str, Any]) -> list[str]:
    keys = ("case", "dataset", "allocator")
    rows = report["rows"]
    cells = [
        [f"{row['case']} {row['dataset']}", row["allocator"], *timed_cells(rows, row, keys)]
        for row in rows
    ]
    return [
        "## Whole steps",
        "",
        "*teacher*: one training step of GCNII 64x64. *distil*: one KD + ABKD step of a 4x4",
        "student, the teacher cached on every side. *latency*: the 4x4 student's forward pass over",
        f"the whole graph. `python bench/bench_step.py`. {machine(report)}",
        "",
        *table(["case", "allocator", *TIMED], cells),
        "",
    ]


def conv_section(report: dict[str, Any]) -> list[str]:
    cells = []
    for row in report["rows"]:
        medians = {side: found["median_ms"] for side, found in row["sides"].items()}
        ours = medians.pop("abkd_fast")
        ratios = [f"{value / ours:.1f}x" for value in medians.values()]
        cells.append([row["dataset"], str(row["width"]), f"{ours:.3f}", *ratios])
    return [
        "## conv: one GCNII layer with dropout, forward and backward",
        "",
        f"`python bench/bench_conv.py`. {machine(report)}",
        "",
        *table(["graph", "width", "ours, ms", "separate operations", "PyG"], cells),
        "",
    ]


def spmm_section(report: dict[str, Any]) -> list[str]:
    peers = sorted({name for row in report["rows"] for name in row["ms"]} - {"abkd_fast"})
    cells = []
    for row in report["rows"]:
        ours = row["ms"]["abkd_fast"]["p50"]
        found = [row["ms"].get(peer) for peer in peers]
        ratios = ["" if peer is None else f"{peer['p50'] / ours:.1f}x" for peer in found]
        ratios = [
            "wrong" if peer in row["wrong"] else r for peer, r in zip(peers, ratios, strict=True)
        ]
        rate = f"{1e3 * row['gb'] / ours:.0f}"
        cells.append([row["dataset"], str(row["width"]), row["what"], f"{ours:.3f}", rate, *ratios])
    return [
        "## spmm",
        "",
        f"float32, GCN-normalised graphs, `python bench/bench_spmm.py`. {machine(report)}",
        "",
        "GB/s counts the graph, one row of x an edge and the output (twice with the backward);",
        f"above a copy's {report['machine']['copy_gb_per_s']:.0f} GB/s, rows come from caches.",
        "*wrong*: the values differ from the float64 product, so no time is given.",
        "",
        *table(["graph", "width", "what", "ours, ms", "GB/s", *peers], cells),
        "",
    ]


def growth_section(report: dict[str, Any]) -> list[str]:
    cells = [
        [f"{row['num_nodes']:,}", f"{row['ms']:.2f}", f"{row['ns_per_edge']:.2f}"]
        + [f"{row['peak_mb']:.0f}", f"{1e-6 * row['bytes'] / row['ms']:.1f}"]
        for row in report["rows"]
    ]
    slopes = report["slopes"]
    return [
        "## Growth",
        "",
        f"spmm forward on synthetic uniform random graphs, {report['degree']} edges a node, width "
        f"{report['width']}; `python bench/bench_growth.py`.",
        f"Exponent of N: memory {slopes['memory']:.2f}, time from 10^6 nodes on "
        f"{slopes['time']:.2f}. A copy runs at {report['machine']['copy_gb_per_s']:.0f} GB/s.",
        machine(report),
        "",
        *table(["nodes", "ms", "ns an edge", "peak MB", "GB/s"], cells),
        "",
    ]


def page(reports: dict[str, dict[str, Any]]) -> list[str]:
    return [
        "# Benchmarks",
        "",
        "Written by `bench/write_docs.py` from the JSON files under `bench/results`. Values are",
        "compared before anything is timed; sides take turns within one process; medians. The",
        "page-keeping allocator is glibc's with neither mmap nor trim: much of the plain versions'",
        "time goes into page faults. *extra MB* is the peak resident size of a fresh process above",
        "its size with torch and the data loaded; *difference* the largest relative one.",
        "",
        *layer_pair_section(reports["layer_pair"]),
        *step_section(reports["step"]),
        *conv_section(reports["conv"]),
        *spmm_section(reports["spmm"]),
        *growth_section(reports["growth"]),
    ]


def ratio(report: dict[str, Any], side: str, **case: str) -> str:
    """How many times slower than ours ``side`` is under the default allocator."""
    rows = [
        row
        for row in report["rows"]
        if row["allocator"] == "default" and all(row[key] == case[key] for key in case)
    ]
    medians = {row["side"]: row["median_ms"] for row in rows}
    value = medians[side] / medians["abkd_fast"]
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def best_peer(report: dict[str, Any], what: str) -> list[float]:
    """Ratio of the fastest peer to ours, of every case."""
    ratios = []
    for row in report["rows"]:
        if row["what"] == what:
            times = {name: found["p50"] for name, found in row["ms"].items()}
            ours = times.pop("abkd_fast")
            ratios.append(min(times.values()) / ours)
    return ratios


def readme_table(reports: dict[str, dict[str, Any]]) -> list[str]:
    pair, step, narrow = reports["layer_pair"], reports["step"], "64x64 -> 4x4"
    forward = best_peer(reports["spmm"], "forward+backward")
    return table(
        ["what, on two CPU cores", "against", "times faster"],
        [
            [f"loss + gradients, PubMed size, GCNII {narrow}", "plain PyTorch, layer by layer"]
            + [ratio(pair, "eager", config=narrow)],
            ["the same", "layer by layer, teacher projections stacked and indexed"]
            + [ratio(pair, "eager indexed", config=narrow)],
            ["the same", "batched PyTorch, expanded square"] + [ratio(pair, "best", config=narrow)],
            ["whole distillation step, PubMed", "PyG model + the layer-by-layer loss"]
            + [ratio(step, "pyg csr + eager", case="distil", dataset="pubmed")],
            ["training step of the 64x64 teacher, Cora / PubMed", "PyG `GCN2Conv` on CSR"]
            + [
                " / ".join(
                    ratio(step, "pyg csr", case="teacher", dataset=name)
                    for name in ("cora", "pubmed")
                )
            ],
            ["`spmm` forward + backward, real graphs", "the fastest peer, case by case"]
            + [
                f"{statistics.median(forward):.1f} (median; {min(forward):.1f} to "
                f"{max(forward):.1f})"
            ],
        ],
    )


def main() -> None:
    names = ("layer_pair", "step", "conv", "spmm", "growth")
    reports = {name: load(f"{name}-cpu.json") for name in names}
    (ROOT / "docs/benchmarks.md").write_text("\n".join(page(reports)))
    lines = "\n".join(readme_table(reports))
    readme = (ROOT / "README.md").read_text()
    marked = re.compile(r"(<!-- bench -->\n).*(<!-- end -->)", re.DOTALL)
    assert marked.search(readme), "README.md must hold <!-- bench --> and <!-- end -->"
    (ROOT / "README.md").write_text(marked.sub(rf"\1{lines}\n\2", readme))


if __name__ == "__main__":
    main()
