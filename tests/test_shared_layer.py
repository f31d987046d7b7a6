"""GCNII with one layer's weight at every depth, MustaD's student."""

import pytest
import torch
from helpers import small_data

from abkd_fast.capture import Recorder
from abkd_fast.config import ModelConfig
from abkd_fast.metrics import count_parameters
from abkd_fast.model_file import ModelFile, load_model, save_model
from abkd_fast.nn import GCNII, ModelSpec


def untied(shared, depth):
    """A model whose layers hold copies of the one weight."""
    model = GCNII(8, 4, depth, 3, dropout=shared.dropout)
    model.lins.load_state_dict(shared.lins.state_dict())
    for conv in model.convs:
        conv.weight1.data.copy_(shared.convs[0].weight1.data)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_shared_layer_is_the_same_weight_at_every_depth(dropout):
    data = small_data()
    shared = GCNII(8, 4, 5, 3, dropout=dropout, shared=True)
    model = untied(shared, 5)
    outs, grads = [], []
    for each in (shared, model):
        torch.manual_seed(1)
        out = each(data.x, data.graph)
        weights = [conv.weight1 for conv in each.convs]
        outs.append(out)
        grads.append(sum(torch.autograd.grad(out.square().sum(), weights)))
    torch.testing.assert_close(*outs, rtol=0, atol=0)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("depth", [1, 4, 64])
def test_parameters_do_not_grow_with_depth(depth):
    model = ModelSpec("gcnii", depth, 16).build(1433, 7, shared=True)
    assert count_parameters(model) == 1433 * 16 + 16 + 16 * 16 + 16 * 7 + 7
    assert f"num_layers={depth}" in repr(model) or depth == 1


def test_every_depth_is_a_hidden_state():
    data, model = small_data(), GCNII(8, 4, 6, 3, shared=True).eval()
    with Recorder(model) as recorder:
        found = recorder.run(data.x, data.graph)
    with Recorder(untied(model, 6).eval()) as recorder:
        expected = recorder.run(data.x, data.graph)
    assert found.names == ["convs.0"] * 6
    for got, want in zip(found.states, expected.states, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_saved_model_still_shares_its_layer(tmp_path):
    data = small_data()
    options = ModelConfig(shared=True).options("gcnii", data)
    about = ModelFile("gcnii-6x4", 8, 3, options, "small", "?")
    model = about.build().eval()
    save_model(tmp_path / "model.safetensors", model, about)
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert count_parameters(loaded) == count_parameters(model)
    torch.testing.assert_close(
        loaded(data.x, data.graph), model(data.x, data.graph), rtol=0, atol=0
    )
