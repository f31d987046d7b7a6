"""Write docs/benchmarks.md and roofline.md, figures and README's table from bench/results/*.json.

Run: python bench/write_docs.py
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import roofline
from machines import DOCUMENTED, RESULTS, Reports, measured_machines, reports_of
from plots import best_ratio, draw_all
from section_accelerate import accelerate_section
from section_contrast import contrast_section
from section_latency import latency_section, ratio_lines, readme_rows, write_page
from section_limits import limits_section
from section_neighbor_kl import neighbor_kl_section
from section_orders import reorder_section, sampling_section
from section_registry import calls_section, registry_section
from section_relational import relational_section
from section_scale import arxiv_section, growth_ops_section, mag_section
from section_serve import serve_section
from sections import (
    conv_section,
    dropout_section,
    edge_attention_section,
    fastest_best,
    fastest_pyg,
    growth_section,
    layer_pair_section,
    rows_section,
    segment_section,
    spmm_section,
    step_section,
    table,
)
from targets import targets_section

ROOT = Path(__file__).resolve().parents[1]


NAMES = (
    "layer_pair",
    "step",
    "conv",
    "edge_attention",
    "neighbor_kl",
    "relational",
    "dropout",
    "rows",
    "spmm",
    "segment",
    "growth",
    "reorder",
    "sample_neighbors",
    "accelerate",
    "pair_infonce",
    "latency",
)
WHOLE_RUNS = {  # on a machine with the time and memory for them
    "growth_ops": growth_ops_section,
    "arxiv": arxiv_section,
    "mag": mag_section,
}
LATE = (*WHOLE_RUNS, "registry", "serve")  # may be missing
BUSY = 4.0  # load of two cores that says of other work


def all_reports() -> tuple[dict[str, Reports], dict[str, dict[str, Any]]]:
    """Those of CPUs by machine (the documented one first) and name, those of GPUs by path."""
    machines = {name: reports_of(name) for name in measured_machines()}
    gpus = {f"{name}/gpu.json": found.pop("gpu") for name, found in machines.items()
            if "gpu" in found}  # fmt: skip
    return {name: found for name, found in machines.items() if found}, gpus


def documented(machines: dict[str, Reports]) -> Reports:
    """The documented machine's; what it lacks, or measured beside other work, is another's."""
    reports = dict(machines[DOCUMENTED])
    for name, report in chain.from_iterable(found.items() for found in machines.values()):
        known = reports.get(name)
        if (known is None and name in LATE) or (known and load(known) > BUSY >= load(report)):
            reports[name] = report
    return reports


def load(report: dict[str, Any]) -> float:
    """Of the machine when the report was written."""
    return float(report["environment"]["load"])


def page(machines: dict[str, Reports]) -> list[str]:
    reports = documented(machines)
    return [
        "# Benchmarks",
        "",
        "Written by `bench/write_docs.py` from the JSON files under `bench/results`. Values are",
        "compared before anything is timed; sides take turns within one process; medians. The",
        "page-keeping allocator is glibc's with neither mmap nor trim: much of the plain versions'",
        "time goes into page faults. *extra MB* is the peak resident size of a fresh process above",
        "its size with torch and the data loaded; *difference* the largest relative one. What each",
        "op must compute and move: [rooflines](roofline.md).",
        "",
        *targets_section(machines),
        *(registry_section(reports["registry"]) if "registry" in reports else ()),
        *calls_sections(machines),
        *limits_section(reports),
        *layer_pair_section(reports["layer_pair"]),
        *contrast_section(reports["pair_infonce"]),
        *step_section(reports["step"]),
        *conv_section(reports["conv"]),
        *relational_section(reports["relational"]),
        *dropout_section(reports["dropout"]),
        *edge_attention_section(reports["edge_attention"]),
        *neighbor_kl_section(reports["neighbor_kl"]),
        *rows_section(reports["rows"]),
        *spmm_section(reports["spmm"]),
        *segment_section(reports["segment"]),
        *growth_section(reports["growth"]),
        *chain.from_iterable(
            section(reports[name]) for name, section in WHOLE_RUNS.items() if name in reports
        ),
        *reorder_section(reports["reorder"]),
        *sampling_section(reports["sample_neighbors"]),
        *accelerate_section(reports["accelerate"]),
    ]


COMPARED: dict[str, Callable[[dict[str, Any]], list[str]]] = {  # what other machines have pages of
    "layer_pair": layer_pair_section,
    "step": step_section,
    "conv": conv_section,
    "spmm": spmm_section,
}


def other_page(name: str, reports: Reports) -> list[str]:
    """Every side of what another machine measured; the figures are the documented one's alone."""
    sections = chain.from_iterable(
        section(reports[report]) for report, section in COMPARED.items() if report in reports
    )
    return [
        f"# Benchmarks on {name}",
        "",
        "Written by `bench/write_docs.py`; how to read it, and the targets of this machine:",
        "[benchmarks](benchmarks.md).",
        "",
        *(line for line in sections if not line.startswith("![")),
    ]


