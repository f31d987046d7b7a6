"""Layers and models against the formulas, PyG's names and sparse inputs."""

import math

import pytest
import torch

from abkd_fast import CSRGraph
from abkd_fast.nn import GCN, GCNII, MLP, GCN2Conv, GCNConv, Linear, ModelSpec, dropout
from abkd_fast.testing import random_graph

GRAPH = CSRGraph.from_edge_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 4)


def sparse_features(n=4, f=6, density=0.4):
    dense = torch.rand(n, f) * (torch.rand(n, f) < density)
    return dense, CSRGraph.from_torch(dense.to_sparse_csr())


def test_gcn_conv_is_the_formula():
    conv = GCNConv(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    a = torch.eye(4, dtype=torch.float64) + GRAPH.to_dense()
    d = a.sum(1).rsqrt()
    expected = (d[:, None] * a * d) @ x @ conv.lin.weight.t() + conv.bias
    torch.testing.assert_close(conv(x, GRAPH.to(dtype=torch.float64)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("width_in", "width_out"), [(2, 5), (5, 2)])
def test_gcn_conv_aggregates_the_narrower_side_with_the_same_result(width_in, width_out):
    conv = GCNConv(width_in, width_out)
    x = torch.randn(4, width_in)
    expected = GRAPH.gcn_norm().to_dense() @ x @ conv.lin.weight.t() + conv.bias
    torch.testing.assert_close(conv(x, GRAPH), expected)


def test_gcn2_conv_is_the_formula():
    conv = GCN2Conv(3, alpha=0.2, theta=0.5, layer=2)
    x, x_0 = torch.randn(4, 3), torch.randn(4, 3)
    s = 0.8 * GRAPH.gcn_norm().to_dense() @ x + 0.2 * x_0
    b = math.log(0.5 / 2 + 1)
    torch.testing.assert_close(conv(x, x_0, GRAPH), (1 - b) * s + b * s @ conv.weight1)


def test_gcn2_conv_needs_its_depth():
    with pytest.raises(ValueError, match="layer must be >= 1 when theta is given, got None"):
        GCN2Conv(3, alpha=0.1, theta=0.5)


def test_linear_on_sparse_equals_dense_with_gradients():
    dense, sparse = sparse_features()
    layer = Linear(6, 3)
    grads = []
    for x in (dense, sparse):
        layer.zero_grad()
        layer(x).square().sum().backward()
        grads.append((layer(x).detach(), layer.weight.grad.clone(), layer.bias.grad.clone()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_on_sparse_scales_the_kept_values():
    _, sparse = sparse_features(50, 40)
    torch.manual_seed(0)
    dropped = dropout(sparse, 0.25, training=True)
    kept = dropped.value != 0
    torch.testing.assert_close(dropped.value[kept], sparse.value[kept] / 0.75)
    assert 0.65 < kept.double().mean() < 0.85
    assert dropout(sparse, 0.25, training=False) is sparse


def test_dropout_on_an_unweighted_sparse_input_counts_entries_as_one():
    _, sparse = sparse_features(50, 40)
    dropped = dropout(sparse.with_value(None), 0.5, training=True)
    assert set(dropped.value.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("family", ["gcn", "gcnii", "mlp"])
def test_models_take_sparse_and_dense_inputs(family):
    dense, sparse = sparse_features()
    model = ModelSpec.parse(f"{family}-3x5").build(6, 2).eval()
    out = model(dense, GRAPH)
    assert out.shape == (4, 2)
    torch.testing.assert_close(model(sparse, GRAPH), out)


@pytest.mark.parametrize(
    ("spec", "features", "classes", "parameters"),
    [
        ("gcnii-64x64", 500, 3, 294_403),
        ("gcnii-4x4", 500, 3, 2_083),
        ("gcnii-64x64", 1433, 7, 354_375),
        ("gcnii-4x4", 1433, 7, 5_835),
        ("gcnii-32x256", 3703, 6, 3_046_918),
        ("gcnii-4x16", 3703, 6, 60_390),
    ],
)
def test_parameter_counts_are_the_papers(spec, features, classes, parameters):
    model = ModelSpec.parse(spec).build(features, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_xavier_keeps_the_input_layer_alive():
    torch.manual_seed(0)
    model = GCNII(6, 4, 2, 3, init="xavier")
    assert model.lins[0].bias.tolist() == pytest.approx([0.1] * 4)
    with pytest.raises(ValueError, match="init must be uniform or xavier, got 'he'"):
        GCNII(6, 4, 2, 3, init="he")


@pytest.mark.parametrize("text", ["gcnii", "gcnii-4", "gcnii-0x4", "gat-2x4", "gcnii-4x4x4", ""])
def test_model_spec_rejects(text):
    with pytest.raises(ValueError, match="FAMILY-LAYERSxWIDTH"):
        ModelSpec.parse(text)


def test_model_spec_round_trip():
    assert str(ModelSpec.parse("gcnii-64x128")) == "gcnii-64x128"


def test_state_dict_names_are_those_of_pyg():
    assert list(GCNConv(3, 2).state_dict()) == ["bias", "lin.weight"]
    assert list(GCN2Conv(3, 0.1).state_dict()) == ["weight1"]


def test_convolutions_equal_pyg():
    pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
    graph = random_graph(30, 30, mean_degree=4, seed=1)
    edge_index, _ = graph.to_edge_index()
    x, x_0 = torch.randn(30, 5), torch.randn(30, 5)
    theirs = pyg.GCN2Conv(5, 0.1, 0.5, 3)
    ours = GCN2Conv(5, 0.1, 0.5, 3)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x, x_0, graph), theirs(x, x_0, edge_index))
    theirs, ours = pyg.GCNConv(5, 3), GCNConv(5, 3)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x, graph), theirs(x, edge_index))


def test_models_name_their_hidden_layers():
    from abkd_fast.capture import match_layers

    assert match_layers(GCNII(6, 4, 3, 2)) == ["acts.0", "acts.1", "acts.2"]
    assert match_layers(GCN(6, 4, 3, 2)) == ["acts.0", "acts.1"]
    assert match_layers(MLP(6, 4, 2, 2)) == ["acts.0"]
