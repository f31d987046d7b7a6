"""What the shell commands do: seeds, folders, metrics.json. Callable from Python too."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abkd_fast import data as datasets
from abkd_fast._preflight import about_model, check_layers, plan_memory
from abkd_fast._run_metrics import best_on_validation, run_metrics, write_run
from abkd_fast._student import with_student
from abkd_fast.callbacks import Callback, ProgressBar
from abkd_fast.config import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    SettingError,
    TeacherConfig,
)
from abkd_fast.data import GraphData
from abkd_fast.distill import Objective
from abkd_fast.inductive import predict
from abkd_fast.model_file import load_model, save_model
from abkd_fast.objective_settings import RunFacts
from abkd_fast.result import DistillResult
from abkd_fast.teacher import TeacherCache
from abkd_fast.trainer import Distiller

if TYPE_CHECKING:
    from abkd_fast.distributed import World


def load_data(config: DataConfig) -> GraphData:
    """The registered data set, or the user's own files, on the device."""
    if config.data is not None:
        data = datasets.load_path(config.data, **asdict(config.read))
    else:
        data = datasets.load(config.dataset, root=config.root)
    data = data.to(config.device)
    return data.inductive() if config.inductive else data


def build_objective(
    config: DistillConfig, data: GraphData, teachers: Sequence[TeacherCache] = ()
) -> Objective | None:
    """The objective named by ``config.objective``; the order of its terms does not matter.

    ``teachers`` are those that it needs beside the run's own.
    """
    return config.build_objective(config.objective, RunFacts.of(data, teachers))


def train_teacher(config: TeacherConfig, command: str = "") -> dict[str, Any]:
    """Train a model on labels alone; writes ``teacher.safetensors`` and the report to ``out``."""
    data = load_data(config)
    print(*plan_memory(config.model, data, train=config.train), sep="\n", flush=True)
    results = [
        fit_seed(config, config.model, config.options, data, seed) for seed in range(config.seeds)
    ]
    best = best_on_validation(results)
    about = about_model(config.model, config.options, data)
    save_model(config.out / "teacher.safetensors", results[best].student, about)
    metrics = run_metrics(data, results, config, config.model, command)
    return write_run(config.out, metrics, results, best)


def distill(config: DistillConfig, command: str = "", world: World | None = None) -> dict[str, Any]:
    """Distil ``seeds`` students; writes them, metrics.json, plots and the report to ``out``.

    With a ``world``, together with its other processes; rank 0 prepares and writes.
    """
    with nullcontext() if world is None else world.first_then_others("prepared"):
        data = load_data(config)
        config = with_student(config, data, _call)
        _check(config, data)
        others = further_teachers(config, data)
        cache, logits, teacher_name = find_teacher(config, data)
    writes = world is None or world.is_first
    results = []
    for seed in range(config.seeds):
        result = fit_seed(
            config,
            config.student,
            config.student_options,
            data,
            seed,
            cache,
            build_objective(config, data, others),
            logits,
            world,
        )
        about = about_model(config.student, config.student_options, data)
        if writes:
            save_model(config.out / f"seed{seed}" / "student.safetensors", result.student, about)
        results.append(result)
    metrics = run_metrics(data, results, config, config.student, command)
    metrics["objective"] = config.objective
    if metrics["teacher"] is not None:
        metrics["teacher"]["model"] = teacher_name
    if not writes:
        return metrics
    return write_run(config.out, metrics, results, best_on_validation(results))


def fit_seed(
    config: TeacherConfig | DistillConfig,
    model: str,
    options: ModelConfig,
    data: GraphData,
    seed: int,
    cache: TeacherCache | None = None,
    objective: Objective | None = None,
    teacher_logits: Tensor | None = None,
    world: World | None = None,
    callbacks: Sequence[Callback] = (),
) -> DistillResult:
    """Train one model, with a progress bar beside the ``callbacks``."""
    torch.manual_seed(seed)
    about = about_model(model, options, data)
    label = f"{model} seed {seed}"
    settings: dict[str, Any] = {
        "seed": seed,
        "config": config.train,
        "out": config.out / f"seed{seed}",
        "callbacks": [ProgressBar(label), *callbacks],
        "teacher_logits": teacher_logits,
        "capture_step": config.capture_step,
        "batches": config.batches.build(data.training, seed, objective is None),
    }
    student = about.build().to(data.y.device)
    if world is None:
        return Distiller(cache, student, data, objective, **settings).fit()
    from abkd_fast.distributed import DistributedDistiller

    return DistributedDistiller(world, cache, student, data, objective, **settings).fit()


