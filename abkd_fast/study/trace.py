"""How a run went, thinned to what a figure can show."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from abkd_fast.callbacks import Callback
from abkd_fast.result import DistillResult
from abkd_fast.trainer import Distiller

_POINTS = 60


class Trace(Callback):
    """Keeps the log and the norms of gradients and objective weights at some epochs.

    Attributes:
        points: the log's record and the norms at up to _POINTS epochs and the last.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self._ends: list[float] = []
        self._used: list[float] = []

    def on_epoch(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Look at every so many epochs."""
        self._ends.append(time.perf_counter())
        self._used.append(time.process_time())
        last = distiller.config.epochs - 1
        if record["epoch"] % max(1, distiller.config.epochs // _POINTS) and record["epoch"] != last:
            return
        point = {key: value for key, value in record.items() if key != "step_ms"}
        point["gradient"] = _norm(p.grad for p in distiller.student.parameters())
        if distiller.objective is not None:
            for name, parameter in distiller.objective.named_parameters():
                point[f"norm.{name}"] = _norm([parameter.detach()])
                point[f"gradient.{name}"] = _norm([parameter.grad])
        self.points.append({key: _short(value) for key, value in point.items()})

    def epoch_seconds(self) -> tuple[float, float]:
        """Median time and median processor time of an epoch, validation included."""
        return _step(self._ends), _step(self._used)

    def seconds(self) -> tuple[float, float]:
        """Time and processor time of all epochs; the first, which has no beginning, as the mean."""
        share = len(self._ends) / max(len(self._ends) - 1, 1)
        return share * (self._ends[-1] - self._ends[0]), share * (self._used[-1] - self._used[0])

    def record(self, result: DistillResult) -> dict[str, Any]:
        """Columns of the log by name, and the maps at the kept epoch."""
        names = dict.fromkeys(name for point in self.points for name in point)
        found: dict[str, Any] = {name: [point.get(name) for point in self.points] for name in names}
        for name in ("attention", "dissimilarity"):
            value = getattr(result, name)
            if value is not None:
                found[name] = [[_short(x) for x in row] for row in value.tolist()]
        return found


def _step(times: list[float]) -> float:
    between = sorted(b - a for a, b in zip(times, times[1:], strict=False))
    return between[len(between) // 2] if between else 0.0


def _norm(parts: Any) -> float:
    squares = [float(part.double().square().sum()) for part in parts if isinstance(part, Tensor)]
    return float(torch.tensor(squares, dtype=torch.float64).sum().sqrt()) if squares else 0.0


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")
