"""Settings refuse what cannot work, before anything is read or trained."""

from dataclasses import replace
from pathlib import Path

import pytest

from abkd_fast import ABKD, KD, TrainConfig
from abkd_fast.config import DistillConfig
from abkd_fast.objective_settings import OBJECTIVES, MSKDConfig, ObjectiveSettings, RunFacts


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


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("magic", "objective must be one of none, kd, abkd.*got 'magic'"),
        ("kd+magic", "objective must be one of none, kd, abkd.*got 'magic'"),
        ("", "objective must be one of none.*got ''"),
        ("kd+kd", r"objective must name each of its terms once, got 'kd\+kd'"),
        ("none+kd", r"objective must name each of its terms once, got 'none\+kd'"),
    ],
)
def test_config_rejects_other_objectives(objective, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(objective=objective)


def test_objectives_are_sums_in_any_order():
    config = DistillConfig(objective="abkd+kd")
    objective = config.build_objective("abkd+kd", RunFacts())
    assert repr(objective) == repr(config.build_objective("kd+abkd", RunFacts()))
    assert [type(term) for term in objective.terms()] == [KD, ABKD]
    assert config.build_objective("none", RunFacts()) is None
    assert config.needs_states and not replace(config, objective="kd").needs_states


@pytest.mark.parametrize("name", OBJECTIVES[1:])
def test_every_objective_is_made_from_its_settings(name):
    settings = getattr(ObjectiveSettings(), name)
    assert type(settings.build(RunFacts())) is settings.objective
    mskd = MSKDConfig(teachers=(Path("shallow"),))
    config = DistillConfig(objective=name, mskd=mskd)
    assert config.terms == {name: mskd if name == "mskd" else settings}


def test_objectives_that_lack_something_are_refused():
    with pytest.raises(ValueError, match="mskd.teachers must name one teacher or more beside"):
        DistillConfig(objective="kd+mskd")
