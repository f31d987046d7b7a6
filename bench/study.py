"""Accuracy of teachers and students: tune every objective with one budget, then run ten seeds.

    ABKD_DATA=DIR python bench/study.py [teachers] [undistilled] [cora] [pubmed] [aifb]

Every cell is one ``abkd-fast`` command in its own process, so the tables can be reproduced line by
line; a stopped study goes on where it was. Selection looks at validation accuracy only. Writes
bench/results/teachers.json and <dataset>-students.json, then docs/accuracy.md from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import study_aifb
import study_undistilled

FINAL_SEEDS, TEACHER_SEEDS = 10, 5
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
RUNS = Path("runs/study")
TEACHERS = {"cora": "gcnii-64x64", "pubmed": "gcnii-64x64", "citeseer": "gcnii-32x256"}
NAMES = {"cora": "Cora", "pubmed": "PubMed", "citeseer": "Citeseer"}
OBJECTIVES = {
    "none": ("none", None),
    "KD": ("kd", None),
    "ABKD": ("abkd", "attention"),
    "KD + ABKD": ("abkd+kd", "attention"),
    "KD + ABKD, uniform map": ("abkd+kd", "uniform"),
    "KD + ABKD, last-to-last map": ("abkd+kd", "last"),
    "KD + ABKD, diagonal map": ("abkd+kd", "diagonal"),
}


class Trial(NamedTuple):
    """One training recipe and the objectives' settings that go with it."""

    dropout: float
    lr: float
    conv_weight_decay: float
    weight_decay: float
    temperature: float = 1.0
    beta: float = 1.0
    free: bool = False  # ABKD as in the paper: every map trained, nothing standardised


# The same list for every objective. Xavier initialisation and the one-cycle schedule throughout.
TRIALS = [
    Trial(0.0, 0.05, 5e-4, 5e-4),
    Trial(0.05, 0.05, 5e-4, 5e-4),
    Trial(0.1, 0.1, 5e-4, 5e-4),
    Trial(0.05, 0.1, 1e-4, 1e-4, beta=0.3),
    Trial(0.1, 0.05, 1e-3, 1e-3, temperature=2.0),
    Trial(0.1, 0.05, 1e-2, 5e-4, beta=0.1, free=True),
    Trial(0.1, 0.02, 1e-2, 5e-4, beta=0.3),
    Trial(0.2, 0.05, 1e-2, 5e-4, beta=0.1),
]


@dataclass(frozen=True)
class Study:
    """What one data set can afford."""

    trials: tuple[int, ...]  # of TRIALS
    trial_seeds: int
    epochs: int


STUDIES = {
    "cora": Study(tuple(range(8)), trial_seeds=2, epochs=1500),
    "pubmed": Study((1, 3, 5, 7), trial_seeds=1, epochs=600),
}


def flags(dataset: str, label: str, trial: int) -> list[str]:
    """Command-line settings of one trial."""
    objective, map_name = OBJECTIVES[label]
    recipe = TRIALS[trial]
    found = ["--objective", objective, "--student-options.dropout", recipe.dropout]
    found += ["--train.lr", recipe.lr, "--train.conv-weight-decay", recipe.conv_weight_decay]
    found += ["--train.weight-decay", recipe.weight_decay]
    found += ["--train.epochs", STUDIES[dataset].epochs]
    if "kd" in objective.split("+"):
        found += ["--kd.alpha", 0.9, "--kd.temperature", recipe.temperature]
    if map_name is not None:
        found += ["--abkd.map", map_name, "--abkd.beta", recipe.beta]
        if recipe.free:
            found += ["--abkd.normalize", "none", "--abkd.freeze-teacher-map", "False"]
    return [str(flag) for flag in found]


