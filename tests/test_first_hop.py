"""A_hat X computed once: the same numbers and gradients, only where it pays, never out of date."""

from dataclasses import replace

import pytest
import torch
from helpers import small_data

from abkd_fast import CSRGraph, _first_hop, reference
from abkd_fast._first_hop import aggregate_features, first_hop_of
from abkd_fast._neighborhood import aggregated_features
from abkd_fast.capture import call_model
from abkd_fast.data import load
from abkd_fast.inductive import predict
from abkd_fast.latency import NodeServer
from abkd_fast.nn import GCN, GCNConv
from abkd_fast.testing import GRAPHS, assert_no_worse, random_graph, sample_graph

SQUARE = [name for name in GRAPHS if name not in ("wide", "tall", "no-nodes")]


def one_hot(n, columns=None, dtype=torch.float32):
    """One entry a row: its aggregate has at most as many entries as the graph."""
    col = torch.arange(n) % (n if columns is None else columns)
    value = torch.linspace(0.5, 2.0, n, dtype=dtype)
    return CSRGraph.from_csr(torch.arange(n + 1), col, value, columns)


def features(kind, n, dtype=torch.float64):
    if kind == "sparse":
        return one_hot(n, 4, dtype)
    return torch.randn(n, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))


def expected_scores(model, x, graph):
    """The model without dropout, layer by layer in plain torch."""
    h = x.to_dense() if isinstance(x, CSRGraph) else x
    for conv in model.convs:
        weight = conv.lin.weight.t()
        h, _ = reference.conv(graph.gcn_norm(), h, weight, conv.bias, act=conv.act)
    return h


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("weights", [None, torch.float32])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_product_is_the_oracles(name, weights, kind):
    graph = sample_graph(name, weights)
    x = features(kind, graph.num_src, torch.float32)
    dense = x.to_dense() if kind == "sparse" else x
    out = aggregate_features(graph, x)
    assert type(out) is type(x)
    exact = reference.spmm(graph.to(dtype=torch.float64), dense.double())
    found = out.to_dense() if kind == "sparse" else out
    assert_no_worse(found, exact, reference.spmm(graph, dense))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_product_keeps_the_dtype(kind, dtype):
    graph = random_graph(20, seed=1).gcn_norm()
    x = features(kind, 20).to(dtype=dtype)
    out = aggregate_features(graph, x)
    dense, found = (t.to_dense() if kind == "sparse" else t for t in (x, out))
    exact = reference.spmm(graph.to(dtype=torch.float64), dense.double())
    assert_no_worse(found, exact, reference.spmm(graph, dense))


@pytest.mark.parametrize("seed", range(5))
def test_sparse_product_in_many_blocks_of_rows(seed):
    graph = random_graph(200, mean_degree=6, power_law=True, dtype=torch.float64, seed=seed)
    x = random_graph(200, 30, mean_degree=3, dtype=torch.float64, seed=seed + 10)
    blocks = list(_first_hop._row_blocks(graph.to_scipy(), x.to_scipy(), 50))
    assert len(blocks) > 5 and blocks[0][0] == 0 and blocks[-1][1] == 200
    product = _first_hop._sparse_product(graph, x, 200 * 30)
    torch.testing.assert_close(product.to_dense(), graph.to_dense() @ x.to_dense())


def test_sparse_product_is_given_up_where_the_direct_way_is_cheaper():
    star = CSRGraph.from_edge_index(torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4]]), 5)
    rows = torch.arange(6)
    x = CSRGraph.from_csr(rows, rows[:-1], torch.ones(5))
    assert aggregate_features(star, x).num_edges == 4
    full = (star.to_scipy() @ x.to_scipy()).nnz
    assert _first_hop._sparse_product(star, x, full).num_edges == full
    assert _first_hop._sparse_product(star, x, full - 1) is None
    bag = random_graph(60, 500, mean_degree=20, dtype=torch.float32)
    assert aggregate_features(random_graph(60, mean_degree=5).gcn_norm(), bag) is None


