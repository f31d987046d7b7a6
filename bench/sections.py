"""The sections of docs/benchmarks.md, one a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Rows = list[Row]
NATIVE_BF16 = """\
*bf16* halves what is read from memory; its products are those of float32. AVX512-BF16's dot
product takes bfloat16 on both sides, so the student's factor would have to be split into a sum of
bfloat16 terms: two of them were no faster than the float32 kernel and less exact, three slower.
Conversions of 16-bit storage use vector instructions; the native one from float32 to bfloat16 was
no faster than the integer steps once it rounds subnormals as torch does."""
TRIED_ON_XEON = """\
Tried on an Intel Xeon with a second-level cache of 2 MB, with little or no gain: in the moment form
two chains of additions an element, chunks of 8 and 32 KB, blocks of 480 nodes, the next tile's rows
copied between this one's columns, rows read where they are; in the projection form the next panel
asked for ahead, blocks of 120, 240 and 480 nodes, panels of 256 columns. AMX tiles in the moment
form, every float as the exact sum of three bfloat16, gained little on a float32 teacher, more on a
bfloat16 one."""
SHORT_ROWS = """\
Graphs of many short rows (fewer than 8 edges on average; p2p-Gnutella31, PubMed) whose features
take 8 MB or less are taken in blocks of 256 rows by degree: the end of a row's loop is what such
rows cost, and is then predicted; the sort counts four parts of a block side by side, and the edges
of a row go into four sums. Tried on p2p-Gnutella31 without gain: prefetching, four edges at a time
with masks, a switch on the degree, one loop over all edges without branches. On longer rows and
larger features the order breaks the streams of columns and weights.

On Intel's processors, features of more than 4 MB are read in slices of 256 bytes a row where a
slice of all rows takes up to 8 MB: a slice stays near while all edges pass by. Tried there without
gain: prefetching from 2 MB on, slices of two, three and eight vectors, slices of larger graphs.
Slices that torch copied to where their rows are neighbours gained on amazon-photo at width 512 and
lost on facebook-pagepage."""
GROWTH = """\
*4 KB pages*: features as torch allocates them; *2 MB pages*: what `THP_MEM_ALLOC_ENABLE=1` makes
torch ask for, and what outputs of our ops of 4 MB or more have; *local*: the same with sources in
a window of 10^5 nodes, which caches hold. So what makes an edge dearer as N grows is first
*address translation*, then *caches*: at 10^6 nodes x is but a few times the last-level cache,
which still serves some rows. Tried: prefetching 8 to 256 edges ahead into the first- or
second-level cache; 64 into the first, what the kernel does, was as good as any."""


def machine(report: dict[str, Any]) -> str:
    found = report["environment"]
    earlier = sorted({run["created"][:10] for run in report.get("earlier", [])})
    kept = f" (some rows: {', '.join(earlier)})" if earlier else ""
    return (
        f"{found['cpu']}, {found['threads']} of {found['cores']} cores, torch {found['torch']}, "
        f"Python {found['python']}, {report['created'][:10]}{kept}."
    )


def machine_and_load(report: dict[str, Any]) -> str:
    """For sections that have no other place for it."""
    return (
        f"{machine(report)} Load of the machine when it ended: {report['environment']['load']:.1f}."
    )


def fastest_pyg(medians: Mapping[str, float]) -> str:
    """The fastest of PyG's forms; with the layer-by-layer loss, not indexed, where it has one."""
    usual = [side for side in medians if side.startswith("pyg")]
    usual = [side for side in usual if " + " not in side or side.endswith(" + eager")]
    return min(usual, key=medians.__getitem__)


def fastest_best(medians: Mapping[str, float]) -> str | None:
    """The fastest side with the loss as batched products, compiled or not."""
    sides = [side for side in medians if side.split(" + ")[-1].startswith("best")]
    return min(sides, key=medians.__getitem__, default=None)


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
        NATIVE_BF16,
        "",
        TRIED_ON_XEON,
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
        "Milliseconds of our step by operator (torch.profiler, which slows small ones down); what",
        "a median above has beyond their sum (*rest*) is Python, autograd, and caches that other",
        "sides' turns left cold.",
        "",
        *breakdown_table(rows),
        "",
        figure_line("step", "Where the time of our steps goes, and the fastest peer's"),
        "",
    ]


def breakdown_table(rows: Rows) -> list[str]:
    ours = [row for row in rows if "breakdown" in row and row["allocator"] == "default"]
    names = sorted({name for row in ours for name in row["breakdown"]})
    cells = [
        [f"{row['case']} {row['dataset']}"]
        + [f"{row['breakdown'][n]:.2f}" if n in row["breakdown"] else "" for n in names]
        for row in ours
    ]
    return table(["case", *names], cells)


def conv_section(report: dict[str, Any]) -> list[str]:
    cells = []
    heads = {"separate": "separate operations", "pyg": "PyG"}
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
        *table(["graph", "width", "ours, ms", *(heads.get(s, s) for s in medians)], cells),
        "",
    ]


