"""Graph-level distillation on published data; slow."""

import pytest
import torch

from abkd_fast import ABKD, KD, Distiller, TrainConfig
from abkd_fast.data import load
from abkd_fast.metrics import count_parameters
from abkd_fast.nn import ModelSpec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activation", "least"), [("mutag", "softmax", 60), ("ogbg-molbace", "sigmoid", 55)]
)
def test_distilling_real_graphs(abkd_data, tmp_path, monkeypatch, name, activation, least):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = load(name, root=abkd_data)
    config = TrainConfig(epochs=40, patience=None, monitor="val_metric")

    def build(spec):
        torch.manual_seed(0)
        options = {"pool": "mean", "dropout": 0.1}
        return ModelSpec.parse(spec).build(data.num_features, data.num_classes, **options)

    teacher, student = build("gcn-4x32"), build("gcn-2x4")
    Distiller(None, teacher, data, config=config, callbacks=()).fit()
    objective = KD(activation=activation) + ABKD(normalize="standardize", freeze_teacher_map=True)
    run = Distiller(teacher, student, data, objective, config=config, callbacks=()).fit()
    assert run.attention.shape == (4, 2)
    assert count_parameters(teacher) > 8 * count_parameters(student)
    assert run.metrics["student"]["val"] > least
    assert run.history[-1]["kd"] < run.history[0]["kd"]
