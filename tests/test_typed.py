"""Typed graphs through GraphData, TeacherCache, Distiller, model files and the shell."""

import json

import pytest
import torch
from helpers import small_data
from typed_data import _replaced, typed_data

import abkd_fast as af
from abkd_fast._preflight import about_model
from abkd_fast.cli import main
from abkd_fast.config import ModelConfig, SettingError, TrainConfig
from abkd_fast.data import GraphData

SHORT = TrainConfig(epochs=3, patience=None)


def model_of(data, spec, **options):
    return about_model(spec, ModelConfig(dropout=0.2, **options), data).build()


@pytest.mark.parametrize("features", [True, False])
def test_distils_states_of_the_target_type(features, tmp_path):
    data = typed_data(features)
    teacher = model_of(data, "rgcn-3x6")
    cache = af.TeacherCache.build(teacher, data)
    assert cache.states.shape == (60, 12) and cache.widths == [6, 6]
    student = model_of(data, "rgcn-2x4", num_bases=2)
    objective = af.KD() + af.ABKD()
    result = af.Distiller(
        cache, student, data, objective, config=SHORT, out=tmp_path, callbacks=[]
    ).fit()
    assert result.attention.shape == (2, 1)
    assert result.metrics["compression_ratio"] > 1


def test_features_of_every_type_are_used():
    data = typed_data()
    model = model_of(data, "rgcn-2x4").eval()
    assert [*model.embeddings] == ["author"]
    out = model(*data.arguments(model))
    changed = _replaced(
        data, relations=data.relations, other_x={"topic": data.other_x["topic"] + 1}
    )
    assert out.shape == (60, 3) and not torch.equal(out, model(*changed.arguments(model)))
    assert changed.fingerprint() != data.fingerprint()
    assert "(dense)" in repr(data) and "(none)" in repr(typed_data(False))
    assert data.to("cpu").fingerprint() == data.fingerprint()


def test_model_files_keep_the_types(tmp_path):
    data = typed_data()
    model = model_of(data, "rgcn-2x4").eval()
    about = about_model("rgcn-2x4", ModelConfig(dropout=0.2), data)
    af.save_model(tmp_path / "model.safetensors", model, about)
    again, _ = af.load_model(tmp_path / "model.safetensors")
    arguments = data.arguments(model)
    assert torch.equal(again(*arguments), model(*arguments))


def test_settings_that_do_not_fit():
    with pytest.raises(SettingError, match="model must not be rgcn for 'small', which has no rel"):
        model_of(small_data(), "rgcn-2x4")
    with pytest.raises(SettingError, match="model must be rgcn for 'typed', which has no features"):
        model_of(typed_data(False), "gcn-2x4")
    with pytest.raises(ValueError, match="num_bases must be >= 1 or None, got 0"):
        ModelConfig(num_bases=0)


def test_graph_data_refuses_types_that_do_not_fit():
    data, typed = small_data(), typed_data()
    with pytest.raises(ValueError, match="relations must be given where x is None"):
        _replaced(data, x=None)
    with pytest.raises(
        ValueError, match="relations must have the N=60 nodes of graph as its first"
    ):
        graph = af.RelationalGraph.from_relations({"paper": 3}, {})
        _replaced(data, relations=graph)
    with pytest.raises(ValueError, match="other_x must be of other node types, got 'venue'"):
        _replaced(data, relations=typed.relations, other_x={"venue": torch.ones(2, 8)})
    with pytest.raises(ValueError, match=r"other_x\['topic'\] must be \[3, 8\] as x, got \[3, 7\]"):
        _replaced(data, relations=typed.relations, other_x={"topic": torch.ones(3, 7)})


def test_objectives_see_the_graph_of_the_target_type():
    data = typed_data()
    assert isinstance(data, GraphData) and data.graph.shape == (60, 60)


@pytest.mark.usefixtures("abkd_data")
def test_the_shell_trains_on_aifb(tmp_path, capsys):
    flags = ["--preset", "paper-aifb", "--train.epochs", "2", "--out", str(tmp_path)]
    main(["train-teacher", *flags])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["student"]["parameters"] == 91 * 8285 * 16 + 16 + 91 * 16 * 4 + 4
    assert metrics["dataset"]["num_edges"] == 58086
    assert "report" in capsys.readouterr().out
