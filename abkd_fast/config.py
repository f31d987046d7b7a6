"""Typed settings of models, training and objectives; the shell's flags are made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from abkd_fast._cache_config import CacheConfig as CacheConfig
from abkd_fast._checks import check_choice
from abkd_fast.data import ReadOptions
from abkd_fast.data.registry import check_name
from abkd_fast.distill import ABKD, KD
from abkd_fast.nn import ModelSpec

OBJECTIVES = ("none", "kd", "abkd", "abkd+kd")


class SettingError(ValueError):
    """A setting is wrong, as only the data or a model could show."""


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained. Adam; the best epoch on validation is kept."""

    epochs: int = 800
    """Largest number of epochs."""
    patience: int | None = 100
    """Stop after this many epochs without a better validation value; None never stops early."""
    monitor: str = "val_loss"
    """What "better" means: val_loss, or val_acc with ties broken by val_loss."""
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

    def __post_init__(self) -> None:
        check_choice("monitor", self.monitor, ("val_loss", "val_acc"))
        check_choice("schedule", self.schedule, ("constant", "onecycle"))
        if self.autocast is not None:
            check_choice("autocast", self.autocast, ("bfloat16",))
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


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a model beside its depth and width."""

    dropout: float = 0.5
    """Dropout probability before every layer."""
    alpha: float = 0.1
    """GCNII: strength of the initial residual."""
    theta: float = 0.5
    """GCNII: identity mapping (lambda in the paper)."""
    init: str = "uniform"
    """GCNII: uniform (the authors') or xavier (keeps very narrow students alive)."""

    def __post_init__(self) -> None:
        check_choice("init", self.init, ("uniform", "xavier"))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if not 0 <= self.theta < float("inf"):
            raise ValueError(f"theta must be >= 0 and finite, got {self.theta}")

    def options(self, family: str) -> dict[str, object]:
        """Keyword arguments for a model of family."""
        if family == "gcnii":
            return asdict(self)
        return {"dropout": self.dropout}


@dataclass(frozen=True)
class ABKDConfig:
    """Settings of the ABKD objective."""

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

    def __post_init__(self) -> None:
        check_choice("nodes", self.nodes, ("all", "train"))
        self.build(None)  # its checks

    def build(self, train_mask: Tensor | None) -> ABKD:
        """The objective, for data with this split."""
        settings = asdict(self)
        mask = train_mask if settings.pop("nodes") == "train" else None
        return ABKD(mask=mask, **settings)


@dataclass(frozen=True)
class KDConfig:
    """Settings of logit distillation."""

    alpha: float = 0.9
    """Weight of the teacher's scores against the labels."""
    temperature: float = 1.0
    """Softmax temperature."""

    def __post_init__(self) -> None:
        KD(**asdict(self))  # its checks


NARROW = ModelConfig(dropout=0.1, init="xavier")
"""Defaults for narrow students."""

NARROW_TRAINING = TrainConfig(lr=0.02, schedule="onecycle", patience=None, monitor="val_acc")
"""Defaults for training narrow students: seeds differ least with a full one-cycle schedule."""


@dataclass(frozen=True)
class DataConfig:
    """Which graph."""

    dataset: str = "digits"
    """A registered data set; abkd-fast datasets lists them. Not used with --data."""
    data: Path | None = None
    """Your own data instead: FILE.npz or a folder (see docs/data.md)."""
    root: Path | None = None
    """Folder with the raw files, ROOT/cora/ind.cora.x and so on; default: $ABKD_DATA."""
    read: ReadOptions = ReadOptions()
    """How to read --data."""
    device: str = "cpu"
    """Where models run: cpu, cuda or cuda:N."""
    capture_step: bool = False
    """On a GPU, capture the training step in a CUDA graph and replay it: the same results in less
    time. Where that is not possible, a line says why."""

    def __post_init__(self) -> None:
        if self.data is None:
            try:
                check_name(self.dataset)
            except ValueError as error:
                raise ValueError(f"dataset: {error}") from None
        _check_device(self.device)


@dataclass(frozen=True)
class TeacherConfig(DataConfig):
    """train-teacher: train a model on labels alone."""

    model: str = "gcnii-64x64"
    """FAMILY-LAYERSxWIDTH; families: gcn, gcnii, mlp."""
    options: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig(epochs=1500)
    seeds: int = 1
    """Number of seeds, 0 .. seeds-1; the best on validation is kept."""
    out: Path = Path("runs/teacher")
    """Folder for the model, metrics.json, the plots and the report; a stopped run goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seeds("seeds", self.seeds)
        _check_spec("model", self.model)


@dataclass(frozen=True)
class DistillConfig(DataConfig):
    """distill: train a student on a teacher."""

    teacher: str = "gcnii-16x64"
    """FAMILY-LAYERSxWIDTH (trained first if it is not under --teachers yet), the folder of
    train-teacher, a model file, or module:function (called with the data, returns a trained
    nn.Module)."""
    student: str = "gcnii-4x4"
    """FAMILY-LAYERSxWIDTH."""
    objective: str = "abkd+kd"
    """none, kd, abkd, or abkd+kd."""
    abkd: ABKDConfig = ABKDConfig()
    kd: KDConfig = KDConfig()
    cache: CacheConfig = CacheConfig()
    student_options: ModelConfig = NARROW
    train: TrainConfig = NARROW_TRAINING
    teacher_options: ModelConfig = ModelConfig()
    teacher_train: TrainConfig = TrainConfig(epochs=1500)
    teacher_seeds: int = 1
    """Seeds of a teacher that has to be trained first; the best on validation is used."""
    teacher_layers: str | None = None
    """Modules of the teacher to align, for example "convs.*"; None = its own hidden layers, which
    a module:function teacher has to name."""
    teachers: Path = Path("runs/teachers")
    """Folder of the teachers that were trained on the way."""
    seeds: int = 1
    """Number of students, seeds 0 .. seeds-1."""
    out: Path = Path("runs/distill")
    """Folder for the students, metrics.json, the plots and the report; a stopped run goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seeds("seeds", self.seeds)
        _check_seeds("teacher_seeds", self.teacher_seeds)
        _check_spec("student", self.student)
        check_choice("objective", "+".join(self.terms), OBJECTIVES)
        if self.teacher_layers is not None and "abkd" not in self.terms:
            raise ValueError(
                f"teacher_layers must be left out where no layers are aligned, got "
                f"{self.teacher_layers!r} with objective {self.objective}"
            )
        if self.trains_teacher:
            _check_teacher(self.teacher)

    @property
    def terms(self) -> list[str]:
        """The objective's terms in alphabetical order."""
        return sorted(self.objective.split("+"))

    @property
    def trains_teacher(self) -> bool:
        """Whether --teacher is a model of ours that is trained unless it has been already."""
        return self.teacher_file is None and ":" not in self.teacher

    @property
    def teacher_file(self) -> Path | None:
        """The model file that --teacher names, itself or by its folder."""
        path = Path(self.teacher)
        if path.is_dir():
            return path / "teacher.safetensors"
        return path if path.suffix == ".safetensors" else None


def _check_device(name: str) -> None:
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be there, got {name!r} and torch finds no GPU")


def _check_seeds(name: str, seeds: int) -> None:
    if seeds < 1:
        raise ValueError(f"{name} must be >= 1, got {seeds}")


def _check_spec(name: str, text: str) -> None:
    try:
        ModelSpec.parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_teacher(text: str) -> None:
    try:
        ModelSpec.parse(text)
    except ValueError:
        raise ValueError(
            "teacher must be FAMILY-LAYERSxWIDTH (for example gcnii-16x64), a folder of "
            f"train-teacher, a .safetensors file or module:function, got {text!r}"
        ) from None
