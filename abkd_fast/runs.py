"""What the shell commands do: seeds, folders, metrics.json. Callable from Python too."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abkd_fast import data as datasets
from abkd_fast._preflight import about_model, check_layers, plan_memory
from abkd_fast._storage import write_atomically
from abkd_fast.callbacks import ProgressBar
from abkd_fast.config import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    SettingError,
    TeacherConfig,
)
from abkd_fast.data import GraphData
from abkd_fast.distill import KD, Objective
from abkd_fast.metrics import SPLITS, environment, quantiles, summarise
from abkd_fast.model_file import load_model, save_model
from abkd_fast.report import write_report
from abkd_fast.result import DistillResult
from abkd_fast.teacher import TeacherCache
from abkd_fast.trainer import Distiller


def load_data(config: DataConfig) -> GraphData:
    """The registered data set, or the user's own files, on the device."""
    if config.data is not None:
        return datasets.load_path(config.data, **asdict(config.read)).to(config.device)
    return datasets.load(config.dataset, root=config.root).to(config.device)


def build_objective(config: DistillConfig, data: GraphData) -> Objective | None:
    """The objective named by ``config.objective``; the order of its terms does not matter."""
    terms: list[Objective] = []
    if "kd" in config.terms:
        terms.append(KD(**asdict(config.kd)))
    if "abkd" in config.terms:
        terms.append(config.abkd.build(data.train_mask))
    return sum(terms[1:], start=terms[0]) if terms else None


def train_teacher(config: TeacherConfig, command: str = "") -> dict[str, Any]:
    """Train a model on labels alone; writes ``teacher.safetensors`` and the report to ``out``."""
    data = load_data(config)
    print(*plan_memory(config.model, data), sep="\n", flush=True)
    results = [
        _fit_seed(config, config.model, config.options, data, seed) for seed in range(config.seeds)
    ]
    best = _best_on_validation(results)
    about = about_model(config.model, config.options, data)
    save_model(config.out / "teacher.safetensors", results[best].student, about)
    metrics = _metrics(data, results, config, config.model, command)
    return _write(config.out, metrics, results, best)


def distill(config: DistillConfig, command: str = "") -> dict[str, Any]:
    """Distil ``seeds`` students; writes them, metrics.json, plots and the report to ``out``."""
    data = load_data(config)
    _check(config, data)
    cache, teacher_name = _teacher(config, data)
    results = []
    for seed in range(config.seeds):
        result = _fit_seed(
            config,
            config.student,
            config.student_options,
            data,
            seed,
            cache,
            build_objective(config, data),
        )
        about = about_model(config.student, config.student_options, data)
        save_model(config.out / f"seed{seed}" / "student.safetensors", result.student, about)
        results.append(result)
    metrics = _metrics(data, results, config, config.student, command)
    metrics["objective"] = config.objective
    if metrics["teacher"] is not None:
        metrics["teacher"]["model"] = teacher_name
    return _write(config.out, metrics, results, _best_on_validation(results))


def _fit_seed(
    config: TeacherConfig | DistillConfig,
    model: str,
    options: ModelConfig,
    data: GraphData,
    seed: int,
    cache: TeacherCache | None = None,
    objective: Objective | None = None,
) -> DistillResult:
    torch.manual_seed(seed)
    about = about_model(model, options, data)
    label = f"{model} seed {seed}"
    return Distiller(
        cache,
        about.build().to(data.y.device),
        data,
        objective,
        seed=seed,
        config=config.train,
        out=config.out / f"seed{seed}",
        callbacks=[ProgressBar(label)],
        capture_step=config.capture_step,
    ).fit()