def ratio(report: dict[str, Any], side: str, **case: str) -> str:
    """How many times slower than ours ``side`` is under the default allocator.

    ``side`` "pyg": :func:`fastest_pyg`; "best": :func:`fastest_best`.
    """
    rows = [
        row
        for row in report["rows"]
        if row["allocator"] == "default" and all(row[key] == case[key] for key in case)
    ]
    medians = {row["side"]: row["median_ms"] for row in rows}
    chosen = {"pyg": fastest_pyg, "best": fastest_best}.get(side, lambda _: side)(medians)
    if chosen is None:
        return "not measured"
    value = medians[chosen] / medians["abkd_fast"]
    untried = side == "best" and not any(name.endswith("best compiled") for name in medians)
    return (f"{value:.1f}" if value < 10 else f"{value:.0f}") + (" (uncompiled)" if untried else "")


def spread(ratios: list[float]) -> str:
    """Median, least and largest."""
    return f"{statistics.median(ratios):.1f} (median; {min(ratios):.1f} to {max(ratios):.1f})"


SHOWN = ("layer_pair", "step", "spmm", "latency")  # what README's table needs


def readme_table(machines: dict[str, Reports]) -> list[str]:
    """How many times faster than its peers this is, a column a machine."""
    complete = [found for found in machines.values() if found.keys() >= {*SHOWN}]
    names = [found["step"]["environment"]["cpu"] for found in complete]
    columns = [readme_rows_of(found) for found in complete]
    rows = [[*same[0][:2], *(row[2] for row in same)] for same in zip(*columns, strict=True)]
    return table(["times faster, two cores", "against", *names], rows)


def readme_rows_of(reports: Reports) -> list[list[str]]:
    """[what, against, times faster] of a machine."""
    pair, step, narrow = reports["layer_pair"], reports["step"], "64x64 -> 4x4"
    products = [row for row in reports["spmm"]["rows"] if row["what"] == "forward+backward"]
    both = [best_ratio(row) for row in products]
    alone = [best_ratio(row) for row in reports["spmm"]["rows"] if row not in products]
    teachers = [ratio(step, "pyg", case="teacher", dataset=name) for name in ("cora", "pubmed")]
    distil = ratio(step, "pyg", case="distil", dataset="pubmed")
    return [
        [f"loss + gradients, PubMed size, GCNII {narrow}", "plain PyTorch, layer by layer"]
        + [ratio(pair, "eager", config=narrow)],
        ["the same", "layer by layer, teacher projections stacked and indexed"]
        + [ratio(pair, "eager indexed", config=narrow)],
        ["the same", "batched PyTorch, expanded square, compiled where that is faster"]
        + [ratio(pair, "best", config=narrow)],
        ["whole distillation step, PubMed", "PyG, its fastest form, + the layer-by-layer loss"]
        + [distil],
        ["the same", "PyG, its fastest form, + the batched loss, compiled where that is faster"]
        + [ratio(step, "best", case="distil", dataset="pubmed")],
        ["training step of the 64x64 teacher, Cora / PubMed", "PyG `GCN2Conv`, its fastest form"]
        + [" / ".join(teachers)],
        ["`spmm`, real graphs", "the fastest peer, case by case", spread(alone)],
        ["`spmm` + backward, real graphs", "the fastest peer, case by case", spread(both)],
        *readme_rows(reports["latency"]),
    ]


def latency_page(machines: dict[str, Reports]) -> list[str]:
    """The documented machine's, then the ratios of all others."""
    others = [(name, found["latency"]) for name, found in machines.items()
              if name != DOCUMENTED and "latency" in found]  # fmt: skip
    lines = latency_section(machines[DOCUMENTED]["latency"])
    for name, report in others:
        lines += [f"### On {name}", "", *ratio_lines(report)]
    return lines


def calls_sections(machines: dict[str, Reports]) -> list[str]:
    """What a call costs, on every machine where that was measured."""
    return list(chain.from_iterable(
        calls_section(found["registry"]) for found in machines.values() if "registry" in found
    ))  # fmt: skip


def main() -> None:
    machines, gpus = all_reports()
    reports = documented(machines)
    draw_all(reports, RESULTS)
    (ROOT / "docs/benchmarks.md").write_text("\n".join(page(machines)))
    for name, found in machines.items():
        if name != DOCUMENTED:
            text = "\n".join(other_page(name, found))
            (ROOT / f"docs/benchmarks-{name}.md").write_text(text)
    (ROOT / "docs/roofline.md").write_text("\n".join(roofline.page(reports, gpus)))
    write_page(ROOT / "docs/latency.md", "latency", latency_page(machines))
    write_page(ROOT / "docs/export.md", "serve", serve_section(reports["serve"]))
    lines = "\n".join(readme_table(machines))
    readme = (ROOT / "README.md").read_text()
    marked = re.compile(r"(<!-- bench -->\n).*(<!-- end -->)", re.DOTALL)
    assert marked.search(readme), "README.md must hold <!-- bench --> and <!-- end -->"
    (ROOT / "README.md").write_text(marked.sub(rf"\1{lines}\n\2", readme))


if __name__ == "__main__":
    main()