_Teacher = tuple[TeacherCache, Tensor | None, str]


def find_teacher(config: DistillConfig, data: GraphData) -> _Teacher:
    """The teacher's cache, scores and name: from a file, a function, or trained now."""
    layers = config.teacher_layers if config.needs_states else ()
    if config.teacher_file is not None:
        return _from_file(config, config.teacher_file, data, layers)
    if ":" in config.teacher:
        model = _call(config.teacher, data)
        return _cache(config, model.to(config.device), data, layers, config.teacher)
    wanted = teacher_run(config, data)
    if not (wanted.out / "teacher.safetensors").exists():
        train_teacher(wanted, f"abkd-fast distill (teacher of {config.out})")
    return _from_file(config, wanted.out / "teacher.safetensors", data, layers)


def further_teachers(config: DistillConfig, data: GraphData) -> list[TeacherCache]:
    """Caches of the teachers that the objective needs beside ``--teacher``."""
    return [
        _from_file(config, path, data, None, f"teacher-cache-{i}")[0]
        for i, path in enumerate(config.further_teachers, start=2)
    ]


def teacher_run(config: DistillConfig, data: GraphData) -> TeacherConfig:
    """The run that trains the model ``--teacher`` names; its folder is named by all of it."""
    wanted = TeacherConfig(
        dataset=config.dataset,
        data=config.data,
        root=config.root,
        read=config.read,
        device=config.device,
        capture_step=config.capture_step,
        inductive=config.inductive,
        model=config.teacher,
        options=config.teacher_options,
        train=config.teacher_train,
        seeds=config.teacher_seeds,
    )
    # Other settings or another split are another teacher.
    settings = [wanted.model, wanted.options, wanted.train, wanted.seeds, data.fingerprint()]
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return replace(wanted, out=config.teachers / f"{data.name}-{config.teacher}-{key}")


def _cache(
    config: DistillConfig,
    teacher: nn.Module,
    data: GraphData,
    layers: str | Sequence[str] | None,
    name: str,
    file: str = "teacher-cache",
) -> _Teacher:
    """States of what steps run on, kept as the settings say, and scores on all of the data.

    Shows the memory that the run will need. Kept on disk, they are in ``file``.
    """
    print(*plan_memory(config.student, data, config, teacher, layers), sep="\n", flush=True)
    dtype, storage, part = config.cache.torch_dtype, config.cache.storage, data.training
    if storage == "mmap":
        path = config.out / f"{file}.safetensors"
        cache = TeacherCache.cached(path, teacher, part, storage, layers=layers, dtype=dtype)
    else:
        cache = TeacherCache.build(teacher, part, layers, dtype, storage=storage)
    return cache, cache.logits if part is data else predict(teacher, data), name


def _check(config: DistillConfig, data: GraphData) -> None:
    """Find mistakes in the models, their layers and the folder before a teacher is trained."""
    if config.needs_states:
        check_layers("student", config.student, None, data)
        if config.trains_teacher:
            teacher = check_layers("teacher", config.teacher, config.teacher_layers, data)
            plan_memory(config.student, data, config, teacher, config.teacher_layers)
    config.out.mkdir(parents=True, exist_ok=True)


def _from_file(
    config: DistillConfig,
    path: Path,
    data: GraphData,
    layers: str | Sequence[str] | None,
    file: str = "teacher-cache",
) -> _Teacher:
    model, about = load_model(path)
    if about.fingerprint != data.fingerprint():
        raise ValueError(
            f"{path} must be a teacher of {data.name!r}, got one of other data or another split "
            f"({about.dataset!r}, {about.in_channels} features); choose another --teacher"
        )
    return _cache(config, model.to(data.y.device), data, layers, about.spec, file)


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
