"""The sections of docs/benchmarks.md on runs at published sizes, and on growth to 10^7 nodes."""

from __future__ import annotations

from typing import Any

from sections import figure_line, machine, table

FORMS = {"csr": "transposed torch CSR", "edge_index": "edge_index"}


def arxiv_section(report: dict[str, Any]) -> list[str]:
    builds = [
        [row["storage"], row["dtype"], f"{row['states_mb']:,.0f}"]
        + ["not timed" if row["build_s"] is None else f"{row['build_s']:.1f}"]
        + [f"{row['peak_mb']:,.0f}", f"{row['load']:.0f}"]
        for row in report["build"]
    ]
    steps = [
        [f"{row['student']} 2 x 256", f"{row['parameters']:,}", row["storage"], row["dtype"]]
        + [f"{row['peak_mb']:,.0f}"]
        + [f"{1e-3 * row['step_ms']:.2f}", f"{row['load']:.0f}"]
        for row in report["distil"]
    ]
    first = report["build"][0]
    head = ["student", "parameters", "storage", "states", "peak MB", "s a step", "load"]
    return [
        "## OGBN-Arxiv's size: a teacher on disk",
        "",
        f"OGBN-Arxiv's real graph ({first['num_nodes']:,} nodes, {first['num_edges']:,} edges in",
        "both directions) and labels, synthetic features. Teacher GAT 750-750-40 (3 heads x 250,",
        f"{first['parameters']:,} parameters, random), its states of 2 x 750 in one cache;",
        "students with batch norm distilled from it with KD + ABKD. Every line is a fresh",
        "process; *peak* is its largest resident size, torch and the data included. With storage",
        "`mmap` the states are a file, with `memory` all are held: a run that builds and distils",
        "in one process peaks at the larger of both lines. *load* is the machine's while the line",
        "was measured, on two cores: times of lines with other loads do not compare.",
        f"`python bench/bench_arxiv.py`. {machine(report)}",
        "",
        *table(["storage", "states", "states MB", "build s", "peak MB", "load"], builds),
        "",
        *table(head, steps),
        "",
    ]


def mag_section(report: dict[str, Any]) -> list[str]:
    phases = report["phases"]
    data, build, distil = phases["data"], phases["build"], phases.get("distil")
    rows = [_mag_row("data generated, graph built", data, "phase_s")]
    rows += [_mag_row("teacher run, cache written", build, "build_s")]
    if distil is not None:
        rows += [_mag_row("student, KD + ABKD, one step", distil)]
        rows += [_mag_row("evaluation of all nodes", distil, "evaluation_s")]
    if "labels" in phases:
        rows += [_mag_row("student, labels alone, one step", phases["labels"])]
    rows += [
        _mag_row(f"the same, PyG, {text}", phases[f"pyg {form}"])
        for form, text in FORMS.items()
        if f"pyg {form}" in phases
    ]
    return [
        "## OGBN-Mag's size: the paper's R-GCN end to end",
        "",
        f"Synthetic (`data.mag_sized()`): {data['num_nodes']:,} nodes of 4 types,",
        f"{data['num_edges']:,} edges of {data['relations']} relations with reverses. Teacher",
        f"R-GCN 512-512-349, {build['parameters']:,} parameters (random), student 32-349,",
        f"169,428: 32.9x; both have {build['embeddings']:,} of embeddings besides. The",
        f"teacher's states of 2 x 512 for every paper lie on disk, {build['states_mb']:,.0f} MB",
        "in bfloat16, and are streamed. Every phase is a fresh process that loads the data from",
        "files; *peak* is its",
        "largest resident size, torch, data and mapped files included. A process above",
        f"{report['limit_mb']:,.0f} MB was ended: *does not fit*. PyG: `HeteroConv` of `SAGEConv`",
        "means and a `Linear` a type, the same embeddings, dropout and fused Adam; its scores",
        f"agree with ours to {max(phases['check']['difference'].values()):.0e} (relative, on a",
        "hundredth of the data).",
        f"`python bench/bench_mag.py`. {machine(report)}",
        "",
        *table(["phase", "s", "fastest s", "peak MB", "load"], rows),
        "",
        *_plan(distil),
    ]


def _plan(distil: dict[str, Any] | None) -> list[str]:
    if distil is None:
        return []
    head = "What `memory_plan` said before the distillation:"
    return [head, "", *(f"    {line}" for line in distil["plan"]), ""]


def _mag_row(name: str, row: dict[str, Any], key: str = "step_ms") -> list[str]:
    if "phase_s" not in row:
        return [name, "does not fit", "", f"> {row['limit_mb']:,.0f}", f"{row['load']:.0f}"]
    if key == "step_ms":
        seconds = [f"{1e-3 * row[key]:.1f}", f"{1e-3 * min(row['steps_ms']):.1f}"]
    else:
        seconds = [f"{row[key]:.1f}", ""]
    return [name, *seconds, f"{row['peak_mb']:,.0f}", f"{row['load']:.0f}"]


def growth_ops_section(report: dict[str, Any]) -> list[str]:
    rows = sorted(report["rows"], key=lambda row: (row["degree"], row["op"]))
    cells = [_growth_cells(row) for row in rows]
    fits = [
        [row["op"], str(row["degree"]), f"{row['memory']:.3f}"]
        + ["not measured" if row["time"] is None else f"{row['time']:.3f}"]
        for row in report["slopes"]
    ]
    head = ["op", "degree", "nodes", "ms", "ns an edge", "ns a node", "MB", "bytes a node", "load"]
    return [
        "### R-MAT, to a whole step",
        "",
        "Synthetic R-MAT graphs, generated row block by row block, F = 64. spmm: forward, features",
        "on huge pages (`use_huge_pages`), as the states between layers are. conv:",
        "forward of a layer 64 -> 64 of means. layer_pair: forward and backward, teacher 4 x 16,",
        "student 2 x 16; it has no edges, its *ns an edge* are time over 10 N. step: one of a",
        "Distiller, GCN student 2 x 16 of 64 features, KD + ABKD. *MB*: peak resident size with",
        "graph and inputs above what the process held before. *load*: of the machine, two cores,",
        "while the line was measured; exponents of time compare lines of different loads.",
        f"`python bench/bench_growth_ops.py`. {machine(report)}",
        "",
        "Exponents of N, fitted: memory over all sizes, time from 10^6 nodes on.",
        "",
        *table(["op", "degree", "memory", "time"], fits),
        "",
        figure_line("growth_ops", "Time an edge and peak memory a node against the nodes"),
        "",
        *table(head, cells),
        "",
    ]


def _growth_cells(row: dict[str, Any]) -> list[str]:
    head = [row["op"], str(row["degree"]), f"{row['num_nodes']:,}"]
    load = f"{row['load']:.0f}"
    if "ms" not in row:
        return [*head, "does not fit", "", "", f"> {row['limit_mb']:,.0f}", "", load]
    times = [f"{row['ms']:,.2f}", f"{row['ns_per_edge']:.2f}", f"{row['ns_per_node']:,.0f}"]
    return [*head, *times, f"{row['peak_mb']:,.0f}", f"{row['bytes_per_node']:,.0f}", load]
