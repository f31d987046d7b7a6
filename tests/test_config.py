"""Settings refuse what cannot work, before anything is read or trained."""

import pytest

from abkd_fast import TrainConfig
from abkd_fast.config import DistillConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"lr": -1.0}, "lr must be > 0 and finite, got -1.0"),
        ({"objective_lr": 0.0}, "objective_lr must be > 0 and finite, got 0.0"),
        ({"patience": -3}, "patience must be >= 1 or None, got -3"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
        ({"monitor": "test_acc"}, "monitor must be one of val_loss, val_acc"),
        ({"schedule": "step"}, "schedule must be one of constant, onecycle"),
    ],
)
def test_config_rejects(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu", "device must be cpu, cuda or cuda:N, got 'tpu'"), ("meta", "device must be cpu")],
)
def test_config_rejects_other_devices(device, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(device=device)
