"""One run in a process of its own: from a cell to its record."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

# Loaded once, by the server that all runs are forked from, and not by every run when it needs them.
import rich.progress  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo  # of torch's optimisers
from torch import Tensor

from abkd_fast._preflight import about_model
from abkd_fast._storage import read_header
from abkd_fast.config import DistillConfig
from abkd_fast.data import GraphData
from abkd_fast.metrics import environment, peak_bytes, quantiles
from abkd_fast.model_file import load_model, save_model
from abkd_fast.result import DistillResult
from abkd_fast.runs import (
    build_objective,
    find_teacher,
    fit_seed,
    further_teachers,
    load_data,
    teacher_run,
    train_teacher,
)
from abkd_fast.study.cells import FINAL, TEACHER, TIMING, TRIAL, Cell
from abkd_fast.study.trace import Trace
from abkd_fast.teacher import TeacherCache

_TIMED_EPOCHS = 12


def work(cell: Cell, place: Path, threads: int, send: connection.Connection, log: Path) -> None:
    """Entry of the process: sends the record, or one with an error; all output goes to ``log``."""
    _end_with_parent()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(threads)
    start, used = time.perf_counter(), time.process_time()
    try:
        record = run_cell(cell, place)
    except Exception as error:
        if os.environ.get("ABKD_TRACEBACK"):
            raise
        record = {"error": f"{type(error).__name__}: {error}"}
    record["seconds"] = round(time.perf_counter() - start, 3)
    record["processor"] = round(time.process_time() - used, 3)
    send.send({**cell.about(), "error": None, **record})


def run_cell(cell: Cell, place: Path) -> dict[str, Any]:
    """Run a cell; teachers are read from, and written to, ``place``/teachers."""
    config = replace(cell.config, teachers=place / "teachers")
    data = load_data(config)
    if cell.kind == TEACHER:
        return _teacher(config, data)
    epochs = min(_TIMED_EPOCHS, config.train.epochs) if cell.kind == TIMING else config.train.epochs
    train = replace(config.train, epochs=epochs, checkpoint_every=epochs)
    with tempfile.TemporaryDirectory(prefix="abkd-cell-") as out:
        config = replace(config, train=train, out=Path(out))
        if config.trains_teacher:
            untrained = Path(out) / "teacher.safetensors" if cell.kind == TIMING else None
            config = _with_teacher(config, data, untrained)
        cache, logits, _ = find_teacher(config, data)
        others = further_teachers(config, data)
        if cell.kind == TRIAL:
            data = hide_test(data)
            for teacher in (cache, *others):
                teacher.data = None  # the same graph and features, other labels
        objective = build_objective(config, data, others)
        trace = Trace()
        result = fit_seed(
            config,
            config.student,
            config.student_options,
            data,
            cell.seed,
            cache,
            objective,
            logits,
            callbacks=[trace],
        )
        if cell.kind == FINAL:
            return _run_record(config, result, data, cache, trace)
        found = validation_record(result)
        if cell.kind == TIMING:
            found["epoch_seconds"], found["epoch_processor"] = trace.epoch_seconds()
        return found


def hide_test(data: GraphData) -> GraphData:
    """The data with the labels of the test rows shuffled: what trials run on."""
    nodes = data.test_mask.nonzero().flatten()
    order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(0))
    y = data.y.clone()
    y[nodes] = data.y[nodes[order.to(nodes.device)]]
    return replace(data, y=y)


def validation_record(result: DistillResult) -> dict[str, Any]:
    """What a choice may look at, and what the run cost."""
    metrics = result.metrics
    return {
        "val": metrics["student"]["val"],
        "parameters": metrics["student"]["parameters"],
        "epochs": metrics["epochs"],
        "best_epoch": metrics["best_epoch"],
        "step_ms": round(metrics["step_ms"]["p50"], 4),
        "peak_bytes": peak_bytes(),
    }


def _run_record(
    config: DistillConfig,
    result: DistillResult,
    data: GraphData,
    cache: TeacherCache,
    trace: Trace,
) -> dict[str, Any]:
    metrics = result.metrics
    found = validation_record(result)
    seconds, processor = trace.seconds()
    found |= {
        "test": metrics["student"]["test"],
        "scores": metrics["student"]["scores"]["test"],
        "train_seconds": round(seconds, 3),
        "train_processor": round(processor, 3),
        "latency_ms": round(_latency(result.student, data), 4),
        "compression": metrics["compression_ratio"],
        "teacher_parameters": cache.parameters,
        "teacher_test": metrics["teacher"]["test"],
        "teacher_sha256": _teacher_sum(config),
        "environment": environment(),
    }
    return {**found, "trace": trace.record(result)}


def _teacher(config: DistillConfig, data: GraphData) -> dict[str, Any]:
    """Train the teacher's seeds, or look at the one that was given."""
    found: dict[str, Any] = {}
    if config.trains_teacher:
        wanted = teacher_run(config, data)
        metrics = train_teacher(wanted, f"abkd-fast study (teacher {config.teacher})")
        side = metrics["student"]
        found = {name: side[name]["values"] for name in ("train", "val", "test")}
        found["epochs"] = metrics["epochs"]
        config = replace(config, teacher=str(wanted.out))
    with tempfile.TemporaryDirectory(prefix="abkd-cell-") as out:
        config = replace(config, objective="none", teacher_layers=None, out=Path(out))
        cache, logits, name = find_teacher(config, data)
    assert logits is not None
    file = config.teacher_file
    latency = None if file is None else _latency(load_model(file)[0].to(data.y.device), data)
    scores = {
        split: data.kind.scores(logits, data.y, mask)[data.kind.metric]
        for split, mask in (("val", data.val_mask), ("test", data.test_mask))
    }
    return {
        **found,
        "model": name,
        "used": scores,
        "parameters": cache.parameters,
        "sha256": _teacher_sum(config),
        "latency_ms": latency,
        "peak_bytes": peak_bytes(),
        "environment": environment(),
    }


def _with_teacher(config: DistillConfig, data: GraphData, untrained: Path | None) -> DistillConfig:
    """The config with the trained teacher's folder in place of its size.

    To see the speed any weights will do: those of a new model, written to ``untrained``.
    """
    if untrained is None:
        return replace(config, teacher=str(teacher_run(config, data).out))
    about = about_model(config.teacher, config.teacher_options, data)
    save_model(untrained, about.build(), about)
    return replace(config, teacher=str(untrained))


def _teacher_sum(config: DistillConfig) -> str | None:
    """Start of the checksum in the teacher's file, None for a teacher without one."""
    path = config.teacher_file
    return None if path is None else read_header(path, "model")["sha256"][:12]


def _latency(model: torch.nn.Module, data: GraphData) -> float:
    """Median milliseconds of class scores for all nodes, after two calls to warm up."""
    model.eval()
    from abkd_fast.capture import call_model

    times = []
    with torch.no_grad():
        for _ in range(22):
            start = time.perf_counter()
            scores: Tensor = call_model(model, data, None)
            if scores.is_cuda:
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
    return float(quantiles(times[2:])["p50"])


def _end_with_parent() -> None:
    """Do not outlive the study: its lock goes with it, and the run would be made twice."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
