"""A trained model's file, and the data that it is run on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from abkd_fast import data as datasets
from abkd_fast.config import ReadOptions, SettingError
from abkd_fast.data import GraphData
from abkd_fast.model_file import ModelFile


def model_path(path: str | Path, role: str = "student") -> Path:
    """The model file that a path names: itself, or that of a run's folder.

    Of several seeds the one that is best on validation, as the run's metrics.json says.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    seeds = sorted(path.glob("seed*/student.safetensors"))
    plain = [path / f"{name}.safetensors" for name in (role, "student", "teacher")]
    found = [file for file in plain if file.is_file()]
    if role == "student" and seeds:
        best = path / f"seed{_best_seed(path / 'metrics.json')}" / "student.safetensors"
        return best if best in seeds else seeds[0]
    if found:
        return found[0]
    raise ValueError(
        f"{role} must be a model file or the folder of a run that has one, got {str(path)!r}; "
        "abkd-fast distill and train-teacher write them to their --out"
    )


def _best_seed(metrics: Path) -> int:
    try:
        content = json.loads(metrics.read_text())
        values = content["student"]["val"]["values"]
        return int(content["seeds"][max(range(len(values)), key=values.__getitem__)])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def data_of(
    path: Path | None, dataset: str | None, root: Path | None, read: ReadOptions, trained_on: str
) -> GraphData:
    """The data at ``path``, or a registered set: ``dataset``, else the model's own."""
    if path is not None:
        return datasets.load_path(path, **asdict(read))
    name = dataset or trained_on
    if name not in datasets.names():
        raise SettingError(
            f"dataset must be given: {name!r}, which the model was trained on, is none of "
            "the registered ones; pass --dataset NAME or --data PATH"
        )
    return datasets.load(name, root=root)


def check_fits(about: ModelFile, data: GraphData, name: str) -> None:
    """Raise SettingError unless the model ``name`` is of the data's features and classes.

    Other data of the same sizes are allowed; a line on stderr says so.
    """
    sizes = data.num_features, data.num_classes
    if sizes != (about.in_channels, about.out_channels):
        raise SettingError(
            f"data must have the {about.in_channels} features and {about.out_channels} classes of "
            f"{name}, got {sizes[0]} and {sizes[1]} ({data.name})"
        )
    if about.fingerprint != data.fingerprint():
        print(
            f"abkd_fast: {name} was trained on other data than {data.name} (another graph, other "
            f"features, labels or split than {about.dataset!r} had then)",
            file=sys.stderr,
        )
