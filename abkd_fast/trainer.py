"""Distiller: one loop that trains a student, with or without a teacher."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._activations import check_activations, storing
from abkd_fast._captured_step import CapturedStep, CudaGraph, notify, reason_against
from abkd_fast._checkpoint import Progress, RunFolder, Trained
from abkd_fast._diagnose import first_not_finite
from abkd_fast._epoch import BatchEpoch
from abkd_fast._optimizer import make_optimizer, make_scheduler
from abkd_fast._step import Step
from abkd_fast._training_result import distill_result, load_best
from abkd_fast.batches import Batches
from abkd_fast.callbacks import Callback, ProgressBar
from abkd_fast.capture import Recorder, call_model, match_layers
from abkd_fast.config import TrainConfig
from abkd_fast.data import GraphData
from abkd_fast.distill import Objective
from abkd_fast.inductive import predict
from abkd_fast.result import DistillResult, TrainingError
from abkd_fast.teacher import TeacherCache


class Distiller:
    """Trains ``student`` on labels, and on a frozen teacher through ``objective``.

    loss = objective.label_weight * CE(train nodes) + objective(student, teacher)

    The task of the data decides the loss on labels (CE above) and the metric of validation. Steps
    and the teacher's states run on ``data.training``, which is ``data`` unless it is inductive or
    consists of graphs; everything is scored on ``data``.

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
        batches: mini-batches of ``data`` to train on (see :mod:`abkd_fast.batches`); None takes
            all nodes in every step. Validation is on all nodes always.
        teacher_logits: the teacher's scores on all of ``data``, to be reported, where ``teacher``
            is a cache of ``data.training``; otherwise they are known.
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
        batches: Batches | None = None,
        teacher_logits: Tensor | None = None,
    ) -> None:
        if objective is not None and teacher is None:
            raise ValueError("objective needs a teacher, got teacher=None")
        self._needs_states = objective is not None and objective.needs_states
        self.data, self.training = data, data.training
        self._teacher_logits = teacher_logits
        if isinstance(teacher, nn.Module):
            layers = teacher_layers if self._needs_states else ()
            if self.training is not data:
                self._teacher_logits = predict(teacher, data, forward)
            teacher = TeacherCache.build(teacher, self.training, layers, forward=forward)
        if teacher is not None:
            teacher.check_fits(self.training)
            teacher = teacher.to(data.graph.device)
            if self.training is data:
                self._teacher_logits = teacher.logits
        self.teacher = teacher
        self.student, self.objective = student, objective
        self.seed, self.config = seed, config or TrainConfig()
        check_activations(self.config.activations, student)
        self.out = None if out is None else Path(out)
        self.student_layers, self.forward = student_layers, forward
        self.capture_step, self.batches = capture_step, batches
        if batches is not None and batches.data is not self.training:
            raise ValueError(
                f"batches must be of the data trained on, got those of {batches.data!r}; make them "
                "of data.training"
            )
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
    ) -> Step | CapturedStep | BatchEpoch:
        data = self.training
        step = Step(
            collect=lambda: recorder.collect(partial(self._forward, data), data.graph),
            kind=data.kind,
            y=data.y,
            train_mask=data.train_mask,
            objective=self.objective,
            teacher=self.teacher,
            trained=trained,
            check=lambda scalars: self._check_finite(scalars, progress),
        )
        if not self.capture_step:
            return self._over_batches(step, recorder, progress)
        reason = reason_against(step, self.config)
        if self.batches is not None:
            reason = "mini-batches differ in size"
        if reason is None:
            return CapturedStep(step, CudaGraph())
        notify(reason)
        return self._over_batches(step, recorder, progress)

    def _over_batches(
        self, step: Step, recorder: Recorder, progress: Progress
    ) -> Step | BatchEpoch:
        if self.batches is None:
            return step
        return BatchEpoch(step, self.batches, recorder, self._forward, progress)

    def _validate(self, progress: Progress) -> dict[str, float]:
        logits, kind, y = self._predict(), self.data.kind, self.data.y
        _, train = kind.assess(logits, y, self.data.train_mask)
        loss, val = kind.assess(logits, y, self.data.val_mask)
        self._check_finite({"val_loss": loss}, progress)
        return {
            "val_loss": float(loss),
            f"train_{kind.metric}": train,
            f"val_{kind.metric}": val,
        }

    @torch.no_grad()
    def _predict(self) -> Tensor:
        self.student.eval()
        return self._forward(self.data)

    def _forward(self, data: GraphData) -> Tensor:
        """Class scores [N, C or more] of the student, checked."""
        with self._autocast(), storing(self.config.activations, self.student):
            logits = call_model(self.student, data, self.forward)
        nodes, classes = data.num_rows, self.data.num_classes
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
        key = [record["val_loss"], -record[f"val_{self.data.kind.metric}"]]
        if self.config.monitor != "val_loss":
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
                call = partial(self._forward, self.training)
                capture = recorder.collect(call, self.training.graph)
            assert self.teacher is not None
            self.objective.setup(self.teacher, capture.widths, self.training.graph)
            if self.batches is not None:
                self.objective.set_epoch(self.batches.nodes)
        optimizer = make_optimizer(self.config, self.student, self.objective)
        steps = self.config.epochs * (1 if self.batches is None else len(self.batches))
        scheduler = make_scheduler(self.config, optimizer, steps)
        return Trained(self.student, self.objective, optimizer, scheduler)

    def _result(self, progress: Progress) -> DistillResult:
        load_best(self.student, progress)
        logits = (self._predict(), self._teacher_logits)
        checkpoint = self._folder.checkpoint
        return distill_result(self.student, progress, self.data, *logits, self.teacher, checkpoint)

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
            "batches": None if self.batches is None else repr(self.batches),
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
