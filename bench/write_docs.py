"""Write docs/benchmarks.md, and the README's table, from the JSON under bench/results.

Run: python bench/write_docs.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Rows = list[dict[str, Any]]


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bench/results" / name).read_text())


def machine(report: dict[str, Any]) -> str:
    found = report["environment"]
    return (
        f"{found['cpu']}, {found['threads']} of {found['cores']} cores, torch {found['torch']}, "
        f"Python {found['python']}, {report['created'][:10]}"
    )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def layer_pair_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for row in report["rows"]:
        same = [r for r in report["rows"] if all(r[k] == row[k] for k in ("config", "allocator"))]
        ours = next(r for r in same if r["side"] == "abkd_fast")["median_ms"]
        extra = f"{row['above_data_mb']:.0f}" if "above_data_mb" in row else ""
        rows.append(
            [row["config"], row["allocator"], row["side"], f"{row['median_ms']:.0f}"]
            + [f"{row['min_ms']:.0f} to {row['max_ms']:.0f}", f"{row['median_ms'] / ours:.1f}x"]
            + [extra, f"{row['relative_error']:.0e}"]
        )
    return rows


def spmm_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for row in report["rows"]:
        ours = row["ms"]["abkd_fast"]["p50"]
        cells = [f"{ours:.3f}"]
        for peer in ("torch.sparse.mm", "csr @ x", "scipy"):
            found = row["ms"].get(peer)
            cells.append("" if found is None else f"{found['p50'] / ours:.1f}x")
        rows.append([row["dataset"], str(row["width"]), row["what"], *cells])
    return rows


def ratio(report: dict[str, Any], config: str, side: str) -> float:
    rows = {r["side"]: r for r in report["rows"] if (r["config"], r["allocator"]) == config}
    return rows[side]["median_ms"] / rows["abkd_fast"]["median_ms"]


def best_peer(report: dict[str, Any], what: str) -> tuple[float, float]:
    """Smallest and largest ratio of the fastest peer to ours."""
    ratios = []
    for row in report["rows"]:
        if row["what"] == what:
            times = {name: found["p50"] for name, found in row["ms"].items()}
            ours = times.pop("abkd_fast")
            ratios.append(min(times.values()) / ours)
    return min(ratios), max(ratios)


def main() -> None:
    pair, spmm = load("layer_pair-cpu.json"), load("spmm-cpu.json")
    page = [
        "# Benchmarks",
        "",
        "Written by `bench/write_docs.py` from the JSON files under `bench/results`. Values are",
        "compared before anything is timed; sides take turns within one process; medians.",
        "",
        "## layer_pair: ABKD loss and all gradients",
        "",
        f"PubMed size (N = {pair['nodes']:,}), subspace width {pair['subspace_width']}, float32, "
        "`python bench/bench_layer_pair.py`.",
        f"{machine(pair)}.",
        "",
        *table(
            ["teacher -> student", "allocator", "side", "median ms", "range", "times ours"]
            + ["extra MB", "difference"],
            layer_pair_rows(pair),
        ),
        "",
        "*eager*: one matmul a layer, then D row by row over the stacked student projections.",
        "*eager indexed*: the same with the teacher projections stacked and indexed, whose",
        "backward fills a whole gradient a layer. *best*: batched matmuls and the expanded square,",
        "left to autograd. Sources: `bench/peers/`. The page-keeping allocator is glibc's with",
        "neither mmap nor trim: much of the plain versions' time goes into page faults. *extra MB*",
        "is the peak resident size of a fresh process above its size with torch and the data",
        "loaded; *difference* the largest relative one of loss, D and gradients from *eager*.",
        "",
        "## spmm",
        "",
        f"float32, GCN-normalised graphs, `python bench/bench_spmm.py`. {machine(spmm)}.",
        "",
        *table(
            ["graph", "width", "what", "ours, ms", "torch.sparse.mm", "csr @ x", "scipy"],
            spmm_rows(spmm),
        ),
        "",
    ]
    (ROOT / "docs/benchmarks.md").write_text("\n".join(page))
    low, high = best_peer(spmm, "forward+backward")
    narrow = ("64x64 -> 4x4", "default")
    lines = table(
        ["what, on two CPU cores", "against", "times faster"],
        [
            ["loss + gradients, PubMed size, GCNII 64x64 -> 4x4", "plain PyTorch, layer by layer"]
            + [f"{ratio(pair, narrow, 'eager'):.0f}"],
            ["the same", "layer by layer, teacher projections stacked and indexed"]
            + [f"{ratio(pair, narrow, 'eager indexed'):.0f}"],
            ["the same", "batched PyTorch, expanded square"]
            + [f"{ratio(pair, narrow, 'best'):.0f}"],
            ["`spmm` forward + backward, Cora and PubMed, widths 16 to 256"]
            + ["the faster of torch.sparse.mm and csr @ x", f"{low:.1f} to {high:.1f}"],
        ],
    )
    readme = (ROOT / "README.md").read_text()
    marked = re.compile(r"(<!-- bench -->\n).*(<!-- end -->)", re.DOTALL)
    assert marked.search(readme), "README.md must hold <!-- bench --> and <!-- end -->"
    (ROOT / "README.md").write_text(marked.sub(rf"\1{chr(10).join(lines)}\n\2", readme))


if __name__ == "__main__":
    main()
