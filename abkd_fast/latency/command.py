"""What ``abkd-fast profile`` does."""

from __future__ import annotations

from typing import Any

from abkd_fast import data as datasets
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
    if config.data is not None:
        data = datasets.load_path(config.data)
    else:
        first = subjects[-1].about
        name = config.dataset or (first.dataset if first else "")
        if name not in datasets.names():
            raise SettingError(
                f"dataset must be given: {name!r}, which the model was trained on, is none of "
                "the registered ones; pass --dataset NAME or --data PATH"
            )
        data = datasets.load(name, root=config.root)
    for subject in subjects:
        about = subject.about
        if about and (about.in_channels, about.out_channels) != (
            data.num_features,
            data.num_classes,
        ):
            raise SettingError(
                f"data must have the {about.in_channels} features and {about.out_channels} "
                f"classes of {subject.name}, got {data.num_features} and {data.num_classes} "
                f"({data.name})"
            )
    return data.to(config.device)
