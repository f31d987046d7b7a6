"""Tables of a study in Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from abkd_fast._storage import write_atomically
from abkd_fast.study.layer_maps import HEAD, NOTE, map_rows
from abkd_fast.study.results import Summary, TaskResult, traces_of
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.spec import Study

MIB = 2**20
_HEAD = (
    *("method", "test", "95 % interval", "validation", "n", "parameters", "fewer"),
    *("training, s (processor)", "inference, ms", "peak, MiB"),
)
_PAIRS = ("method", "against", "difference", "95 % interval", "t-test, p", "signed-rank, p", "n")


def write_tables(schedule: Schedule, found: Sequence[TaskResult]) -> None:
    """tables.md and tables.tex in the study's folder."""
    folder = schedule.study.folder
    page, tex = markdown(schedule, found), latex(found)
    write_atomically(folder / "tables.md", lambda path: path.write_text(page))
    write_atomically(folder / "tables.tex", lambda path: path.write_text(tex))


def markdown(schedule: Schedule, found: Sequence[TaskResult]) -> str:
    """A page: for every task its table, tests, earlier recipes and what is still missing."""
    study = schedule.study
    lines = [
        f"# {study.folder.name}",
        "",
        f"Written by `abkd-fast study {study.file.name}`. Figures in percent: mean ± sample",
        "standard deviation over n seeds; the interval is the 95 % BCa bootstrap of the mean.",
        _chosen(study),
        f"Costs are medians over the runs, {study.workers} at a time with {study.threads} thread(s)"
        " each.",
    ]
    for result in found:
        lines += _section(result, map_rows(traces_of(schedule, result)))
    return "\n".join(lines) + "\n"


def _chosen(study: Study) -> str:
    if study.trials:
        budget = f"{study.trials} trials x {study.trial_seeds} seeds for every method"
        return f"Recipes were chosen on validation alone ({budget}) and are in `recipes.json`."
    if study.base is None:
        return "Nothing was searched: settings are the study file's."
    file, method = study.base
    return f"Nothing was searched: settings are {method}'s of `{file}` and the study file's."


def _section(result: TaskResult, maps: list[list[str]]) -> list[str]:
    current, style = result.current(), "pipe"
    earlier = [summary for summary in result.summaries if not summary.current]
    lines = ["", f"## {result.task.name}", "", _teacher_line(result), ""]
    if result.pending:
        lines += [f"**{result.pending} runs are still to come.**", ""]
    if current:
        lines += [_table(_HEAD, [_row(summary) for summary in current], style)]
    if result.comparisons:
        lines += ["", "Differences at the same seeds; p after Holm's correction for the number of"]
        lines += ["comparisons against the same method.", ""]
        lines.append(_table(_PAIRS, _pair_rows(result), style))
    if maps:
        lines += ["", *NOTE, "", _table(HEAD, maps, style)]
    if earlier:
        lines += ["", "Earlier recipes, each with its own test figure:", ""]
        lines.append(_table(_HEAD, [_row(summary) for summary in earlier], style))
    if result.notes:
        lines += ["", *(f"- {note}" for note in result.notes)]
    searched = [summary for summary in result.summaries if summary.trials]
    if searched:
        lines += ["", "Mean validation figure of every trial:", ""]
        count = max(len(summary.trials) for summary in searched)
        head = ("method", *(str(number) for number in range(count)))
        rows = [[_name(s), *(_number(value, 2) for value in s.trials)] for s in searched]
        lines.append(_table(head, rows, style))
    lines += ["", "Settings:", ""]
    lines += [f"- {_name(s)}: `{json.dumps(s.settings, sort_keys=True)}`" for s in result.summaries]
    return lines


def latex(found: Sequence[TaskResult]) -> str:
    """The same tables with booktabs rules, one after the other."""
    parts = []
    for result in found:
        current = result.current()
        parts += [f"% {result.task.name}", _table(_HEAD, [_row(s) for s in current], "latex")]
        if result.comparisons:
            parts.append(_table(_PAIRS, _pair_rows(result), "latex"))
    return "\n".join(parts) + "\n"


def _teacher_line(result: TaskResult) -> str:
    teacher = result.teacher
    used = teacher["used"]
    line = (
        f"Teacher {result.task.teacher}: {teacher['parameters']:,} parameters, test "
        f"{used['test']:.2f}, validation {used['val']:.2f}"
    )
    values = teacher.get("test", [])
    if len(values) > 1:
        from abkd_fast.metrics import summarise

        stat = summarise(values)
        line += f" (the best of {stat['n']} seeds on validation; test of all {_mean(stat)})"
    return line + "."


def _row(summary: Summary) -> list[str]:
    row = summary.rows[0]
    ratio = row["compression"]
    return [
        _name(summary),
        _mean(summary.test),
        f"{summary.low:.2f} to {summary.high:.2f}",
        _mean(summary.val),
        str(summary.test["n"]),
        f"{row['parameters']:,}",
        "–" if ratio is None else f"{ratio:.1f}x",
        f"{summary.middle('train_seconds'):.1f} ({summary.middle('train_processor'):.1f})",
        f"{summary.middle('latency_ms'):.2f}",
        f"{summary.middle('peak_bytes') / MIB:,.0f}",
    ]


def _pair_rows(result: TaskResult) -> list[list[str]]:
    return [
        [
            pair.method,
            pair.against,
            f"{pair.difference:+.2f}",
            f"{pair.low:+.2f} to {pair.high:+.2f}",
            _p(pair.t_holm),
            _p(pair.wilcoxon_holm),
            str(pair.n),
        ]
        for pair in result.comparisons
    ]


def _name(summary: Summary) -> str:
    if summary.recipe == 1:
        return summary.method
    return f"{summary.method} (recipe {summary.recipe})"


def _mean(stat: dict[str, Any]) -> str:
    spread = "" if stat["std"] is None else f" ± {stat['std']:.2f}"
    return f"{stat['mean']:.2f}{spread}"


def _number(value: float | None, digits: int) -> str:
    return "failed" if value is None else f"{value:.{digits}f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    from tabulate import tabulate

    align = ["left", *["right"] * (len(head) - 1)]
    kind = "latex_booktabs" if style == "latex" else "pipe"
    text: str = tabulate(rows, head, tablefmt=kind, colalign=align, disable_numparse=True)
    return text.replace("±", "$\\pm$").replace("–", "--") if style == "latex" else text
