"""GraphSAGE's layer and model against the formula and PyG."""

import pytest
import torch
from helpers import small_data
from torch import nn

from abkd_fast import ABKD, KD, CSRGraph, Distiller, TrainConfig
from abkd_fast.capture import match_layers
from abkd_fast.nn import GCN, MLP, GraphSAGE, ModelSpec, SAGEConv
from abkd_fast.ops.dropout import draw_seed, dropout
from abkd_fast.testing import GRAPHS, random_graph, sample_graph

AGGREGATIONS = ["mean", "max", "min", "sum"]


def dense_sage(conv, x, root, graph):
    """The layer in float64, node by node."""
    rows = [conv.lin_l(x[:0])]
    for node, neighbours in enumerate(graph.col.split(graph.rowptr.diff().tolist())):
        messages = x[neighbours.long()] if conv.lin is None else conv.lin(x[neighbours.long()])
        if len(neighbours) == 0:
            total = torch.zeros(messages.size(1), dtype=x.dtype)
        else:
            total = getattr(messages, {"max": "amax", "min": "amin"}.get(conv.aggr, conv.aggr))(0)
        out = conv.lin_l(total.unsqueeze(0))
        rows.append(out if conv.lin_r is None else out + conv.lin_r(root[node].unsqueeze(0)))
    return torch.cat(rows)


def gradients(out, inputs):
    wanted = [tensor for tensor in inputs if tensor is not None]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), wanted, materialize_grads=True)


