"""Typed settings of every distillation objective: their flags and their registry.

To add an objective: its class in ``distill/<name>.py``, its settings as a subclass of
:class:`ObjectiveConfig`, and a field of :class:`ObjectiveSettings`, whose name is what
``--objective`` and the flags call it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from abkd_fast._baseline_settings import AFDConfig as AFDConfig
from abkd_fast._baseline_settings import ATConfig as ATConfig
from abkd_fast._baseline_settings import FitNetsConfig as FitNetsConfig
from abkd_fast._baseline_settings import GCRDConfig as GCRDConfig
from abkd_fast._baseline_settings import GLNNConfig as GLNNConfig
from abkd_fast._baseline_settings import GraphAKDConfig as GraphAKDConfig
from abkd_fast._baseline_settings import MSKDConfig as MSKDConfig
from abkd_fast._baseline_settings import MustaDConfig as MustaDConfig
from abkd_fast._baseline_settings import SemCKDConfig as SemCKDConfig
from abkd_fast._checks import check_choice
from abkd_fast.distill import ABKD, KD, STRIDE, Objective
from abkd_fast.objective_config import ObjectiveConfig as ObjectiveConfig
from abkd_fast.objective_config import RunFacts as RunFacts


@dataclass(frozen=True)
class KDConfig(ObjectiveConfig):
    """Settings of logit distillation."""

    objective = KD
    alpha: float = 0.9
    """Weight of the teacher's scores against the labels."""
    temperature: float = 1.0
    """Softmax temperature."""

    def build(self, run: RunFacts) -> KD:
        """The objective, for a run on this task."""
        return KD(**asdict(self), activation=run.activation)


@dataclass(frozen=True)
class ABKDConfig(ObjectiveConfig):
    """Settings of the ABKD objective."""

    objective: ClassVar[type[ABKD]] = ABKD
    attention_dim: int = 64
    """Width of queries, keys and layer embeddings."""
    subspace_dim: int | None = None
    """Width after the shared map P; None = attention_dim."""
    map: str = "attention"
    """attention, or a fixed map to compare with: uniform, last, diagonal."""
    softmax_over: str = "student"
    """Axis of the softmax: student or teacher."""
    pool: bool = False
    """Compare mean states instead of node by node."""
    normalize: str = "standardize"
    """none, standardize (teacher states centred, unit variance per layer) or rows."""
    nodes: str = "all"
    """Nodes that are compared: all, or train."""
    freeze_teacher_map: bool = True
    """Keep the teacher's projections fixed at random, so that the loss cannot collapse."""
    beta: float = 1.0
    """Weight."""
    temperature: float = 1.0
    """Divides the scores under the map's softmax."""
    heads: int = 1
    """Attention maps, each with queries and keys of its own, that are averaged."""
    shared_maps: bool = False
    """One map for all layers of equal width, instead of one a layer."""
    identity_subspace: bool = False
    """Without the shared map P."""

    def __post_init__(self) -> None:
        check_choice("nodes", self.nodes, ("all", "train"))
        super().__post_init__()

    def build(self, run: RunFacts) -> ABKD:
        """The objective, for data with this split."""
        settings = asdict(self)
        mask = run.train_mask if settings.pop("nodes") == "train" else None
        return self.objective(mask=mask, **settings)


@dataclass(frozen=True)
class STRIDEConfig(ABKDConfig):
    """Settings of STRIDE: ABKD's, and the structure term's."""

    objective = STRIDE
    structure_weight: float = 0.1
    """Weight of the structure term against the embedding term."""
    structure_dim: int = 64
    """Width that every layer is projected to for it."""
    structure_temperature: float = 0.075
    """Divides the cosines."""
    samples: int = 256
    """Nodes drawn in each step, which are told from each other."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """One field for every objective: the registry."""

    kd: KDConfig = KDConfig()
    abkd: ABKDConfig = ABKDConfig()
    glnn: GLNNConfig = GLNNConfig()
    fitnets: FitNetsConfig = FitNetsConfig()
    at: ATConfig = ATConfig()
    afd: AFDConfig = AFDConfig()
    semckd: SemCKDConfig = SemCKDConfig()
    mskd: MSKDConfig = MSKDConfig()
    graphakd: GraphAKDConfig = GraphAKDConfig()
    mustad: MustaDConfig = MustaDConfig()
    gcrd: GCRDConfig = GCRDConfig()
    stride: STRIDEConfig = STRIDEConfig()

    def chosen(self, objective: str) -> dict[str, ObjectiveConfig]:
        """Settings by name of the terms of ``objective``, in the registry's order.

        Args:
            objective: names joined by "+", or "none".

        Raises:
            ValueError: a name is unknown, or there twice, or "none" is not alone.
        """
        names = objective.split("+")
        for name in names:
            check_choice("objective", name, OBJECTIVES)
        if len(set(names)) < len(names) or ("none" in names and len(names) > 1):
            raise ValueError(f"objective must name each of its terms once, got {objective!r}")
        return {name: getattr(self, name) for name in OBJECTIVES[1:] if name in names}

    def build_objective(self, objective: str, run: RunFacts) -> Objective | None:
        """The sum of the terms of ``objective``, whose order does not matter; None for "none"."""
        terms = [settings.build(run) for settings in self.chosen(objective).values()]
        return sum(terms[1:], start=terms[0]) if terms else None


OBJECTIVES = ("none", *(field.name for field in fields(ObjectiveSettings)))
"""What ``--objective`` may name; all but "none" can be joined by "+"."""