def edge_attention_section(report: dict[str, Any]) -> list[str]:
    keys = ("dataset", "layer", "shape")
    rows = report["rows"]
    cells = [[*(row[key] for key in keys), *timed_cells(rows, row, keys)] for row in rows]
    return [
        "## edge_attention: attention layers",
        "",
        "GATConv and GATv2Conv, heads x width of a head, on 128 random features; forward and all",
        "gradients, dropout 0.6 on the coefficients, float32.",
        f"`python bench/bench_edge_attention.py`. {machine_and_load(report)}",
        "*pyg*: PyG's layer, self-loops added beforehand, edges sorted by destination;",
        "*pyg adj_t*: the same on a `torch_sparse.SparseTensor`. Without PyG: its messages, edges",
        "x heads x width, would take more than 4 GB.",
        "",
        *table([*keys, *TIMED], cells),
        "",
    ]


def peer_table(rows: Rows, keys: Sequence[str]) -> list[str]:
    """Cases by ``keys``, our median, and every peer's as a multiple of it."""
    peers = sorted({name for row in rows for name in row["ms"]} - {"abkd_fast"})
    cells = []
    for row in rows:
        ours = row["ms"]["abkd_fast"]["p50"]
        line = [f"{row[key]:,}" if isinstance(row[key], int) else row[key] for key in keys]
        line += [f"{ours:.3f}", f"{1e3 * row['gb'] / ours:.0f}"]
        for peer in peers:
            found, wrong = row["ms"].get(peer), peer in row.get("wrong", ())
            line.append("wrong" if wrong else f"{found['p50'] / ours:.1f}x" if found else "")
        cells.append(line)
    return table([*keys, "ours, ms", "GB/s", *peers], cells)


def spmm_section(report: dict[str, Any]) -> list[str]:
    return [
        "## spmm",
        "",
        f"float32, GCN-normalised graphs, `python bench/bench_spmm.py`. {machine(report)}",
        "",
        figure_line("spmm", "Time of the fastest peer over ours by graph and width"),
        "",
        "GB/s counts the graph, one row of x an edge and the output (twice with the backward);",
        f"above {report['machine']['copy_gb_s']['1024']:.0f} GB/s, a large copy's, rows come from",
        "caches. *wrong*: the values differ from the float64 product, so no time is given.",
        "",
        SHORT_ROWS,
        "",
        *peer_table(report["rows"], ("dataset", "width", "what")),
        "",
    ]


def segment_section(report: dict[str, Any]) -> list[str]:
    return [
        "## segment_csr",
        "",
        "Random rows, one an edge, reduced by destination, on the degrees of real graphs with",
        f"self-loops. `python bench/bench_segment.py`. {machine(report)}",
        "*torch scatter*: `index_add` (sum, mean), `scatter_reduce` (max, min). *wrong*: values or",
        "gradients differ from those in float64.",
        "",
        *peer_table(report["rows"], ("dataset", "width", "dtype", "reduce", "what")),
        "",
    ]


def dropout_section(report: dict[str, Any]) -> list[str]:
    return [
        "## dropout",
        "",
        f"float32, p = 0.5, `python bench/bench_dropout.py`. {machine(report)}",
        "",
        *peer_table(report["rows"], ("elements", "what")),
        "",
    ]


def rows_section(report: dict[str, Any]) -> list[str]:
    return [
        "## kl_div, linear, teacher_moments, spmm's maximum",
        "",
        f"float32; `python bench/bench_rows.py`. {machine_and_load(report)}",
        "",
        *peer_table(report["rows"], ("op", "case")),
        "",
    ]


def growth_section(report: dict[str, Any]) -> list[str]:
    cells = [
        [row["kind"], f"{row['num_nodes']:,}", f"{row['ms']:.2f}", f"{row['ns_per_edge']:.2f}"]
        + [f"{row['peak_mb']:.0f}", f"{1e3 * row['gb'] / row['ms']:.1f}"]
        for row in report["rows"]
    ]
    slopes = report["slopes"]
    exponents = [f"{kind} {slopes[kind]:.2f}" for kind in slopes if kind != "memory"]
    return [
        "## Growth",
        "",
        f"spmm forward on synthetic random graphs, {report['degree']} edges a node, width "
        f"{report['width']}; `python bench/bench_growth.py`.",
        f"Exponent of N: memory {slopes['memory']:.2f}; time from 10^6 nodes on: "
        f"{'; '.join(exponents)}.",
        machine(report),
        "",
        figure_line("growth", "Time an edge and peak memory against the number of nodes"),
        "",
        GROWTH,
        "",
        *table(["kind", "nodes", "ms", "ns an edge", "peak MB", "GB/s"], cells),
        "",
    ]


def figure_line(name: str, text: str) -> str:
    return f"![{text}](../bench/results/{name}.png)"