def test_no_product_where_something_is_trained_or_features_are_too_large(monkeypatch):
    graph, x = random_graph(9, dtype=torch.float32), torch.randn(9, 3)
    assert aggregate_features(graph, x.clone().requires_grad_()) is None
    trained = graph.with_value(graph.value.clone().requires_grad_())
    assert aggregate_features(trained.gcn_norm(), x) is None
    sparse = one_hot(9)
    assert aggregate_features(graph, sparse.with_value(sparse.value.requires_grad_())) is None
    monkeypatch.setattr(_first_hop, "MAX_BYTES", x.nbytes - 1)
    assert aggregate_features(graph, x) is None


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("training", [True, False])
def test_model_has_the_oracles_scores_and_gradients(layers, kind, training):
    graph, x = random_graph(30, dtype=torch.float64, seed=2), features(kind, 30)
    graph = graph.with_value(graph.value.abs())
    model = GCN(4, 5, layers, 3, dropout=0.0 if training else 0.5).double().train(training)
    aggregated = aggregate_features(graph.gcn_norm(), x)
    expected = expected_scores(model, x, graph)
    weights = list(model.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), weights)
    for given in (aggregated, None):
        out = model(x, graph, given)
        torch.testing.assert_close(out, expected)
        gradients = torch.autograd.grad(out.square().sum(), weights)
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, want)
    again = torch.autograd.grad(model(x, graph, aggregated).square().sum(), weights)
    first = torch.autograd.grad(model(x, graph, aggregated).square().sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_forward_that_drops_inputs_does_not_use_it(kind):
    graph, x = random_graph(30), features(kind, 30, torch.float32)
    wrong = torch.full((30, 4), torch.nan)
    model = GCN(4, 5, 2, 3, dropout=0.5)
    torch.manual_seed(1)
    expected = model(x, graph)
    torch.manual_seed(1)
    assert torch.equal(model(x, graph, wrong), expected)
    assert model.eval()(x, graph, wrong).isnan().all()


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_does_not_normalise_does_not_use_it(training):
    data = small_data()
    model = GCN(8, 4, 2, 3, dropout=0.0, normalize=False).train(training)
    expected = model(data.x, data.graph)
    assert torch.equal(model(data.x, data.graph, torch.full_like(data.x, torch.nan)), expected)
    assert torch.equal(predict(model, data), expected)
    with pytest.raises(ValueError, match="normalize=True, which reads A_hat, got GCN with normal"):
        NodeServer(model, data, first_hop=True)


def test_who_asks_for_it_gets_it_within_memory(monkeypatch):
    bag = random_graph(60, 500, mean_degree=20, dtype=torch.float32)
    data = replace(small_data(num_nodes=60), x=bag)
    assert data.aggregated_x is None
    wanted = aggregated_features(data)
    assert aggregated_features(data) is wanted
    expected = data.graph.gcn_norm().to_dense() @ bag.to_dense()
    torch.testing.assert_close(wanted.to_dense(), expected)
    graph = data.graph.gcn_norm()
    monkeypatch.setattr(_first_hop, "MAX_BYTES", 8 * wanted.num_edges)
    assert first_hop_of(graph, bag).num_edges == wanted.num_edges
    monkeypatch.setattr(_first_hop, "MAX_BYTES", 8 * wanted.num_edges - 1)
    with pytest.raises(
        ValueError, match="first_hop needs A_hat X of at most .* entries .*, got more"
    ):
        first_hop_of(graph, bag)
    dense = torch.ones(60, 500)
    monkeypatch.setattr(_first_hop, "MAX_BYTES", dense.nbytes - 1)
    with pytest.raises(ValueError, match="at most 29999 entries .119999 bytes., got 30000 for x"):
        first_hop_of(graph, dense)
    with pytest.raises(ValueError, match="fixed, got some with requires_grad; detach"):
        first_hop_of(graph, dense.requires_grad_())


def test_a_product_of_another_graph_is_refused():
    with pytest.raises(ValueError, match="aggregated_x must have N=9 rows, got 8"):
        GCNConv(4, 2)(torch.randn(9, 4), random_graph(9), aggregated_x=torch.randn(8, 4))


# -- data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_models_that_name_it_get_it(sparse):
    data = small_data()
    if sparse:
        data = replace(data, x=one_hot(data.num_nodes))
    model = GCN(data.num_features, 4, 2, data.num_classes).eval()
    x, graph, aggregated = data.arguments(model)
    assert x is data.x and graph is data.graph and aggregated is data.aggregated_x
    assert aggregated is not None and isinstance(aggregated, CSRGraph) == sparse
    torch.testing.assert_close(call_model(model, data), model(data.x, data.graph))


def test_bags_of_words_stay_as_they_are():
    bag = random_graph(60, 500, mean_degree=20, dtype=torch.float32)
    data = replace(small_data(num_nodes=60), x=bag)
    assert data.aggregated_x is None
    model = GCN(data.num_features, 4, 2, data.num_classes).eval()
    assert torch.equal(call_model(model, data), model(data.x, data.graph))


def test_it_is_computed_once_and_new_data_have_a_new_one():
    data = small_data()
    assert data.aggregated_x is data.aggregated_x
    changed = replace(data, x=2 * data.x)
    torch.testing.assert_close(changed.aggregated_x, 2 * data.aggregated_x)
    weighted = data.graph.with_value(torch.arange(1.0, data.graph.num_edges + 1))
    other = replace(data, graph=weighted)
    torch.testing.assert_close(other.aggregated_x, weighted.gcn_norm().to_dense() @ data.x)
    assert torch.equal(data.to("cpu").aggregated_x, data.aggregated_x)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_inference_computed_can_be_trained_on(sparse):
    data = small_data()
    if sparse:
        data = replace(data, x=one_hot(data.num_nodes))
    model = GCN(data.num_features, 4, 2, data.num_classes, dropout=0.0)
    with torch.inference_mode():
        scores = call_model(model, data)
    out = call_model(model, data)
    assert torch.equal(out, scores)
    out.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
def test_bags_of_words_would_cost_more_than_twice_as_much(abkd_data, name):
    data = load(name)
    graph = data.graph.gcn_norm()
    entries = (graph.to_scipy() @ data.x.to_scipy()).nnz
    assert entries > 2 * (data.x.num_edges + graph.num_edges) and data.aggregated_x is None
