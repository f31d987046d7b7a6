"""Typed settings of the objectives that ABKD is compared with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from abkd_fast.distill import AFD, AT, GCRD, GLNN, MSKD, FitNets, GraphAKD, MustaD, SemCKD
from abkd_fast.objective_config import ObjectiveConfig, RunFacts


@dataclass(frozen=True)
class GLNNConfig(ObjectiveConfig):
    """Settings of GLNN, whose student is an MLP."""

    objective = GLNN
    labels_weight: float = 0.0
    """Weight of the labels against the teacher's scores, in [0, 1]."""

    def build(self, run: RunFacts) -> GLNN:
        """The objective, for a run on this task."""
        return GLNN(**asdict(self), activation=run.activation)


@dataclass(frozen=True)
class FitNetsConfig(ObjectiveConfig):
    """Settings of FitNets."""

    objective = FitNets
    projection_dim: int = 256
    """Width that both last hidden layers are projected to."""
    weight: float = 1000.0
    """Weight."""


@dataclass(frozen=True)
class ATConfig(ObjectiveConfig):
    """Settings of attention transfer."""

    objective = AT
    weight: float = 1e5
    """Weight."""


@dataclass(frozen=True)
class AFDConfig(ObjectiveConfig):
    """Settings of AFD."""

    objective = AFD
    attention_dim: int = 128
    """Width of queries and keys."""
    samples: int = 1024
    """Nodes drawn in each step."""
    weight: float = 200.0
    """Weight."""


@dataclass(frozen=True)
class SemCKDConfig(ObjectiveConfig):
    """Settings of SemCKD."""

    objective = SemCKD
    attention_dim: int = 64
    """Width of queries and keys."""
    samples: int = 256
    """Nodes drawn in each step, whose similarities are compared."""
    weight: float = 400.0
    """Weight."""


@dataclass(frozen=True)
class MSKDConfig(ObjectiveConfig):
    """Settings of MSKD, which has several teachers."""

    objective = MSKD
    teachers: tuple[Path, ...] = ()
    """Folders of train-teacher or model files: teachers of other depths, beside --teacher."""
    attention_dim: int = 64
    """Width of queries and keys."""
    scale: float = 100.0
    """L1 distance of neighbours at which their similarity has fallen to 1 / e."""
    weight: float = 7.0
    """Weight."""

    @property
    def further_teachers(self) -> tuple[Path, ...]:
        """Those of --mskd.teachers."""
        return self.teachers

    def check_complete(self) -> None:
        """Raise ValueError without further teachers."""
        if not self.teachers:
            raise ValueError(
                "mskd.teachers must name one teacher or more beside --teacher, got none"
            )

    def build(self, run: RunFacts) -> MSKD:
        """The objective, with the further teachers of the run."""
        return MSKD(**asdict(self) | {"teachers": run.teachers})


@dataclass(frozen=True)
class GraphAKDConfig(ObjectiveConfig):
    """Settings of GraphAKD."""

    objective = GraphAKD
    weight: float = 1.0
    """Weight of the student's loss and of the discriminators'."""

    def build(self, run: RunFacts) -> GraphAKD:
        """The objective, for data with these labels."""
        return GraphAKD(**asdict(self), labels=run.labels)


@dataclass(frozen=True)
class MustaDConfig(ObjectiveConfig):
    """Settings of MustaD, whose student is GCNII with --student-options.shared."""

    objective = MustaD
    temperature: float = 2.0
    """Divides the teacher's scores."""
    kernel: str = "kl"
    """What compares the last hidden layers: kl or distance."""
    logit_weight: float = 1.0
    """Weight of the class scores' divergence."""
    hidden_weight: float = 0.01
    """Weight of the last hidden layers' kernel."""

    def build(self, run: RunFacts) -> MustaD:
        """The objective, for a run whose classes exclude each other."""
        if run.activation != "softmax":
            raise ValueError(
                f"mustad must have classes that exclude each other, got task {run.task}; use kd"
            )
        return MustaD(**asdict(self))


@dataclass(frozen=True)
class GCRDConfig(ObjectiveConfig):
    """Settings of G-CRD."""

    objective = GCRD
    projection_dim: int = 256
    """Width that both last hidden layers are projected to."""
    samples: int = 4096
    """Nodes drawn in each step, which are told from each other."""
    temperature: float = 0.075
    """Divides the cosines."""
    weight: float = 0.1
    """Weight."""