def _teacher(config: DistillConfig, data: GraphData) -> tuple[TeacherCache, str]:
    """The teacher's cache and its name: from a file, a function, or trained now."""
    objective = build_objective(config, data)
    needs_states = objective is not None and objective.needs_states
    layers = config.teacher_layers if needs_states else ()
    if config.teacher_file is not None:
        return _from_file(config, config.teacher_file, data, layers)
    if ":" in config.teacher:
        model = _call(config.teacher, data)
        return _cache(config, model.to(config.device), data, layers), config.teacher
    wanted = TeacherConfig(
        dataset=config.dataset,
        data=config.data,
        root=config.root,
        read=config.read,
        device=config.device,
        capture_step=config.capture_step,
        model=config.teacher,
        options=config.teacher_options,
        train=config.teacher_train,
        seeds=config.teacher_seeds,
    )
    # Other settings or another split are another teacher.
    settings = [wanted.model, wanted.options, wanted.train, wanted.seeds, data.fingerprint()]
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    out = config.teachers / f"{data.name}-{config.teacher}-{key}"
    if not (out / "teacher.safetensors").exists():
        train_teacher(replace(wanted, out=out), f"abkd-fast distill (teacher of {config.out})")
    return _from_file(config, out / "teacher.safetensors", data, layers)


def _cache(
    config: DistillConfig,
    teacher: nn.Module,
    data: GraphData,
    layers: str | Sequence[str] | None,
) -> TeacherCache:
    """The teacher's states, kept as the settings say; shows the memory that the run will need."""
    print(*plan_memory(config.student, data, config, teacher, layers), sep="\n", flush=True)
    dtype, storage = config.cache.torch_dtype, config.cache.storage
    if storage == "mmap":
        path = config.out / "teacher-cache.safetensors"
        return TeacherCache.cached(path, teacher, data, storage, layers=layers, dtype=dtype)
    return TeacherCache.build(teacher, data, layers, dtype, storage=storage)


def _check(config: DistillConfig, data: GraphData) -> None:
    """Find mistakes in the models, their layers and the folder before a teacher is trained."""
    objective = build_objective(config, data)
    if objective is not None and objective.needs_states:
        check_layers("student", config.student, None, data)
        if config.trains_teacher:
            teacher = check_layers("teacher", config.teacher, config.teacher_layers, data)
            plan_memory(config.student, data, config, teacher, config.teacher_layers)
    config.out.mkdir(parents=True, exist_ok=True)


def _from_file(
    config: DistillConfig, path: Path, data: GraphData, layers: str | Sequence[str] | None
) -> tuple[TeacherCache, str]:
    model, about = load_model(path)
    if about.fingerprint != data.fingerprint():
        raise ValueError(
            f"{path} must be a teacher of {data.name!r}, got one of other data or another split "
            f"({about.dataset!r}, {about.in_channels} features); choose another --teacher"
        )
    return _cache(config, model.to(data.y.device), data, layers), about.spec


def _call(name: str, data: GraphData) -> nn.Module:
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SettingError(f"teacher must be importable as module:function, got {error}") from error
    finally:
        sys.path.remove("")
    model = make(data)
    if not isinstance(model, nn.Module):
        raise SettingError(f"{name} must return an nn.Module, got {type(model).__name__}")
    return model


def _best_on_validation(results: Sequence[DistillResult]) -> int:
    return max(range(len(results)), key=lambda i: results[i].metrics["student"]["val"])


def _metrics(
    data: GraphData,
    results: Sequence[DistillResult],
    config: TeacherConfig | DistillConfig,
    model: str,
    command: str,
) -> dict[str, Any]:
    runs = [result.metrics for result in results]
    teacher = None
    if runs[0]["teacher"] is not None:
        teacher = _side([run["teacher"] for run in runs[:1]], "")
    return {
        "format": 1,
        "dataset": {
            "name": data.name,
            "num_nodes": data.num_nodes,
            "num_edges": data.graph.num_edges,
            "num_features": data.num_features,
            "num_classes": data.num_classes,
            "synthetic": data.synthetic,
        },
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
    accuracy = {split: summarise([run[split] for run in runs]) for split in SPLITS}
    return {"model": model, "parameters": runs[0]["parameters"], **accuracy}


def _write(
    out: Path, metrics: dict[str, Any], results: Sequence[DistillResult], best: int
) -> dict[str, Any]:
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
