"""Distil graph classifiers on MUTAG and PROTEINS (ten published folds) and ogbg-molbace.

python bench/graph_level.py [--root DIR] [--only NAME] prints the table of docs/data.md. For every
fold (or seed) a GCN teacher is trained on labels, and a student three times: on labels alone, with
KD, and with KD + ABKD. The epoch of every run is chosen on validation.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from abkd_fast import ABKD, KD, Distiller, Objective, TrainConfig
from abkd_fast.data import GraphData, load
from abkd_fast.metrics import count_parameters
from abkd_fast.nn import ModelSpec


@dataclass(frozen=True)
class Setting:
    """One data set; ``runs`` folds, or seeds where there is one split."""

    name: str
    teacher: str
    student: str
    pool: str
    runs: int
    train: TrainConfig
    teach: TrainConfig


QUICK = TrainConfig(epochs=150, patience=None, monitor="val_metric", lr=0.01)
SHORT = replace(QUICK, epochs=100)
CYCLE = replace(QUICK, epochs=300, lr=0.02, schedule="onecycle")
SETTINGS = (
    Setting("mutag", "gcn-4x32", "gcn-2x4", "sum", 10, QUICK, QUICK),
    Setting("proteins", "gcn-4x32", "gcn-2x4", "mean", 10, SHORT, SHORT),
    Setting("ogbg-molbace", "gcn-4x64", "gcn-2x8", "mean", 3, QUICK, CYCLE),
)


def objectives(data: GraphData) -> dict[str, Objective | None]:
    activation = "softmax" if data.task == "multiclass" else "sigmoid"
    abkd = ABKD(normalize="standardize", freeze_teacher_map=True)
    return {
        "labels": None,
        "KD": KD(activation=activation),
        "KD + ABKD": KD(activation=activation) + abkd,
    }


def build(spec: str, data: GraphData, pool: str) -> torch.nn.Module:
    model = ModelSpec.parse(spec)
    return model.build(data.num_features, data.num_classes, pool=pool, dropout=0.1)


def run(setting: Setting, root: str | None) -> None:
    scores: dict[str, list[float]] = {"teacher": []}
    sizes, start = {}, time.perf_counter()
    for index in range(setting.runs):
        folds = {} if setting.name.startswith("ogbg") else {"fold": index + 1}
        data = load(setting.name, root=root, **folds)
        torch.manual_seed(index)
        teacher = build(setting.teacher, data, setting.pool)
        config = setting.teach
        fitted = Distiller(None, teacher, data, seed=index, config=config, callbacks=()).fit()
        scores["teacher"].append(fitted.metrics["student"]["test"])
        for name, objective in objectives(data).items():
            torch.manual_seed(index)
            student = build(setting.student, data, setting.pool)
            given = None if objective is None else teacher
            distiller = Distiller(
                given, student, data, objective, seed=index, config=setting.train, callbacks=()
            )
            scores.setdefault(name, []).append(distiller.fit().metrics["student"]["test"])
        sizes = {"teacher": count_parameters(teacher), "student": count_parameters(student)}
    cells = [f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" for values in scores.values()]
    print(
        f"| {setting.name} | {data.kind.metric} | {setting.teacher}, {sizes['teacher']:,} | "
        f"{setting.student}, {sizes['student']:,} | {sizes['teacher'] / sizes['student']:.1f}x | "
        f"{setting.runs} | {' | '.join(cells)} |   ({time.perf_counter() - start:.0f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder of local data sets; default: $ABKD_DATA")
    parser.add_argument("--only", help="one data set")
    arguments = parser.parse_args()
    for setting in SETTINGS:
        if arguments.only in (None, setting.name):
            run(setting, arguments.root)


if __name__ == "__main__":
    main()
