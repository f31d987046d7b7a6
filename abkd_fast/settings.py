"""Typed settings of training, models and the teacher's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkd_fast._activations import CHOICES
from abkd_fast._checks import check_choice
from abkd_fast._teacher_states import check_storage
from abkd_fast.data import GraphData, GraphLevelData


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained. Adam; the best epoch on validation is kept."""

    epochs: int = 800
    """Largest number of epochs."""
    patience: int | None = 100
    """Stop after this many epochs without a better validation value; None never stops early."""
    monitor: str = "val_loss"
    """What "better" means: val_loss, or val_metric with ties broken by val_loss: accuracy, or what
    the data's task is judged by. val_acc is its former name."""
    lr: float = 0.01
    """Learning rate; the peak with schedule "onecycle"."""
    objective_lr: float | None = None
    """Learning rate of the objective's own parameters, likewise a peak; None = lr."""
    schedule: str = "constant"
    """constant, or onecycle (rise over 30 % of the epochs, then fall along a cosine)."""
    cycle_momentum: bool = False
    """Under onecycle, move Adam's first beta from 0.95 to 0.85 and back while the learning rate
    rises and falls (torch's default); otherwise it stays at 0.9."""
    weight_decay: float = 5e-4
    """L2 penalty on the student's parameters, not on the objective's."""
    conv_weight_decay: float | None = None
    """L2 penalty on the parameters under convs.; None = weight_decay."""
    checkpoint_every: int = 50
    """Epochs between checkpoints; a killed run loses at most this many."""
    snapshots: int = 60
    """How often the attention map is kept over a full-length run."""
    autocast: str | None = None
    """bfloat16: the student's layers take and store bfloat16 and add up in float32; parameters,
    gradients, the loss and its statistics stay float32. None: all is float32."""
    activations: str | None = None
    """What the student's layers keep for the backward: bfloat16 (rounded, computed in float32),
    recompute (their inputs; each layer runs again), or None: everything as it is."""

    def __post_init__(self) -> None:
        check_choice("monitor", self.monitor, ("val_loss", "val_acc", "val_metric"))
        check_choice("schedule", self.schedule, ("constant", "onecycle"))
        if self.autocast is not None:
            check_choice("autocast", self.autocast, ("bfloat16",))
        if self.activations is not None:
            check_choice("activations", self.activations, CHOICES)
        for name in ("epochs", "checkpoint_every", "snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("lr", "objective_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1 or None, got {self.patience}")
        for name in ("weight_decay", "conv_weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be >= 0, got {value}")


# Settings of a model's own; the others have dropout alone.
_OPTIONS = {  # of each family, beside dropout
    "gat": ("heads", "out_heads", "act", "v2"),
    "gcn": ("norm",),
    "gcnii": ("alpha", "theta", "init", "shared"),
    "mlp": ("norm",),
    "rgcn": ("num_bases",),
    "sage": ("norm", "aggr"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a model beside its depth and width."""

    dropout: float = 0.5
    """Dropout probability before every layer."""
    alpha: float = 0.1
    """GCNII: strength of the initial residual."""
    theta: float = 0.5
    """GCNII: identity mapping (lambda in the paper)."""
    pool: str = "mean"
    """Graph-level data: mean or sum over a graph's nodes."""
    init: str = "uniform"
    """GCNII: uniform (the authors') or xavier (keeps very narrow students alive)."""
    shared: bool = False
    """GCNII: one layer's weight at every depth (MustaD's student)."""
    norm: str | None = None
    """GCN, SAGE, MLP: batch_norm normalises before every ReLU."""
    aggr: str = "mean"
    """SAGE: how neighbours are aggregated: mean, max, min or sum."""
    num_bases: int | None = None
    """R-GCN: bases that the relations' weights are combined from; None = one weight a relation."""
    heads: int = 1
    """GAT: attention heads, which share a hidden layer's width."""
    out_heads: int | None = None
    """GAT: heads of the last layer, whose scores are averaged; None = heads."""
    act: str = "relu"
    """GAT: relu or elu."""
    v2: bool = False
    """GAT: score as GATv2."""

    def __post_init__(self) -> None:
        check_choice("init", self.init, ("uniform", "xavier"))
        check_choice("aggr", self.aggr, ("mean", "max", "min", "sum"))
        check_choice("act", self.act, ("relu", "elu"))
        check_choice("pool", self.pool, ("mean", "sum"))
        if self.norm is not None:
            check_choice("norm", self.norm, ("batch_norm",))
        for name in ("heads", "out_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.num_bases is not None and self.num_bases < 1:
            raise ValueError(f"num_bases must be >= 1 or None, got {self.num_bases}")
        if not 0 <= self.theta < float("inf"):
            raise ValueError(f"theta must be >= 0 and finite, got {self.theta}")

    def options(self, family: str, data: GraphData) -> dict[str, object]:
        """Keyword arguments for a model of family on these data."""
        pool = ("pool",) if isinstance(data, GraphLevelData) else ()
        names = ("dropout", *_OPTIONS[family], *pool)
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class CacheConfig:
    """Where the teacher's hidden states are kept, and how."""

    storage: str = "memory"
    """memory; pinned (page-locked, needs a GPU); mmap: a file in --out, written layer by layer and
    read in place, for states that do not fit in memory."""
    dtype: str = "float32"
    """float32, or bfloat16 for half the size."""

    def __post_init__(self) -> None:
        check_storage(self.storage)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of that name."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True)
class DistributedConfig:
    """What processes that torchrun started agree on; not used without it.

    Every process trains on its METIS part of the whole graph, or, with --batches, on its share of
    the nodes of a batch.
    """

    timeout: float = 300.0
    """Seconds that a process waits for the slowest one before it gives up."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be > 0 and finite, got {self.timeout}")