def assert_same(ours, expected, inputs, **tolerance):
    torch.testing.assert_close(ours, expected, **tolerance)
    for a, b in zip(gradients(ours, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("aggr", AGGREGATIONS)
@pytest.mark.parametrize("widths", [(3, 5), (5, 2)], ids=["widening", "narrowing"])
def test_values_and_every_gradient_are_those_of_the_formula(name, aggr, widths):
    graph = sample_graph(name)
    conv = SAGEConv((widths[0], 4), widths[1], aggr).double()
    x = torch.randn(graph.num_src, widths[0], dtype=torch.float64, requires_grad=True)
    root = torch.randn(graph.num_dst, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, root, *conv.parameters()]
    expected = dense_sage(conv, x, root, graph)
    assert_same(conv((x, root), graph), expected, inputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(("root_weight", "bias"), [(True, True), (False, True), (True, False)])
def test_equals_pyg(aggr, normalize, project, root_weight, bias):
    pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
    graph = random_graph(40, mean_degree=3, seed=1)
    edge_index, _ = graph.to_edge_index()
    options = dict(normalize=normalize, root_weight=root_weight, project=project, bias=bias)
    for widths in ((6, 4), (4, 6)):
        theirs = pyg.SAGEConv(*widths, aggr=aggr, **options)
        ours = SAGEConv(*widths, aggr=aggr, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict(), assign=True)
        x = torch.randn(40, widths[0], requires_grad=True)
        inputs = [x, *(p for _, p in sorted(theirs.named_parameters()))]
        expected = gradients(theirs(x, edge_index), inputs)
        inputs = [x, *(p for _, p in sorted(ours.named_parameters()))]
        torch.testing.assert_close(ours(x, graph), theirs(x, edge_index), rtol=1e-5, atol=1e-5)
        for a, b in zip(gradients(ours(x, graph), inputs), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggr", ["mean", "max"])
def test_equals_pyg_on_a_bipartite_graph(aggr):
    pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
    graph = random_graph(9, 20, mean_degree=3)
    theirs, ours = pyg.SAGEConv((5, 3), 4, aggr=aggr), SAGEConv((5, 3), 4, aggr=aggr)
    ours.load_state_dict(theirs.state_dict())
    x, root = torch.randn(20, 5), torch.randn(9, 3)
    edge_index, _ = graph.to_edge_index()
    torch.testing.assert_close(ours((x, root), graph), theirs((x, root), edge_index))
    expected = theirs((x, None), edge_index, size=(20, 9))
    torch.testing.assert_close(ours((x, None), graph), expected)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_weights_multiply_and_sparse_features_equal_dense_ones(aggr):
    graph = random_graph(12, mean_degree=3, dtype=torch.float64)
    dense = torch.rand(12, 8, dtype=torch.float64) * (torch.rand(12, 8) < 0.3)
    for project in (False, True):
        conv = SAGEConv(8, 3, aggr, project=project, act="relu").double()
        sparse = CSRGraph.from_torch(dense.to_sparse_csr())
        torch.testing.assert_close(conv(sparse, graph), conv(dense, graph))
    conv = SAGEConv(8, 3, "sum", root_weight=False, bias=False).double()
    expected = graph.to_dense() @ dense @ conv.lin_l.weight.t()
    torch.testing.assert_close(conv(dense, graph), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, g: SAGEConv(3, 2, "lstm"),
            "aggr must be one of sum, mean, max, min, got 'lstm'",
        ),
        (lambda x, g: SAGEConv(3, 2, act="elu"), "act must be one of none, relu, got 'elu'"),
        (lambda x, g: SAGEConv(3, 2)(x, g), r"num_dst=2 destinations, got 7; pass \(x_source"),
        (lambda x, g: SAGEConv(3, 2)((x, x[:1]), g), "num_dst=2 destinations, got 1"),
        (lambda x, g: SAGEConv(3, 2)((x, x), g, 0.5), "p must be 0 where x is a pair, got 0.5"),
    ],
)
def test_rejects(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(7, 3), sample_graph("wide"))


def test_the_model_is_the_composition_of_its_layers():
    data = small_data()
    model = GraphSAGE(8, 5, 3, 3, dropout=0.5, aggr="max")
    torch.manual_seed(3)
    out = model(data.x, data.graph)
    torch.manual_seed(3)
    h, seed = data.x, draw_seed()
    for layer, conv in enumerate(model.convs):
        h = dropout(h, 0.5, seed, layer)
        h = dense_sage(conv, h, h, data.graph)
        h = h.relu() if layer < 2 else h
    torch.testing.assert_close(out, h)


@pytest.mark.parametrize("family", [GCN, GraphSAGE, MLP])
def test_batch_norm_stands_before_the_relu_and_its_output_is_the_hidden_state(family):
    data = small_data()
    model = family(8, 5, 2, 3, dropout=0.0, norm="batch_norm")
    assert match_layers(model) == ["norms.0"]
    first = model.lins[0] if family is MLP else model.convs[0]
    inputs = (data.x,) if family is MLP else (data.x, data.graph)
    before = first(*inputs)
    assert bool((before < 0).any())
    expected = nn.functional.batch_norm(before, None, None, training=True).relu()
    last = model.lins[1] if family is MLP else model.convs[1]
    torch.testing.assert_close(model(*inputs), last(expected, *inputs[1:]))
    with pytest.raises(ValueError, match="norm must be None or batch_norm, got 'layer'"):
        family(8, 5, 2, 3, norm="layer")


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE"])
def test_state_dicts_of_pygs_models_load(name):
    pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
    data = small_data()
    theirs = getattr(pyg, name)(8, 5, 3, 3, norm="batch_norm", dropout=0.5)
    theirs(data.x, data.edge_index)  # moves the running means
    ours = {"GCN": GCN, "GraphSAGE": GraphSAGE}[name](8, 5, 3, 3, norm="batch_norm")
    ours.load_state_dict(theirs.state_dict())
    expected = theirs.eval()(data.x, data.edge_index)
    torch.testing.assert_close(ours.eval()(data.x, data.graph), expected)


def test_a_sage_student_learns_from_a_sage_teacher():
    data = small_data()
    teacher = GraphSAGE(8, 16, 3, 3, norm="batch_norm")
    Distiller(None, teacher, data, config=TrainConfig(epochs=30)).fit()
    student = ModelSpec.parse("sage-2x8").build(8, 3, aggr="max", dropout=0.1)
    config = TrainConfig(epochs=100, lr=0.02)
    result = Distiller(teacher, student, data, KD(alpha=0.9) + ABKD(), config=config).fit()
    assert result.attention.shape == (2, 1)
    assert result.metrics["student"]["test"] > 60


def test_the_same_bits_for_one_thread_and_two():
    graph, x = random_graph(500, mean_degree=9, power_law=True), torch.randn(500, 40)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            model = GraphSAGE(40, 24, 2, 7, dropout=0.3)
            out = model(x, graph)
            found.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
