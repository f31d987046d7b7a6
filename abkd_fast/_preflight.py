"""What is looked at before a run of the shell starts: its models' layers, its memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from abkd_fast.capture import match_layers
from abkd_fast.config import CacheConfig, DistillConfig, ModelConfig, SettingError, TrainConfig
from abkd_fast.data import GraphData
from abkd_fast.model_file import ModelFile
from abkd_fast.nn import ModelSpec
from abkd_fast.plan import MemoryPlan, memory_plan


def about_model(model: str, options: ModelConfig, data: GraphData) -> ModelFile:
    """What a file of a model FAMILY-LAYERSxWIDTH for ``data`` says of it."""
    family = ModelSpec.parse(model).family
    if family != "rgcn" and data.x is None:
        raise SettingError(f"model must be rgcn for {data.name!r}, which has no features: {model}")
    return ModelFile(
        spec=model,
        in_channels=data.num_features,
        out_channels=data.num_classes,
        options=options.options(family, data) | (_typed(data) if family == "rgcn" else {}),
        dataset=data.name,
        fingerprint=data.fingerprint(),
    )


def _typed(data: GraphData) -> dict[str, object]:
    """What R-GCN must know of the graph."""
    if data.relations is None:
        raise SettingError(f"model must not be rgcn for {data.name!r}, which has no relations")
    target, *others = data.relations.num_nodes
    featureless = data.x is None and not others
    embedded = [kind for kind in others if kind not in data.other_x]
    return {
        "num_nodes": data.relations.num_nodes,
        "num_relations": data.relations.num_relations,
        "embedded": [target, *embedded] if data.x is None and others else embedded,
        "featureless": featureless,
    }


def check_layers(name: str, spec: str, layers: str | None, data: GraphData) -> nn.Module:
    """The model without its weights; SettingError unless it has the layers to be aligned."""
    with torch.device("meta"):
        model = about_model(spec, ModelConfig(), data).build()
    try:
        match_layers(model, layers)
    except ValueError as error:
        found = "a hidden layer" if layers is None else "layers that match --teacher-layers"
        raise SettingError(
            f"{name} must have {found} to be compared, got {spec}: {error}"
        ) from error
    return model


def plan_memory(
    model: str,
    data: GraphData,
    config: DistillConfig | None = None,
    teacher: nn.Module | None = None,
    layers: str | Sequence[str] | None = None,
    train: TrainConfig | None = None,
) -> list[MemoryPlan]:
    """Memory of training ``model``, on a teacher if there is one; ValueError if it cannot fit.

    ``train`` is said where there is no ``config``.
    """
    with torch.device("meta"):
        student = about_model(model, ModelConfig(), data).build()
    cache = CacheConfig() if config is None else config.cache
    train = config.train if config is not None else train or TrainConfig()
    plans = memory_plan(
        data,
        student,
        teacher,
        teacher_layers=layers,
        dtype=cache.torch_dtype,
        storage=cache.storage,
        activations=train.activations,
    )
    return [plan.check() for plan in plans]
