"""What a run of the shell leaves behind: its metrics, plots and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abkd_fast._storage import write_atomically
from abkd_fast.config import DistillConfig, TeacherConfig
from abkd_fast.data import GraphData
from abkd_fast.metrics import SPLITS, environment, quantiles, summarise
from abkd_fast.report import write_report
from abkd_fast.result import DistillResult


def best_on_validation(results: Sequence[DistillResult]) -> int:
    """Position of the run that is best on validation, the first of equals."""
    return max(range(len(results)), key=lambda i: results[i].metrics["student"]["val"])


def run_metrics(
    data: GraphData,
    results: Sequence[DistillResult],
    config: TeacherConfig | DistillConfig,
    model: str,
    command: str,
) -> dict[str, Any]:
    """The content of metrics.json; without the objective's and the teacher's name."""
    runs = [result.metrics for result in results]
    teacher = None
    if runs[0]["teacher"] is not None:
        teacher = _side([run["teacher"] for run in runs[:1]], "")
    return {
        "format": 1,
        "dataset": {
            "name": data.name,
            "num_nodes": data.num_nodes,
            "num_edges": (data.relations or data.graph).num_edges,
            "num_features": data.num_features,
            "num_classes": data.num_classes,
            "synthetic": data.synthetic,
            "task": data.task,
        },
        "metric": data.kind.metric,
        "teacher": teacher,
        "student": _side([run["student"] for run in runs], model),
        "objective": "none",
        "compression_ratio": runs[0]["compression_ratio"],
        "step_ms": quantiles([r["step_ms"] for result in results for r in result.history]),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "seeds": list(range(len(runs))),
        "best_epoch": [run["best_epoch"] for run in runs],
        "epochs": [run["epochs"] for run in runs],
        "environment": environment(),
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _side(runs: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    main = {split: summarise([run[split] for run in runs]) for split in SPLITS}
    names = runs[0]["scores"]["test"]
    scores = {name: summarise([run["scores"]["test"][name] for run in runs]) for name in names}
    return {"model": model, "parameters": runs[0]["parameters"], **main, "test_scores": scores}


def write_run(
    out: Path, metrics: dict[str, Any], results: Sequence[DistillResult], best: int
) -> dict[str, Any]:
    """Write metrics.json, plots and the report; returns ``metrics``."""
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomically(out / "metrics.json", lambda path: path.write_text(text))
    write_report(
        out,
        metrics,
        [result.history for result in results],
        results[best].attention,
        results[best].attention_history,
        results[best].attention_epochs,
        results[best].dissimilarity,
    )
    return metrics
