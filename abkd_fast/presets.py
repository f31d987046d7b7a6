"""The reference configurations: teachers as published, students at the paper's sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from abkd_fast.config import (
    NARROW,
    NARROW_TRAINING,
    ABKDConfig,
    DistillConfig,
    ModelConfig,
    TeacherConfig,
    TrainConfig,
)


def _published(dropout: float, theta: float, conv_weight_decay: float) -> dict[str, Any]:
    """GCNII's published settings for the public split (arXiv 2007.02133, table 7)."""
    return {
        "options": ModelConfig(dropout=dropout, alpha=0.1, theta=theta),
        "train": TrainConfig(
            epochs=1500, patience=100, lr=0.01, conv_weight_decay=conv_weight_decay
        ),
    }


TEACHERS: dict[str, TeacherConfig] = {
    "paper-cora": TeacherConfig(dataset="cora", model="gcnii-64x64", **_published(0.6, 0.5, 0.01)),
    "paper-citeseer": TeacherConfig(
        dataset="citeseer", model="gcnii-32x256", **_published(0.7, 0.6, 0.01)
    ),
    "paper-pubmed": TeacherConfig(
        dataset="pubmed", model="gcnii-64x64", **_published(0.5, 0.4, 5e-4)
    ),
    # arXiv 1703.06103: 2 layers, 16 hidden units, lr 0.01, 50 epochs. No bases, no L2 penalty.
    "paper-aifb": TeacherConfig(
        dataset="aifb",
        model="rgcn-2x16",
        options=ModelConfig(dropout=0.0),
        train=TrainConfig(epochs=50, patience=None, lr=0.01, weight_decay=0.0),
    ),
    # 8 heads of 8 features, one output head (arXiv 1710.10903, section 3.3).
    "paper-gat-cora": TeacherConfig(
        dataset="cora",
        model="gat-2x64",
        options=ModelConfig(dropout=0.6, heads=8, out_heads=1, act="elu"),
        train=TrainConfig(epochs=1000, patience=100, lr=0.005),
    ),
}

# What was best on Cora's validation nodes for KD and for KD + ABKD in a search of eight trials.
_STUDENT_TRAINING = replace(NARROW_TRAINING, epochs=1500, lr=0.1, weight_decay=1e-4)
_STUDENTS = {"paper-cora": "gcnii-4x4", "paper-citeseer": "gcnii-4x16", "paper-pubmed": "gcnii-4x4"}
_STUDENTS["paper-gat-cora"] = "gat-2x4"


def teacher_preset(name: str | None) -> TeacherConfig:
    """Defaults of ``train-teacher`` under ``--preset name``."""
    return TeacherConfig() if name is None else TEACHERS[_known(name)]


def distill_preset(name: str | None) -> DistillConfig:
    """Defaults of ``distill`` under ``--preset name``."""
    if name is None:
        return DistillConfig()
    if name == "paper-aifb":
        return _aifb_student()
    teacher = TEACHERS[_known(name)]
    return DistillConfig(
        dataset=teacher.dataset,
        teacher=teacher.model,
        teacher_options=teacher.options,
        teacher_train=teacher.train,
        student=_STUDENTS[name],
        student_options=replace(NARROW, dropout=0.05, theta=teacher.options.theta),
        train=_STUDENT_TRAINING,
        abkd=ABKDConfig(beta=0.3),
    )


def _aifb_student() -> DistillConfig:
    """Two bases a layer of width 4: 120 times fewer parameters."""
    teacher = TEACHERS["paper-aifb"]
    return DistillConfig(
        dataset=teacher.dataset,
        teacher=teacher.model,
        teacher_options=teacher.options,
        teacher_train=teacher.train,
        student="rgcn-2x4",
        student_options=replace(teacher.options, num_bases=2, dropout=0.05),
        train=replace(NARROW_TRAINING, epochs=100, lr=0.03, weight_decay=0.0),
    )


def _known(name: str) -> str:
    if name not in TEACHERS:
        raise ValueError(f"preset must be one of {', '.join(TEACHERS)}, got {name!r}")
    return name
