"""Write docs/benchmarks.md, its figures and the README's table from the JSON in bench/results.

Run: python bench/write_docs.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from plots import best_ratio, draw_all
from sections import (
    conv_section,
    dropout_section,
    edge_attention_section,
    growth_section,
    layer_pair_section,
    limits_section,
    segment_section,
    spmm_section,
    step_section,
    table,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


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
        *limits_section(reports),
        *layer_pair_section(reports["layer_pair"]),
        *step_section(reports["step"]),
        *conv_section(reports["conv"]),
        *dropout_section(reports["dropout"]),
        *edge_attention_section(reports["edge_attention"]),
        *spmm_section(reports["spmm"]),
        *segment_section(reports["segment"]),
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


def readme_table(reports: dict[str, dict[str, Any]]) -> list[str]:
    pair, step, narrow = reports["layer_pair"], reports["step"], "64x64 -> 4x4"
    products = [row for row in reports["spmm"]["rows"] if row["what"] == "forward+backward"]
    forward = [best_ratio(row) for row in products]
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
    names = ("layer_pair", "step", "conv", "dropout", "spmm", "segment", "growth")
    names += ("edge_attention",)
    reports = {name: load(f"{name}-cpu.json") for name in names}
    draw_all(reports, RESULTS)
    (ROOT / "docs/benchmarks.md").write_text("\n".join(page(reports)))
    lines = "\n".join(readme_table(reports))
    readme = (ROOT / "README.md").read_text()
    marked = re.compile(r"(<!-- bench -->\n).*(<!-- end -->)", re.DOTALL)
    assert marked.search(readme), "README.md must hold <!-- bench --> and <!-- end -->"
    (ROOT / "README.md").write_text(marked.sub(rf"\1{lines}\n\2", readme))


if __name__ == "__main__":
    main()
