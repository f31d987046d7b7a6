"""What ``abkd-fast profile`` does."""

from __future__ import annotations

from typing import Any

from abkd_fast._trained import check_fits, data_of
from abkd_fast.config import SettingError
from abkd_fast.data import GraphData
from abkd_fast.latency.page import print_report, write_report
from abkd_fast.latency.profile import profile
from abkd_fast.latency.settings import ProfileConfig
from abkd_fast.latency.subjects import Subject, load_subjects


def run_profile(config: ProfileConfig, command: str = "") -> dict[str, Any]:
    """Measure, print the table, and write latency.json, the figures and latency.html to ``out``."""
    if not config.students:
        raise SettingError("a student must be given: a model file, or the folder of a run")
    subjects = load_subjects(config.students, config.teacher)
    data = _load(config, subjects)
    for subject in subjects:
        subject.model.to(config.device)
    report = profile(
        subjects,
        data,
        forms=config.forms,
        samples=config.samples,
        seconds=config.seconds,
        batch=config.batch,
        clients=config.clients,
        threads=config.threads,
        seed=config.seed,
    )
    print_report(report)
    print(f"report: {write_report(report, config.out, command)}")
    return report


def _load(config: ProfileConfig, subjects: list[Subject]) -> GraphData:
    """The data, which every model must fit."""
    first = next(s for s in subjects if s.role == "student").about
    trained_on = first.dataset if first else ""
    data = data_of(config.data, config.dataset, config.root, config.read, trained_on)
    for subject in subjects:
        if subject.about:
            check_fits(subject.about, data, subject.name)
    return data.to(config.device)
