"""What a latency report looks like: a table for the terminal, and one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkd_fast._machine import format_bytes
from abkd_fast._pages import embed, render
from abkd_fast._storage import write_atomically
from abkd_fast.latency.figures import draw, fastest
from abkd_fast.latency.profile import FORMAT
from abkd_fast.latency.subjects import FULL, ONE
from abkd_fast.task import METRICS

if TYPE_CHECKING:
    from rich.console import Console

NONE = "–"
NBSP = "\N{NO-BREAK SPACE}"
_HEADS = ("p50", "p90", "p95", "p99", "min", "IQR", "n", "first", "cold caches")
_WIDE = 110  # columns of a terminal that shows all of them
Report = Mapping[str, Any]


def write_report(report: Report, folder: Path, command: str = "") -> Path:
    """Write latency.json (raw samples in it), three PNG files and latency.html into ``folder``.

    The HTML file loads nothing and runs no script. Each file replaces an older one in one step.

    Args:
        report: what :func:`abkd_fast.latency.profile` returns.
        folder: made where missing.
        command: shown in the page.

    Returns:
        Path of latency.html.

    Raises:
        ValueError: the report has another format.
    """
    if report.get("format") != FORMAT:
        raise ValueError(f"report must have format {FORMAT}, got {report.get('format')!r}")
    folder = Path(folder)
    text = json.dumps(report)
    write_atomically(folder / "latency.json", lambda path: _write(path, text))
    figures = draw(report, folder)
    page = render(
        "latency.html",
        {"ms": milliseconds, "size": format_bytes, "ratio": _ratio, "bandwidth": bandwidth},
        report=report,
        models=report["models"],
        first=_headline(report),
        metric=METRICS[report["models"][0]["metric"]],
        rows=latency_rows(report),
        files=files(report),
        images={name: embed(path) for name, path in figures.items()},
        facts=_facts(report),
        interrupted=_interrupted(report),
        command=command,
    )
    write_atomically(folder / "latency.html", lambda path: _write(path, page))
    return folder / "latency.html"


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the latencies and what stands beside them, by default to standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if console is None else console
    shown_heads = [*_HEADS[:4], *_HEADS[5:7]] if console.width < _WIDE else _HEADS
    heads = ["ms of a query", *shown_heads]
    times = Table(*heads, title=Text(f"{report['dataset']['name']}: latency"))
    for column in times.columns[1:]:
        column.justify = "right"
    shown = ""
    for kind, name, form, *cells in latency_rows(report):
        if kind != shown:
            times.add_section()
            times.add_row(Text(kind, style="bold"))
            shown = kind
        of_head = dict(zip(_HEADS, cells, strict=True))
        times.add_row(Text(f"  {name}, {form}"), *(of_head[head] for head in shown_heads))
    console.print(times)
    for name, file in files(report):
        console.print(Text(f"{name}: {file}"))
    names = [model["name"] for model in report["models"]]
    beside = Table("", *names, title="beside it")
    for column in beside.columns[1:]:
        column.justify = "right"
    for label, cells in beside_rows(report):
        beside.add_row(*(Text(cell) for cell in (label, *cells)))
    console.print(beside)
    for model in report["models"]:
        console.print(Text(f"{model['name']}, ops of an eager pass: {_dearest(model)}"))
        for form, reason in model["left_out"].items():
            console.print(Text(f"{model['name']} has no form {form}: {reason}"))
        if "left_out" in model["server"]:
            reason = model["server"]["left_out"]
            console.print(Text(f"{model['name']} answers no node queries: {reason}"))
    interrupted, calls = _interrupted(report)
    if interrupted > 0.05 * calls:
        console.print(f"the system interrupted {interrupted:,} of {calls:,} calls: other work ran")
    if any(reason for *_, reason in _left_out(report)):
        console.print("–: too few samples; more --seconds and --samples 662 give p99")


def _dearest(model: Mapping[str, Any], count: int = 4) -> str:
    """The ops that take most of a pass, as shares of the time in ops."""
    whole = sum(op["ms"] for op in model["ops"])
    shown = sorted(model["ops"], key=lambda op: -op["ms"])[:count]
    return ", ".join(f"{op['op']} {op['ms'] / whole:.0%} ({op['calls']})" for op in shown)


def latency_rows(report: Report) -> list[list[str]]:
    """[query, model, form, p50, p90, p95, p99, min, IQR, n, first, cold caches], times in ms."""
    rows = []
    for kind in report["models"][0]["queries"]:
        for model in report["models"]:
            for form, found in model["queries"][kind].items():
                times = (found[key] for key in ("p50", "p90", "p95", "p99", "min", "iqr"))
                rows.append(
                    [kind, model["name"], form, *map(milliseconds, times), f"{found['n']:,}"]
                    + [milliseconds(found[key]) for key in ("cold", "cold_cache")]
                )
    return rows


def beside_rows(report: Report) -> list[tuple[str, list[str]]]:
    """(what, a cell for each model)."""
    models, metric = report["models"], METRICS[report["models"][0]["metric"]]
    rows = [
        (f"test {metric} (%)", [f"{model['accuracy']['test']:.2f}" for model in models]),
        ("parameters", [f"{model['parameters']:,}" for model in models]),
    ]
    for what in ("weights", "graph", "features", "activations"):
        rows.append((what, [format_bytes(model["memory_bytes"][what]) for model in models]))
    rows.append(("moved by a full-graph pass", [format_bytes(m["moved_bytes"]) for m in models]))
    rows.append(("eager, of a copy's rate", [bandwidth(model) for model in models]))
    rows.append(("time in ops of an eager pass", [_in_ops(model) for model in models]))
    for place, loop in enumerate(_loops(report)):
        cells = [_queries(model["throughput"], place) for model in models]
        plural = "" if loop["clients"] == 1 else "s"
        rows.append((f"nodes a second, {loop['clients']} client{plural}", cells))
    rows.append(("hops of a node query", [str(m["server"].get("hops", NONE)) for m in models]))
    return rows


def bandwidth(model: Mapping[str, Any]) -> str:
    """What an eager pass moves a second, beside a copy that touches about as much."""
    reached, copied = model["gb_s"], model["copy_gb_s"]
    rates = f"{reached:.1f} of {copied:.1f} GB/s ({reached / copied:.0%})"
    return f"{rates.replace('%', NBSP + '%')}, copy of {format_bytes(model['copy_bytes'])}"


def files(report: Report) -> list[tuple[str, str]]:
    """(name, file) of the models that have one."""
    return [(model["name"], model["file"]) for model in report["models"] if model["file"]]


def _in_ops(model: Mapping[str, Any]) -> str:
    """What is left of the median is spent on calls: modules, checks, Python."""
    calls, spent = (sum(op[key] for op in model["ops"]) for key in ("calls", "ms"))
    whole = model["queries"][FULL]["eager"]["p50"]
    return f"{milliseconds(spent)} of {milliseconds(whole)} ms, {calls} calls"


def _loops(report: Report) -> list[Mapping[str, Any]]:
    return max((model["throughput"] for model in report["models"]), key=len)


def _queries(loops: list[Mapping[str, Any]], place: int) -> str:
    return f"{loops[place]['queries_per_s']:,.0f}" if place < len(loops) else NONE


def _left_out(report: Report) -> list[tuple[str, str, str, str]]:
    """(query, model, form, why quantiles are missing)."""
    return [
        (kind, model["name"], form, "; ".join(f"{q} {why}" for q, why in found["left_out"].items()))
        for model in report["models"]
        for kind, forms in model["queries"].items()
        for form, found in forms.items()
        if found["left_out"]
    ]


def _interrupted(report: Report) -> tuple[int, int]:
    """(calls during which the system took the processor away, all calls)."""
    rows = [
        row
        for model in report["models"]
        for forms in model["queries"].values()
        for row in forms.values()
    ]
    return sum(row["interrupted"] for row in rows), sum(row["n"] for row in rows)


def _headline(report: Report) -> dict[str, Any]:
    """The first student beside the teacher, if there is one."""
    models = report["models"]
    student = next((model for model in models if model["role"] == "student"), models[0])
    teacher = next((model for model in models if model["role"] == "teacher"), None)
    facts: dict[str, Any] = {"student": student, "teacher": teacher, "full": fastest(student)}
    facts["one"] = _p50(student, ONE)
    if teacher is not None and teacher is not student:
        facts["full_ratio"] = fastest(teacher) / fastest(student)
        both = _p50(teacher, ONE), facts["one"]
        facts["one_ratio"] = both[0] / both[1] if both[0] and both[1] else None
    else:
        facts |= {"teacher": None, "full_ratio": None, "one_ratio": None}
    return facts


def _p50(model: Mapping[str, Any], kind: str) -> float | None:
    forms = model["queries"][kind].values()
    return min((row["p50"] for row in forms), default=None)


def _facts(report: Report) -> dict[str, list[tuple[str, str]]]:
    """Pairs of the page's last section, by caption."""
    data, facts = report["dataset"], report["environment"]
    degree = data["degree"]
    shown = [(name, data[name]) for name in ("num_nodes", "num_edges", "num_features")]
    graph = [("name", data["name"]), *((name[4:], f"{value:,}") for name, value in shown)]
    graph += [
        ("kind of features", "sparse" if data["sparse_features"] else "dense"),
        ("in-degree", f"mean {degree['mean']:.1f}, median {degree['median']:g}, "),
        ("indices", data["index_dtype"]),
        ("synthetic", "yes" if data["synthetic"] else "no"),
    ]
    graph[5] = ("in-degree", graph[5][1] + f"largest {degree['max']:,}")
    prepare = [(what, f"{time:.2f} ms") for what, time in report["graph_prepare_ms"].items()]
    for model in report["models"]:
        for what, time in model["prepare_ms"].items():
            prepare.append((f"{model['name']}: {what}", f"{time:.2f} ms"))
        for kind, forms in model["queries"].items():
            for form, found in forms.items():
                if found["compile"] is not None:
                    what = f"{model['name']}: {form}, {kind}"
                    prepare.append((what, f"{found['compile']:.0f} ms"))
    machine = [(name, str(value)) for name, value in facts.items()]
    machine += [("device", report["device"]), ("seed of nodes", str(report["seed"]))]
    machine += [("peak of the process", format_bytes(report["peak_bytes"]))]
    return {"Graph": graph, "Prepared once": prepare, "Machine": machine}


def milliseconds(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"
