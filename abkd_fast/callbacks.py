"""Hooks into the training loop, and the progress bar that is there by default."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from abkd_fast.result import DistillResult
    from abkd_fast.trainer import Distiller


class Callback:
    """Override what you need; exceptions stop the run."""

    def on_start(self, distiller: Distiller, first_epoch: int) -> None:
        """Before the first epoch; ``first_epoch`` > 0 when the run was resumed."""

    def on_epoch(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """After every epoch, with its log record."""

    def on_end(self, distiller: Distiller, result: DistillResult | None) -> None:
        """After the last epoch; ``result`` is None when an error or a key press ended the run."""


class ProgressBar(Callback):
    """A bar on a terminal; elsewhere one line every ``interval`` seconds. Writes to stderr."""

    def __init__(self, label: str = "training", interval: float = 15.0) -> None:
        self.label, self.interval = label, interval
        self._bar: Progress | None = None

    def on_start(self, distiller: Distiller, first_epoch: int) -> None:
        """Open the bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  val {task.fields[val]:.1f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        total = distiller.config.epochs
        self._task = self._bar.add_task(
            self.label, total=total, completed=first_epoch, loss=float("nan"), val=float("nan")
        )
        self._bar.start()
        self._last_line = time.monotonic()

    def on_epoch(self, distiller: Distiller, record: dict[str, Any]) -> None:
        """Advance."""
        assert self._bar is not None
        val = record[f"val_{distiller.data.kind.metric}"]
        self._bar.update(self._task, advance=1, loss=record["loss"], val=val)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > self.interval:
            self._last_line = now
            print(
                f"{self.label}: epoch {record['epoch'] + 1}/{distiller.config.epochs}, "
                f"loss {record['loss']:.3f}, val {val:.1f} %",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, distiller: Distiller, result: DistillResult | None) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
