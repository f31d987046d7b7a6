"""GCN, GAT and GCNII trained on labels alone, beside published figures.

    ABKD_DATA=DIR python bench/undistilled.py [--train]

With --train it trains GCN and GAT by abkd-fast train-teacher (ten seeds, one thread, resumable in
runs/undistilled) and writes bench/results/undistilled.json. The GCNII models are the teachers of
docs/study/public-split. Then docs/study/undistilled.md is written from both files.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results/undistilled.json"
TEACHERS = ROOT / "docs/study/public-split/teachers.jsonl"
SEEDS = 10
GCN = "--model gcn-2x16 --options.dropout 0.5 --train.weight-decay 5e-4 --train.lr 0.01"
GAT = (
    "--model gat-2x64 --options.heads 8 --options.act elu --options.dropout 0.6 "
    "--train.epochs 1000 --options.out-heads"
)
BY_ACCURACY = "--train.lr 0.005 --train.weight-decay 5e-4 --train.monitor val_acc"
SETTINGS = {  # arXiv 1609.02907, section 5.2; arXiv 1710.10903, section 3.3
    "cora GCN": GCN,
    "citeseer GCN": GCN,
    "pubmed GCN": GCN,
    "cora GAT": f"{GAT} 1 --train.lr 0.005 --train.weight-decay 5e-4",
    "citeseer GAT": f"{GAT} 1 {BY_ACCURACY}",
    "pubmed GAT": f"{GAT} 8 --train.lr 0.01 --train.weight-decay 1e-3",
}
PUBLISHED = {
    "cora GCN": "81.5",
    "citeseer GCN": "70.3",
    "pubmed GCN": "79.0",
    "cora GAT": "83.0",
    "citeseer GAT": "72.5, 72.6",
    "pubmed GAT": "79.0, 78.5",
    "cora GCNII": "85.5",
    "citeseer GCNII": "73.4",
    "pubmed GCNII": "80.3 (16 x 256)",
}

INTRODUCTION = """\
# Undistilled models

Written by `bench/undistilled.py`. Public splits, accuracy in percent, mean ± sample standard
deviation over n seeds; *published*: the mean in the model's paper, then that of later comparisons
where it differs. Settings of GCN and GAT are those of their papers (arXiv 1609.02907, 1710.10903),
but for weight decay on every layer of GCN. GAT on Citeseer chooses its epoch by validation
accuracy, not by its loss as the others (tried first, lower on validation and on test). The GCNII
models (arXiv 2007.02133) are the teachers of [public-split](public-split/tables.md), all of their
seeds; PubMed's published figure is of another size.

| data | model | parameters | test | published | difference | validation | n |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def train(key: str) -> dict[str, Any]:
    """Metrics of all seeds; what an earlier run finished is kept."""
    dataset, name = key.split()
    out = ROOT / f"runs/undistilled/{dataset}-{name.lower()}"
    settings = ["train-teacher", "--dataset", dataset, *shlex.split(SETTINGS[key])]
    program = str(Path(sys.executable).parent / "abkd-fast")
    command = [program, *settings, "--seeds", str(SEEDS), "--out", str(out.relative_to(ROOT))]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, metrics in found.items():
        side, (dataset, name) = metrics["student"], key.split()
        yield (
            dataset,
            f"{name}, {side['model']}",
            f"{side['parameters']:,}",
            spread(side["test"]["values"]),
            *published(key, side["test"]["values"]),
            spread(side["val"]["values"]),
            str(side["test"]["n"]),
        )
    for line in TEACHERS.read_text().splitlines():
        record = json.loads(line)
        yield (
            record["dataset"],
            f"GCNII, {record['model']}",
            f"{record['parameters']:,}",
            spread(record["test"]),
            *published(f"{record['dataset']} GCNII", record["test"]),
            spread(record["val"]),
            str(len(record["test"])),
        )


def published(key: str, test: list[float]) -> tuple[str, str]:
    """(figures, difference of the mean to each)."""
    figures = PUBLISHED[key]
    apart = [f"{statistics.fmean(test) - float(f.split()[0]):+.2f}" for f in figures.split(", ")]
    return figures, ", ".join(apart)


def spread(figures: list[float]) -> str:
    return f"{statistics.fmean(figures):.2f} ± {statistics.stdev(figures):.2f}"


def page(found: dict[str, Any]) -> str:
    """docs/study/undistilled.md."""
    lines = [INTRODUCTION]
    lines += ["| " + " | ".join(row) + " |" for row in rows(found)]
    return "\n".join([*lines, "", *(f"    {m['command']}" for m in found.values()), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="GCN and GAT, where not yet done")
    if parser.parse_args().train:
        found = {key: train(key) for key in SETTINGS}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    report = json.loads(RESULTS.read_text())
    (ROOT / "docs/study/undistilled.md").write_text(page(report))


if __name__ == "__main__":
    main()
