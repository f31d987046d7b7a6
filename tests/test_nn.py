"""Layers and models against the formulas, PyG's names and sparse inputs."""

import copy
import math
import weakref

import pytest
import torch

from abkd_fast import CSRGraph, reference
from abkd_fast.capture import Recorder, match_layers
from abkd_fast.column_sums import attach_column_sums, column_means
from abkd_fast.nn import GCN, GCNII, MLP, GCN2Conv, GCNConv, Linear, ModelSpec, dropout
from abkd_fast.ops.dropout import draw_seed
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


@pytest.mark.parametrize("family", ["gat", "gcn", "gcnii", "mlp", "sage"])
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


@pytest.mark.parametrize(("spec", "parameters"), [("gcn-2x256", 43_816), ("sage-2x256", 86_824)])
def test_parameter_counts_of_the_arxiv_students(spec, parameters):
    model = ModelSpec.parse(spec).build(128, 40, norm="batch_norm")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_xavier_keeps_the_input_layer_alive():
    torch.manual_seed(0)
    model = GCNII(6, 4, 2, 3, init="xavier")
    assert model.lins[0].bias.tolist() == pytest.approx([0.1] * 4)
    with pytest.raises(ValueError, match="init must be uniform or xavier, got 'he'"):
        GCNII(6, 4, 2, 3, init="he")


@pytest.mark.parametrize("text", ["gcnii", "gcnii-4", "gcnii-0x4", "gin-2x4", "gcnii-4x4x4", ""])
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
    assert match_layers(GCNII(6, 4, 3, 2)) == ["convs.0", "convs.1", "convs.2"]
    assert match_layers(GCN(6, 4, 3, 2)) == ["convs.0", "convs.1"]
    assert match_layers(MLP(6, 4, 2, 2)) == ["lins.0"]
    with pytest.raises(ValueError, match="layers must be given for GCN"):
        match_layers(GCN(6, 4, 1, 2))


@pytest.mark.parametrize("family", ["gcn", "gcnii", "mlp", "sage"])
def test_hidden_states_are_non_negative_and_know_their_differentiable_means(family):
    dense, sparse = sparse_features()
    model = ModelSpec.parse(f"{family}-3x5").build(6, 2)
    for x in (dense, sparse):
        with Recorder(model) as recorder:
            capture = recorder.run(x, GRAPH)
        assert all(bool((state >= 0).all()) for state in capture.states)
        weights = list(model.parameters())
        gradients = []
        for means in (capture.means, [state.mean(0) for state in capture.states]):
            loss = sum((mean * torch.arange(1.0, 6)).sum() for mean in means)
            grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            gradients.append([torch.zeros(()) if grad is None else grad for grad in grads])
        for mean, state in zip(capture.means, capture.states, strict=True):
            torch.testing.assert_close(mean, state.mean(0))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_nothing_of_a_forward_stays_in_the_model():
    dense, _ = sparse_features()
    model = GCNII(6, 4, 2, 2)
    with Recorder(model) as recorder:
        capture = recorder.run(dense, GRAPH)
    left = [weakref.ref(capture.states[0]), weakref.ref(capture.states[0].column_sums[0])]
    copy.deepcopy(model)  # fails on modules that hold tensors of the graph
    del capture
    assert [reference() for reference in left] == [None, None]


@pytest.mark.parametrize("family", ["gcn", "gcnii", "mlp", "sage"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_dropout_follows_the_generator_and_the_mode(family, kind):
    x = dict(zip(("dense", "sparse"), sparse_features(4, 40), strict=True))[kind]
    model = ModelSpec.parse(f"{family}-2x50").build(40, 3)
    torch.manual_seed(1)
    first, second = model(x, GRAPH), model(x, GRAPH)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(x, GRAPH), first)
    state = torch.get_rng_state()
    model.eval()
    assert torch.equal(model(x, GRAPH), model(x, GRAPH))
    assert torch.equal(torch.get_rng_state(), state)


def test_models_are_the_composition_of_their_layers():
    """GCNII in training mode against plain torch with the same masks."""
    dense, _ = sparse_features()
    model = GCNII(6, 4, 2, 3, dropout=0.5)
    torch.manual_seed(3)
    out = model(dense, GRAPH)
    torch.manual_seed(3)
    seed = draw_seed()
    a = GRAPH.gcn_norm().to_dense()
    h = h_0 = model.lins[0](reference.dropout(dense, 0.5, seed)).relu()
    for layer, conv in enumerate(model.convs, start=1):
        s = 0.9 * a @ reference.dropout(h, 0.5, seed, layer) + 0.1 * h_0
        b = math.log(0.5 / layer + 1)
        h = ((1 - b) * s + b * s @ conv.weight1).relu()
    torch.testing.assert_close(out, model.lins[1](reference.dropout(h, 0.5, seed, 3)))


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("family", ["gcn", "gcnii", "sage"])
def test_models_compile(family):
    torch._dynamo.reset()
    dense, _ = sparse_features()
    model = ModelSpec.parse(f"{family}-2x5").build(6, 2)
    GRAPH.gcn_norm().t()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = model(dense, GRAPH)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(dense, GRAPH), expected)


def test_a_state_changed_in_place_has_lost_its_column_sums():
    state = attach_column_sums(torch.ones(3, 2), torch.full((2,), 6.0))
    assert column_means(state).tolist() == [2.0, 2.0]
    state.mul_(5.0)
    assert column_means(state).tolist() == [5.0, 5.0]


@pytest.mark.parametrize("family", ["gcn", "gcnii", "mlp", "sage"])
def test_inference_mode_gives_the_same_states_and_means(family):
    dense, _ = sparse_features()
    model = ModelSpec.parse(f"{family}-3x4").build(6, 2).eval()
    with Recorder(model) as recorder:
        expected = recorder.run(dense, GRAPH)
        with torch.inference_mode():
            capture = recorder.run(dense, GRAPH)
            means = capture.means
    assert torch.equal(capture.logits, expected.logits)
    for mean, state in zip(means, expected.states, strict=True):
        torch.testing.assert_close(mean, state.mean(0))
