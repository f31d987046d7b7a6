"""A training run on disk: one file that is replaced atomically, and enough to go on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from abkd_fast._optimizer import restore_optimizer
from abkd_fast._storage import exclusive, load_tensors, save_tensors

_KIND = "checkpoint"


@dataclass
class Progress:
    """What the loop itself has to remember from epoch to epoch."""

    epoch: int = 0
    finished: bool = False
    saved: int = 0
    best_epoch: int = -1
    best_key: list[float] = field(default_factory=lambda: [float("inf"), float("inf")])
    history: list[dict[str, Any]] = field(default_factory=list)
    map_epochs: list[int] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Trained:
    """The objects whose state training changes."""

    student: nn.Module
    objective: nn.Module | None
    optimizer: Optimizer
    scheduler: LRScheduler | None

    @property
    def device(self) -> torch.device:
        """Device of the student."""
        return next(self.student.parameters()).device


class RunFolder:
    """Keeps ``checkpoint.safetensors`` and ``log.jsonl`` of one run; without a folder, nothing.

    Args:
        folder: created when the run starts; None keeps nothing.
        identity: called once, says which run this is: a checkpoint of another one is refused.
    """

    def __init__(self, folder: Path | None, identity: Callable[[], Mapping[str, Any]]) -> None:
        self.checkpoint = None if folder is None else folder / "checkpoint.safetensors"
        self._log = None if folder is None else folder / "log.jsonl"
        self._identify = identity

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        return self._identify()

    def lock(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder; ValueError if one is in it."""
        return nullcontext() if self._log is None else exclusive(self._log)

    def resume(self, trained: Trained) -> Progress:
        """Restore the last checkpoint, if there is one, and cut the log back to it."""
        progress = Progress()
        if self.checkpoint is None or self._log is None:
            return progress
        if self.checkpoint.exists():
            progress = load_checkpoint(self.checkpoint, trained, self._identity)
        for leftover in self.checkpoint.parent.glob(f".{self.checkpoint.name}.*.tmp"):
            leftover.unlink()  # of a killed run
        self._log.write_text("".join(json.dumps(record) + "\n" for record in progress.history))
        return progress

    def write(self, trained: Trained, progress: Progress, every: int) -> None:
        """Log the last epoch; save a checkpoint every ``every`` epochs and after the last one."""
        if self.checkpoint is None or self._log is None:
            return
        try:
            with self._log.open("a") as file:
                file.write(json.dumps(progress.history[-1]) + "\n")
        except OSError as error:
            raise OSError(
                f"could not write {self._log}: {error}; free some space, then go on"
            ) from error
        if progress.finished or progress.epoch % every == 0:
            progress.saved = progress.epoch
            save_checkpoint(self.checkpoint, trained, progress, self._identity)


def save_checkpoint(
    path: Path, trained: Trained, progress: Progress, identity: Mapping[str, Any]
) -> None:
    """Write everything to ``path``; OSError when the disk is full, the old file stays."""
    packed = trained.optimizer.state_dict()
    tensors = {f"student.{k}": v for k, v in trained.student.state_dict().items()}
    if trained.objective is not None:
        tensors |= {f"objective.{k}": v for k, v in trained.objective.state_dict().items()}
    for index, slots in packed["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    tensors |= {f"best.{k}": v for k, v in progress.best.items()}
    if progress.maps:
        tensors["maps"] = torch.stack(progress.maps)
    tensors["rng"] = torch.get_rng_state()
    if trained.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trained.device)
    plain = {
        f.name: getattr(progress, f.name)
        for f in fields(progress)
        if f.name not in ("maps", "best")
    }
    meta = {
        "progress": plain,
        "param_groups": _plain(packed["param_groups"]),
        "scheduler": _plain(None if trained.scheduler is None else trained.scheduler.state_dict()),
        "identity": dict(identity),
    }
    save_tensors(path, {k: v.clone() for k, v in tensors.items()}, meta, _KIND)


def load_checkpoint(path: Path, trained: Trained, identity: Mapping[str, Any]) -> Progress:
    """Restore every object in ``trained`` and the random state; return the loop's progress.

    Raises:
        ValueError: the file is damaged, or belongs to a run with another ``identity``.
    """
    tensors, meta = load_tensors(path, _KIND)
    _check_identity(path, meta["identity"], identity)
    trained.student.load_state_dict(_under(tensors, "student."))
    if trained.objective is not None:
        trained.objective.load_state_dict(_under(tensors, "objective."))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = value.clone()
    restore_optimizer(trained.optimizer, {"state": slots, "param_groups": meta["param_groups"]})
    if trained.scheduler is not None:
        trained.scheduler.load_state_dict(meta["scheduler"])
    torch.set_rng_state(tensors["rng"].clone())
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"].clone(), trained.device)
    best = {k: v.clone() for k, v in _under(tensors, "best.").items()}
    maps = [m.clone() for m in tensors["maps"]] if "maps" in tensors else []
    return Progress(**meta["progress"], maps=maps, best=best)


def _plain(value: Any) -> Any:
    """The same for JSON: numbers in the place of tensors that hold one."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, Tensor) else value


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """{"config": {"lr": 1}} -> {"config.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}.{k}": v for k, v in inner.items()}
    return flat


def _check_identity(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    there, now = _flat(found), _flat(expected)
    differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        details = "; ".join(f"{k}: {there.get(k)!r} there, {now.get(k)!r} now" for k in differing)
        raise ValueError(
            f"{path} must be a checkpoint of this run, but it differs in {details}. "
            "Choose another output folder, or delete the checkpoint to start again"
        )
