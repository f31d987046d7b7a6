"""Settings of ``abkd-fast profile``; its flags are made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abkd_fast._checks import check_choice
from abkd_fast.config import DataConfig, ReadOptions
from abkd_fast.data.registry import check_name
from abkd_fast.latency.measure import ENOUGH, check_seconds
from abkd_fast.latency.subjects import FORMS


@dataclass(frozen=True)
class ProfileConfig:
    """profile: the latency of students, beside their teacher."""

    students: tuple[Path, ...] = ()
    """Model files, or folders of distill."""
    teacher: Path | None = None
    """Model file, or folder of train-teacher."""
    dataset: str | None = None
    """A registered data set; default: the one that the first student was trained on."""
    data: Path | None = None
    """Your own data instead: FILE.npz or a folder."""
    root: Path | None = None
    """Folder with the raw files; default: $ABKD_DATA."""
    read: ReadOptions = ReadOptions()
    """How to read --data: as for training."""
    device: str = "cpu"
    """Where models run: cpu, cuda or cuda:N."""
    forms: tuple[str, ...] = ("eager", "flat")
    """Forms of the full-graph pass: eager, flat (one straight line of ops), compile
    (torch.compile), torch-export and aoti (exported programs), cuda_graph (a GPU)."""
    samples: int = ENOUGH
    """Calls timed of everything; 64 give p90, 130 p95, 662 p99."""
    seconds: float = 10.0
    """Of timed calls of everything, at most: slow models get fewer samples."""
    batch: int = 64
    """Nodes of a mini-batch query."""
    clients: tuple[int, ...] = (1, 2)
    """Numbers of threads that ask for single nodes in a closed loop."""
    threads: int | None = None
    """torch's threads; default: torch's own choice."""
    seed: int = 0
    """Of the nodes that are asked for."""
    out: Path = Path("runs/profile")
    """Folder for latency.json, the figures and latency.html."""

    def __post_init__(self) -> None:
        for form in self.forms:
            check_choice("forms", form, FORMS)
        if "cuda_graph" in self.forms and not self.device.startswith("cuda"):
            raise ValueError(f"device must be cuda for the form cuda_graph, got {self.device}")
        if self.dataset is not None:
            check_name(self.dataset)
        DataConfig(device=self.device)
        least = [("samples", self.samples), ("batch", self.batch)]
        least += [("threads", self.threads)] if self.threads is not None else []
        for name, value in [*least, *(("clients", count) for count in self.clients)]:
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        check_seconds(self.seconds)
