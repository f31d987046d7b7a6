"""Figures of a study."""

from __future__ import annotations

from collections.abc import Sequence

from abkd_fast.study.results import TaskResult
from abkd_fast.study.schedule import Schedule


def write_figures(schedule: Schedule, found: Sequence[TaskResult]) -> None:
    """PNG files in the study's folder."""
