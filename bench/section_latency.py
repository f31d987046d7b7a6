"""The table of docs/latency.md, and README's rows on latency."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sections import figure, machine, table

QUANTILES = ("p50", "p90", "p99")
TEACHERS = ("gcnii-64x64", "gcn-3x750")
NONE = "–"


def sides_of(row: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The sides that are ours, PyG's in eager mode, or PyG's under torch.compile."""
    return {name: side for name, side in row["sides"].items() if _kind(name) == kind}


def _kind(name: str) -> str:
    if name.startswith("abkd_fast"):
        return "ours"
    return "compile" if "compile" in name else "eager"


def fastest(row: dict[str, Any], kind: str) -> tuple[str, dict[str, Any]] | None:
    """(name, times) of the kind's side with the least median."""
    sides = sides_of(row, kind)
    return min(sides.items(), key=lambda item: item[1]["p50"]) if sides else None


def ratio(row: dict[str, Any], kind: str) -> float | None:
    """How many times longer the fastest side of a kind takes than ours."""
    ours, theirs = fastest(row, "ours"), fastest(row, kind)
    return None if ours is None or theirs is None else theirs[1]["p50"] / ours[1]["p50"]


def latency_table(report: dict[str, Any]) -> list[str]:
    cells = []
    for row in report["rows"]:
        for name, side in row["sides"].items():
            what = [row["dataset"], row["model"], row["query"]]
            cells.append([*what, name, *times(side)])
    head = ["graph", "model", "query", "side", *QUANTILES, "min", "calm p50", "n"]
    return table(head, cells)


def times(side: dict[str, Any]) -> list[str]:
    """p50, p90, p99, minimum, p50 of the undisturbed calls, n of a side."""
    found = [_cell(side[key]) for key in (*QUANTILES, "min", "undisturbed_p50")]
    return [*found, f"{side['n']} ({side['interrupted']})"]


def _cell(value: float | None) -> str:
    return NONE if value is None else figure(value)


def ratio_table(report: dict[str, Any]) -> list[str]:
    cells = []
    for row in report["rows"]:
        ours = fastest(row, "ours")
        assert ours is not None
        eager = fastest(row, "eager")
        assert eager is not None
        compiled = ratio(row, "compile")
        least = f"{_least(row, 'eager') / _least(row, 'ours'):.1f}x"
        if row["query"] == "one node":
            least = NONE  # of different nodes
        cells.append(
            [row["dataset"], row["model"], row["query"], figure(ours[1]["p50"])]
            + [f"{eager[0].removeprefix('pyg ')}, {figure(eager[1]['p50'])}"]
            + [f"{ratio(row, 'eager'):.1f}x", at_p99(ours[1], eager[1]), least]
            + [NONE if compiled is None else f"{compiled:.1f}x"]
        )
    head = ["graph", "model", "query", "ours, p50 ms", "PyG eager, fastest: p50 ms"]
    ratios = ["ratio at p50", "at p99", "at the fastest calls", "PyG compiled, at p50"]
    return table([*head, *ratios], cells)


def at_p99(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Of all calls, where both sides have enough."""
    known = ours["p99"] is not None and theirs["p99"] is not None
    return f"{theirs['p99'] / ours['p99']:.1f}x" if known else NONE


def _least(row: dict[str, Any], kind: str) -> float:
    return min(side["min"] for side in sides_of(row, kind).values())


def ratio_lines(report: dict[str, Any]) -> list[str]:
    """What was run where, and the ratios."""
    worst = max(error for row in report["rows"] for error in row["difference"].values())
    return [
        f"`python bench/bench_latency.py`. {machine(report)} Load of the machine when it ended:",
        f"{report['environment']['load']:.0f}. Largest relative difference of scores: {worst:.0e}.",
        "",
        *ratio_table(report),
        "",
    ]


def latency_section(report: dict[str, Any]) -> list[str]:
    return [
        *ratio_lines(report),
        "Every side (ms; a dash: too few samples for the quantile; in brackets how many calls the",
        "system interrupted):",
        "",
        *latency_table(report),
        "",
    ]


def readme_rows(report: dict[str, Any]) -> list[list[str]]:
    """Students against PyG in eager mode; a full graph by the model's own forward and traced."""
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    forms = {
        "full graph, traced (`flat_forward`)": ("full graph", "abkd_fast flat"),
        "full graph, the model's own forward": ("full graph", "abkd_fast"),
        "one node (`NodeServer`)": ("one node", None),
    }
    rows = []
    for what, (query, ours) in forms.items():
        students = [row for row in report["rows"]
                    if row["query"] == query and row["model"] not in TEACHERS]  # fmt: skip
        names = " / ".join(row["dataset"] for row in students)
        found = [ratio_of(row, ours) for row in students]
        values = " / ".join(NONE if value is None else f"{value:.1f}" for value in found)
        label = f"latency of students, p50, {threads}, {what}: {names}"
        rows.append([label, "PyG eager, its fastest form", values])
    return rows


def ratio_of(row: dict[str, Any], ours: str | None) -> float | None:
    """How many times longer PyG's fastest eager form takes than our side, or our fastest."""
    theirs = fastest(row, "eager")
    mine = fastest(row, "ours") if ours is None else (ours, row["sides"].get(ours))
    if theirs is None or mine is None or mine[1] is None:
        return None
    return float(theirs[1]["p50"] / mine[1]["p50"])


def write_page(path: Path, mark: str, lines: list[str]) -> None:
    """Put ``lines`` between the marks <!-- MARK --> and <!-- end --> of a page."""
    text, inside = path.read_text(), "\n".join(lines)
    marked = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert marked.search(text), f"{path} must hold <!-- {mark} --> and <!-- end -->"
    path.write_text(marked.sub(lambda found: f"{found[1]}{inside}\n{found[2]}", text))