def command(settings: list[str], seeds: int, out: Path) -> dict[str, Any]:
    """Run one command on one thread, or read what an earlier run of it left; its metrics."""
    metrics_file = out / "metrics.json"
    if metrics_file.exists():
        metrics = json.loads(metrics_file.read_text())
        done = shlex.split(metrics["command"])
        if len(metrics["seeds"]) >= seeds and done[1 : 1 + len(settings)] == settings:
            return metrics
    arguments = [*settings, "--seeds", str(seeds), "--out", str(out)]
    full = [str(Path(sys.executable).parent / "abkd-fast"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(full, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{shlex.join(full)}\n{done.stderr}")
    metrics = json.loads(metrics_file.read_text())
    val, test = metrics["student"]["val"]["mean"], metrics["student"]["test"]["mean"]
    print(f"{out}, {seeds} seeds: validation {val:.2f} %, test {test:.2f} %", flush=True)
    return metrics


def train_teacher(dataset: str) -> dict[str, Any]:
    """The published settings, five seeds; the best on validation teaches the students."""
    settings = ["train-teacher", "--preset", f"paper-{dataset}"]
    return command(settings, TEACHER_SEEDS, RUNS / dataset / "teacher")


def distil(dataset: str, label: str, trial: int, seeds: int) -> dict[str, Any]:
    """One objective under one trial's settings."""
    slug = "-".join(label.lower().replace("+", "").replace(",", "").split())
    base = ["distill", "--preset", f"paper-{dataset}", "--teacher", str(RUNS / dataset / "teacher")]
    settings = [*base, *flags(dataset, label, trial)]
    return command(settings, seeds, RUNS / dataset / slug / f"trial{trial}")


def tune(dataset: str, label: str, workers: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """All trials of one objective; validation of the first seeds only."""
    study = STUDIES[dataset]
    jobs = {
        trial: workers.submit(distil, dataset, label, trial, study.trial_seeds)
        for trial in study.trials
    }
    found = []
    for trial, job in jobs.items():
        values = job.result()["student"]["val"]["values"][: study.trial_seeds]
        mean = sum(values) / len(values)
        settings = shlex.join(flags(dataset, label, trial))
        found.append({"trial": trial, "flags": settings, "val_mean": mean, "val_values": values})
    return found


def run_students(dataset: str, workers: ThreadPoolExecutor) -> None:
    """Tune, run the winners, write the JSON."""
    train_teacher(dataset)
    tuned = {label: workers.submit(_tune_alone, dataset, label) for label in OBJECTIVES}
    finals, trials = {}, {}
    for label, job in tuned.items():
        trials[label] = job.result()
        best = max(trials[label], key=lambda trial: trial["val_mean"])["trial"]
        finals[label] = (best, workers.submit(distil, dataset, label, best, FINAL_SEEDS))
    cells = [
        {"objective": label, "best": best, "trials": trials[label], "final": job.result()}
        for label, (best, job) in finals.items()
    ]
    study = STUDIES[dataset]
    report = {"dataset": dataset, "trial_seeds": study.trial_seeds, "cells": cells}
    (RESULTS / f"{dataset}-students.json").write_text(json.dumps(report, indent=1) + "\n")


def _tune_alone(dataset: str, label: str) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(max_workers=1) as worker:
        return tune(dataset, label, worker)


def run_teachers(workers: ThreadPoolExecutor) -> None:
    """All teachers; the JSON is written anew whenever one is done."""
    jobs = {workers.submit(train_teacher, dataset): dataset for dataset in TEACHERS}
    done: dict[str, Any] = {}
    for job in as_completed(jobs):
        done[jobs[job]] = job.result()
        found = {dataset: done[dataset] for dataset in TEACHERS if dataset in done}
        (RESULTS / "teachers.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Run what is asked for, then write the page from all results there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", help="teachers, undistilled, cora, pubmed, aifb; none: the page"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if unknown := set(options.parts) - {"teachers", "undistilled", "aifb", *STUDIES}:
        known = "teachers, undistilled, cora, pubmed or aifb"
        parser.error(f"parts must be {known}, got {', '.join(unknown)}")
    with ThreadPoolExecutor(options.workers) as workers:
        if "teachers" in options.parts:
            run_teachers(workers)
        for dataset in STUDIES:
            if dataset in options.parts:
                run_students(dataset, workers)
    if "undistilled" in options.parts:
        found = study_undistilled.run(command, RUNS / "undistilled")
        (RESULTS / "undistilled.json").write_text(json.dumps(found, indent=1) + "\n")
    if "aifb" in options.parts:
        found = study_aifb.run(command, RUNS / "aifb")
        (RESULTS / "aifb.json").write_text(json.dumps(found, indent=1) + "\n")
    (ROOT / "docs/accuracy.md").write_text("\n".join(page()))


# -- the page ---------------------------------------------------------------------------------


def page() -> list[str]:
    """docs/accuracy.md."""
    lines = [
        "# Accuracy",
        "",
        "Written by `bench/study.py` from the JSON files under `bench/results`. Public splits,",
        "accuracy in percent, mean ± sample standard deviation over n seeds. The epoch of every",
        "run and every setting are chosen on validation; test accuracy took no part in a choice.",
        "",
        "The students here are of an earlier study, with other runs of the teachers and fewer",
        "objectives than the [present one](study/findings.md).",
    ]
    if (RESULTS / "teachers.json").exists():
        lines += _teachers(json.loads((RESULTS / "teachers.json").read_text()))
    if (RESULTS / "undistilled.json").exists():
        report = json.loads((RESULTS / "undistilled.json").read_text())
        lines += study_undistilled.section(report, _accuracy)
    for dataset in STUDIES:
        path = RESULTS / f"{dataset}-students.json"
        if path.exists():
            lines += _students(json.loads(path.read_text()))
    if (RESULTS / "aifb.json").exists():
        report = json.loads((RESULTS / "aifb.json").read_text())
        lines += study_aifb.section(report, _accuracy)
    return [*lines, ""]


def _accuracy(side: dict[str, Any], split: str) -> str:
    return f"{side[split]['mean']:.2f} ± {side[split]['std']:.2f}"


def _teachers(found: dict[str, Any]) -> list[str]:
    lines = ["", "## Teachers", "", "| data | model | parameters | test | validation | n |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for dataset, metrics in found.items():
        side = metrics["student"]
        lines.append(
            f"| {dataset} | {side['model']} | {side['parameters']:,} | {_accuracy(side, 'test')} "
            f"| {_accuracy(side, 'val')} | {side['test']['n']} |"
        )
    return [*lines, "", *(f"    {metrics['command']}" for metrics in found.values())]


def _students(report: dict[str, Any]) -> list[str]:
    cells = report["cells"]
    first = cells[0]["final"]
    taught = next(cell["final"]["teacher"] for cell in cells if cell["final"]["teacher"])
    lines = [
        "",
        f"## {NAMES[report['dataset']]}: {taught['model']} to {first['student']['model']}",
        "",
        f"{taught['parameters']:,} to {first['student']['parameters']:,} parameters. Teacher: the "
        "best of its seeds on validation,",
        f"{taught['test']['mean']:.1f} % on test. Each objective was tuned with the same budget, "
        f"{len(cells[0]['trials'])} trials (seeds of a trial: {report['trial_seeds']}); the trial",
        f"that was best on validation ran {first['student']['test']['n']} seeds.",
        "",
        "| objective | test | validation | n | trial |",
        "| --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        side = cell["final"]["student"]
        lines.append(
            f"| {cell['objective']} | {_accuracy(side, 'test')} | {_accuracy(side, 'val')} "
            f"| {side['test']['n']} | {cell['best']} |"
        )
    lines += ["", "Validation accuracy of every trial:", ""]
    trials = [str(trial["trial"]) for trial in cells[0]["trials"]]
    lines += ["| objective | " + " | ".join(trials) + " |", "| --- " * (len(trials) + 1) + "|"]
    for cell in cells:
        values = [f"{trial['val_mean']:.1f}" for trial in cell["trials"]]
        lines.append(f"| {cell['objective']} | " + " | ".join(values) + " |")
    lines += ["", "Settings of the trials (of KD + ABKD; the others leave out what is not theirs):"]
    lines.append("")
    whole = next(cell for cell in cells if cell["objective"] == "KD + ABKD")
    lines += [f"- {trial['trial']}: `{trial['flags']}`" for trial in whole["trials"]]
    lines += ["", "Command lines of the table:", ""]
    lines += [f"    {cell['final']['command']}" for cell in cells]
    environment = first["environment"]
    facts = ", ".join(f"{k} {environment[k]}" for k in ("abkd_fast", "torch", "python", "cpu"))
    return [*lines, "", f"Environment: {facts}, one thread a run."]


if __name__ == "__main__":
    main()
