"""Distiller: one loop that trains a student, with or without a teacher."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._captured_step import CapturedStep, CudaGraph, notify, reason_against
from abkd_fast._checkpoint import Progress, RunFolder, Trained
from abkd_fast._diagnose import first_not_finite
from abkd_fast._optimizer import make_optimizer, make_scheduler
from abkd_fast._step import Step
from abkd_fast.callbacks import Callback, ProgressBar
from abkd_fast.capture import Recorder, call_model, match_layers
from abkd_fast.config import TrainConfig
from abkd_fast.data import GraphData
from abkd_fast.distill import Objective
from abkd_fast.metrics import accuracies, count_parameters, peak_bytes, quantiles
from abkd_fast.result import DistillResult, TrainingError
from abkd_fast.teacher import TeacherCache


class Distiller:
    """Trains ``student`` on labels, and on a frozen teacher through ``objective``.

    loss = objective.label_weight * CE(train nodes) + objective(student, teacher)

    Args:
        teacher: a module, run once in eval mode; a ready TeacherCache; or None.
        student: any module that returns class scores [N, C]; changed in place.
        data: graph, features, labels and splits.
        objective: a distillation objective or a sum of them; None = labels alone.
        seed: seeds dropout and the objective's maps; the caller's random state is left alone.
        config: see :class:`TrainConfig`.
        out: folder for ``checkpoint.safetensors`` and ``log.jsonl``. If it holds a checkpoint
            of the same run, :meth:`fit` goes on from there, bit for bit on one device.
        teacher_layers: modules whose outputs are aligned (paths or patterns); None takes the
            model's own ``hidden_layers``.
        student_layers: the same for the student.
        forward: ``forward(model, data)`` for models whose arguments are not found by name.
        callbacks: see :class:`Callback`; None shows a progress bar.
        capture_step: on a GPU, capture the whole step in a CUDA graph and replay it: the same
            results, seed for seed, without the host's share of the time. Where that is not
            possible, one line on stderr says why, and steps run as ever.
    """

    def __init__(
        self,
        teacher: nn.Module | TeacherCache | None,
        student: nn.Module,
        data: GraphData,
        objective: Objective | None = None,
        *,
        seed: int = 0,
        config: TrainConfig | None = None,
        out: str | Path | None = None,
        teacher_layers: str | Sequence[str] | None = None,
        student_layers: str | Sequence[str] | None = None,
        forward: Callable[..., Tensor] | None = None,
        callbacks: Sequence[Callback] | None = None,
        capture_step: bool = False,
    ) -> None:
        if objective is not None and teacher is None:
            raise ValueError("objective needs a teacher, got teacher=None")
        self._needs_states = objective is not None and objective.needs_states
        if isinstance(teacher, nn.Module):
            layers = teacher_layers if self._needs_states else ()
            teacher = TeacherCache.build(teacher, data, layers, forward=forward)
        if teacher is not None:
            teacher.check_fits(data)
            teacher = teacher.to(data.graph.device)
        self.teacher = teacher
        self.student, self.data, self.objective = student, data, objective
        self.seed, self.config = seed, config or TrainConfig()
        self.out = None if out is None else Path(out)
        self.student_layers, self.forward = student_layers, forward
        self.capture_step = capture_step
        self.callbacks = [ProgressBar()] if callbacks is None else list(callbacks)
        self._folder = RunFolder(self.out, self._identity)

    def fit(self) -> DistillResult:
        """Train (or resume) and return the best student with its figures."""
        layers = self.student_layers if self._needs_states else ()
        result = None
        try:
            with (
                self._folder.lock(),
                torch.random.fork_rng(),
                Recorder(self.student, layers) as recorder,
            ):
                torch.manual_seed(self.seed)
                trained = self._setup(recorder)
                progress = self._folder.resume(trained)
                for callback in self.callbacks:
                    callback.on_start(self, progress.epoch)
                self._train(recorder, trained, progress)
                result = self._result(progress)
        finally:
            for callback in self.callbacks:
                callback.on_end(self, result)
        return result

    # -- the loop -------------------------------------------------------------------------

    def _train(self, recorder: Recorder, trained: Trained, progress: Progress) -> None:
        step = self._make_step(recorder, trained, progress)
        while not progress.finished:
            start = time.perf_counter()
            record = {"epoch": progress.epoch, **step.run()}
            record["step_ms"] = 1e3 * (time.perf_counter() - start)
            record |= self._validate(progress)
            self._keep_best(progress, record)
            progress.history.append(record)
            progress.epoch += 1
            stale = progress.epoch - 1 - progress.best_epoch
            patience = self.config.patience
            progress.finished = progress.epoch == self.config.epochs or (
                patience is not None and stale >= patience
            )
            self._folder.write(trained, progress, self.config.checkpoint_every)
            for callback in self.callbacks:
                callback.on_epoch(self, record)

    def _make_step(
        self, recorder: Recorder, trained: Trained, progress: Progress
    ) -> Step | CapturedStep:
        step = Step(
            collect=lambda: recorder.collect(self._forward, self.data.graph),
            data=self.data,
            objective=self.objective,
            teacher=self.teacher,
            trained=trained,
            check=lambda scalars: self._check_finite(scalars, progress),
        )
        if not self.capture_step:
            return step
        reason = reason_against(step, self.config)
        if reason is None:
            return CapturedStep(step, CudaGraph())
        notify(reason)
        return step

    def _validate(self, progress: Progress) -> dict[str, float]:
        logits = self._predict()
        train, val = self.data.train_mask, self.data.val_mask
        _, train_correct = ops.kl_div(logits, self.data.y, train)
        loss, val_correct = ops.kl_div(logits, self.data.y, val)
        self._check_finite({"val_loss": loss}, progress)
        return {
            "val_loss": float(loss),
            "train_acc": 100.0 * float(train_correct / train.count_nonzero()),
            "val_acc": 100.0 * float(val_correct / val.count_nonzero()),
        }

    @torch.no_grad()
    def _predict(self) -> Tensor:
        self.student.eval()
        return self._forward()

    def _forward(self) -> Tensor:
        """Class scores [N, C or more] of the student, checked."""
        with self._autocast():
            logits = call_model(self.student, self.data, self.forward)
        nodes, classes = self.data.num_nodes, self.data.num_classes
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not (isinstance(shape, list) and len(shape) == 2 and shape[0] == nodes):
            raise ValueError(f"student must return class scores [N={nodes}, C], got {shape}")
        if shape[1] < classes:
            raise ValueError(
                f"student must score the {classes} classes of {self.data.name!r}, got {shape[1]}"
            )
        return logits

    def _autocast(self) -> AbstractContextManager[None]:
        if self.config.autocast is None:
            return nullcontext()
        dtype, kind = getattr(torch, self.config.autocast), self.data.y.device.type
        # Without the cache of cast weights, which a captured step would not fill anew.
        return torch.autocast(kind, dtype=dtype, cache_enabled=False)

    def _keep_best(self, progress: Progress, record: dict[str, Any]) -> None:
        terms = [] if self.objective is None else self.objective.terms()
        maps = next((term for term in terms if term.attention is not None), None)
        every = max(1, self.config.epochs // self.config.snapshots)
        if maps is not None and maps.attention is not None and progress.epoch % every == 0:
            progress.maps.append(maps.attention.cpu().clone())
            progress.map_epochs.append(progress.epoch)
        key = [record["val_loss"], -record["val_acc"]]
        if self.config.monitor == "val_acc":
            key.reverse()
        if key < progress.best_key:
            progress.best_key, progress.best_epoch = key, progress.epoch
            best = {f"student.{k}": v for k, v in self.student.state_dict().items()}
            for name in ("attention", "dissimilarity"):
                value = getattr(maps, name, None)
                if value is not None:
                    best[name] = value.cpu()
            for name, value in best.items():
                if name not in progress.best:
                    progress.best[name] = torch.empty_like(value)
                progress.best[name].copy_(value)

    # -- set-up and results ---------------------------------------------------------------

    def _setup(self, recorder: Recorder) -> Trained:
        if self.objective is not None:
            self.student.eval()
            with torch.no_grad():
                capture = recorder.collect(self._forward, self.data.graph)
            assert self.teacher is not None
            self.objective.setup(self.teacher, capture.widths, self.data.graph)
        optimizer = make_optimizer(self.config, self.student, self.objective)
        scheduler = make_scheduler(self.config, optimizer)
        return Trained(self.student, self.objective, optimizer, scheduler)

    def _result(self, progress: Progress) -> DistillResult:
        best = progress.best
        prefix = "student."
        self.student.load_state_dict(
            {k.removeprefix(prefix): v for k, v in best.items() if k.startswith(prefix)}
        )
        parameters = count_parameters(self.student)
        metrics: dict[str, Any] = {
            "student": {"parameters": parameters, **accuracies(self._predict(), self.data)},
            "teacher": None,
            "compression_ratio": None,
            "best_epoch": progress.best_epoch,
            "epochs": progress.epoch,
            "step_ms": quantiles([record["step_ms"] for record in progress.history]),
            "peak_bytes": peak_bytes(),
        }
        if self.teacher is not None and self.teacher.logits is not None:
            teacher_parameters = self.teacher.parameters
            scores = accuracies(self.teacher.logits, self.data)
            metrics["teacher"] = {"parameters": teacher_parameters, **scores}
            if teacher_parameters is not None:
                metrics["compression_ratio"] = teacher_parameters / parameters
        return DistillResult(
            student=self.student,
            metrics=metrics,
            history=progress.history,
            attention=best.get("attention"),
            dissimilarity=best.get("dissimilarity"),
            attention_history=torch.stack(progress.maps) if progress.maps else None,
            attention_epochs=progress.map_epochs,
            checkpoint=self._folder.checkpoint,
        )

    def _identity(self) -> dict[str, Any]:
        shapes = {name: list(p.shape) for name, p in self.student.named_parameters()}
        layers = match_layers(self.student, self.student_layers if self._needs_states else ())
        return {
            "config": asdict(self.config),
            "seed": self.seed,
            "data": self.data.fingerprint()[:12],
            "teacher": None if self.teacher is None else self.teacher.fingerprint[:12],
            "student": hashlib.sha256(f"{self.student} {shapes}".encode()).hexdigest()[:12],
            "student_layers": layers,
            "objective": None if self.objective is None else repr(self.objective),
        }

    def _check_finite(self, scalars: dict[str, Tensor], progress: Progress) -> None:
        """Raise TrainingError with epoch, module and last checkpoint unless all is finite."""
        bad = [name for name, value in scalars.items() if not bool(value.isfinite())]
        if not bad:
            return
        module = first_not_finite(self.student, self._predict)
        where = "in the objective" if module is None else f"first in the output of {module}"
        path, saved = self._folder.checkpoint, progress.saved
        kept = f"the last good checkpoint is {path} (epoch {saved})" if saved else ""
        raise TrainingError(
            f"{', '.join(bad)} is not finite at epoch {progress.epoch} (seed {self.seed}), "
            f"{where}; {kept or 'no checkpoint was written yet'}. "
            f"A lower lr than {self.config.lr} may help"
        )
