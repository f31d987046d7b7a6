"""Typed settings of the objectives that compare structure: similarities between nodes."""

from __future__ import annotations

from dataclasses import dataclass

from abkd_fast.distill import CKA, GSP, LSP, RKD, SP
from abkd_fast.objective_config import ObjectiveConfig


@dataclass(frozen=True)
class LSPConfig(ObjectiveConfig):
    """Settings of local structure preserving."""

    objective = LSP
    kernel: str = "rbf"
    """Similarity of two nodes: rbf, cosine, poly or l2."""
    c: float = 0.0
    """Of poly: added to the product."""
    power: int = 2
    """Of poly: its power."""
    weight: float = 100.0
    """Weight."""


@dataclass(frozen=True)
class GSPConfig(ObjectiveConfig):
    """Settings of global structure preserving."""

    objective = GSP
    kernel: str = "rbf"
    """Similarity of two nodes: rbf, cosine, poly or l2."""
    c: float = 0.0
    """Of poly: added to the product."""
    power: int = 2
    """Of poly: its power."""
    samples: int = 2048
    """Nodes drawn in each step, all pairs of which are compared."""
    weight: float = 100.0
    """Weight."""


@dataclass(frozen=True)
class SPConfig(ObjectiveConfig):
    """Settings of similarity-preserving distillation."""

    objective = SP
    weight: float = 3000.0
    """Weight; terms shrink as 1 / N."""


@dataclass(frozen=True)
class RKDConfig(ObjectiveConfig):
    """Settings of relational knowledge distillation."""

    objective = RKD
    distance_weight: float = 25.0
    """Weight of the pairwise distances."""
    angle_weight: float = 50.0
    """Weight of the angles of triples."""
    samples: int = 128
    """Nodes drawn in each step."""


@dataclass(frozen=True)
class CKAConfig(ObjectiveConfig):
    """Settings of CKA."""

    objective = CKA
    map: str = "uniform"
    """Layer pairs that count: uniform, last or diagonal."""
    weight: float = 1.0
    """Weight."""
