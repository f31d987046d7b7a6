"""A trained model of ours on disk: weights, shape and where it came from, in one safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abkd_fast._storage import load_tensors, save_tensors
from abkd_fast.nn import ModelSpec

_KIND = "model"


@dataclass(frozen=True)
class ModelFile:
    """What a model file says beside the weights.

    Attributes:
        spec: family, depth and width, ``gcnii-4x4``.
        in_channels: width of x.
        out_channels: number of classes.
        options: keyword arguments of the model's class.
        dataset: name of the data it was trained on.
        fingerprint: ``GraphData.fingerprint()`` of that data.
    """

    spec: str
    in_channels: int
    out_channels: int
    options: Mapping[str, Any]
    dataset: str
    fingerprint: str

    def build(self) -> nn.Module:
        """A model of this shape with fresh weights."""
        spec = ModelSpec.parse(self.spec)
        return spec.build(self.in_channels, self.out_channels, **self.options)


def save_model(path: str | Path, model: nn.Module, about: ModelFile) -> None:
    """Write ``model.state_dict()`` and ``about``, atomically."""
    save_tensors(Path(path), model.state_dict(), vars(about), _KIND)


def load_model(path: str | Path) -> tuple[nn.Module, ModelFile]:
    """Read a model in eval mode; ValueError when the file is damaged or not one of ours."""
    tensors, meta = load_tensors(Path(path), _KIND)
    try:
        about = ModelFile(**meta)
        with torch.device("meta"):
            model = about.build()
        model.load_state_dict({k: v.clone() for k, v in tensors.items()}, assign=True)
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} must hold a model and its weights, got: {reason}") from error
    return model.eval(), about
