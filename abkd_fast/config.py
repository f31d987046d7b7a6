"""Typed settings of the shell's commands; its flags are made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from abkd_fast.batches import BatchConfig
from abkd_fast.compression import parse_ratio
from abkd_fast.data import ReadOptions
from abkd_fast.data.registry import check_name
from abkd_fast.nn import ModelSpec
from abkd_fast.objective_settings import ABKDConfig as ABKDConfig
from abkd_fast.objective_settings import KDConfig as KDConfig
from abkd_fast.objective_settings import ObjectiveConfig, ObjectiveSettings
from abkd_fast.settings import CacheConfig as CacheConfig
from abkd_fast.settings import DistributedConfig as DistributedConfig
from abkd_fast.settings import ModelConfig as ModelConfig
from abkd_fast.settings import TrainConfig as TrainConfig


class SettingError(ValueError):
    """A setting is wrong, as only the data or a model could show."""


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
    batches: BatchConfig = BatchConfig()
    """Mini-batches instead of steps over the whole graph."""
    inductive: bool = False
    """Train on the graph among the training nodes only; validate and test on all of it."""

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
    """FAMILY-LAYERSxWIDTH; families: gat, gcn, gcnii, mlp, sage, rgcn (typed data)."""
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
class DistillConfig(ObjectiveSettings, DataConfig):
    """distill: train a student on a teacher."""

    teacher: str = "gcnii-16x64"
    """FAMILY-LAYERSxWIDTH (trained first if it is not under --teachers yet), the folder of
    train-teacher, a model file, or module:function (called with the data, returns a trained
    nn.Module)."""
    student: str = "gcnii-4x4"
    """FAMILY-LAYERSxWIDTH."""
    compression: str | None = None
    """Wanted compression, for example 60x, in place of --student: takes the largest student of the
    teacher's family (of --student's, for a teacher of your own) that is so many times smaller."""
    objective: str = "abkd+kd"
    """none, or names of objectives joined by "+", each with flags of its own: see
    docs/objectives.md."""
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
    distributed: DistributedConfig = DistributedConfig()
    out: Path = Path("runs/distill")
    """Folder for the students, metrics.json, the plots and the report; a stopped run goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seeds("seeds", self.seeds)
        _check_seeds("teacher_seeds", self.teacher_seeds)
        _check_spec("student", self.student)
        if self.compression is not None:
            parse_ratio(self.compression)
        for settings in self.terms.values():
            settings.check_complete()
        if self.teacher_layers is not None and not self.needs_states:
            raise ValueError(
                f"teacher_layers must be left out where no layers are aligned, got "
                f"{self.teacher_layers!r} with objective {self.objective}"
            )
        if self.trains_teacher:
            _check_teacher(self.teacher)

    @property
    def terms(self) -> dict[str, ObjectiveConfig]:
        """Settings of the objective's terms by their names; none for "none"."""
        return self.chosen(self.objective)

    @property
    def needs_states(self) -> bool:
        """Whether hidden states of teacher and student are compared."""
        return any(settings.objective.needs_states for settings in self.terms.values())

    @property
    def further_teachers(self) -> list[Path]:
        """Model files of the teachers that terms of the objective need beside --teacher."""
        paths = [path for settings in self.terms.values() for path in settings.further_teachers]
        return [path / "teacher.safetensors" if path.is_dir() else path for path in paths]

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
