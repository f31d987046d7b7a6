"""AIFB's part of bench/study.py: the published R-GCN teacher and students of a hundredth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEDS = 10
OBJECTIVES = {"none": "none", "KD": "kd", "KD + ABKD": "abkd+kd"}
Command = Callable[[list[str], int, Path], dict[str, Any]]


def run(command: Command, folder: Path) -> dict[str, Any]:
    """Teacher and students by objective, as the preset has them."""
    teacher = command(["train-teacher", "--preset", "paper-aifb"], SEEDS, folder / "teacher")
    base = ["distill", "--preset", "paper-aifb", "--teacher", str(folder / "teacher")]
    students = {
        label: command([*base, "--objective", name], SEEDS, folder / name)
        for label, name in OBJECTIVES.items()
    }
    return {"teacher": teacher, "students": students}


def section(report: dict[str, Any], accuracy: Callable[[dict[str, Any], str], str]) -> list[str]:
    """The lines of docs/accuracy.md."""
    sides = {"teacher, labels alone": report["teacher"], **report["students"]}
    lines = [
        "",
        "## AIFB: R-GCN without features",
        "",
        "Published: 95.8 % (arXiv 1703.06103). 28 of the 140 training persons are held out (drawn",
        "once, the same for every seed) and choose the epoch, of",
        "50 for the teacher and 100 for the students, and the teacher seed that the students",
        "learn from. One of the 36 test persons is 2.8 %. The students' settings were set by hand.",
        "",
        "| objective | model | parameters | fewer | test | validation | n |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    most = report["teacher"]["student"]["parameters"]
    for label, metrics in sides.items():
        side = metrics["student"]
        lines.append(
            f"| {label} | {side['model']} | {side['parameters']:,} "
            f"| {most / side['parameters']:.1f}x | {accuracy(side, 'test')} "
            f"| {accuracy(side, 'val')} | {side['test']['n']} |"
        )
    return [*lines, "", *(f"    {metrics['command']}" for metrics in sides.values())]
