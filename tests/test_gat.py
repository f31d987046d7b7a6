"""GATConv, GATv2Conv and GAT against PyG: weights, outputs and every gradient."""

import pytest
import torch
from helpers import small_data

from abkd_fast import CSRGraph
from abkd_fast.capture import Recorder, match_layers
from abkd_fast.config import ModelConfig
from abkd_fast.nn import GAT, GATConv, GATv2Conv, ModelSpec
from abkd_fast.teacher import TeacherCache
from abkd_fast.testing import random_graph

GRAPH = random_graph(30, mean_degree=4, seed=1)


@pytest.fixture(scope="module")
def pyg():
    return pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")


def gradients(layer, inputs, call):
    out = call()
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = [*inputs, *layer.parameters()]
    return out, torch.autograd.grad(out, wanted, dout.to(out.dtype), allow_unused=True)


def assert_equal_layers(ours, theirs, x, graph, edge_attr=None, dtype=torch.float32):
    """Same state_dict both ways, outputs and gradients."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    pair = isinstance(x, tuple)
    inputs = [t.to(dtype).requires_grad_() for t in (x if pair else (x,)) if t is not None]
    given = tuple(inputs + [None] * (len(x) - len(inputs))) if pair else inputs[0]
    edge_index, _ = graph.to_edge_index()
    extra, sizes = {}, {}
    if edge_attr is not None:
        extra["edge_attr"] = edge_attr.to(dtype).requires_grad_()
        inputs.append(extra["edge_attr"])
    if pair and given[1] is None:
        sizes["size"] = (graph.num_src, graph.num_dst)
    got = gradients(ours, inputs, lambda: ours(given, graph, **extra))
    want = gradients(theirs, inputs, lambda: theirs(given, edge_index, **extra, **sizes))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(got[0], want[0], **tolerance)
    for a, b in zip(got[1], want[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


OPTIONS = [
    {},
    {"heads": 3},
    {"heads": 3, "concat": False, "bias": False},
    {"heads": 2, "add_self_loops": False, "negative_slope": 0.1},
    {"heads": 2, "residual": True},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_layers_equal_pyg(pyg, name, options, dtype):
    ours = {"GATConv": GATConv, "GATv2Conv": GATv2Conv}[name](7, 5, **options)
    assert_equal_layers(
        ours, getattr(pyg, name)(7, 5, **options), torch.randn(30, 7), GRAPH, dtype=dtype
    )


@pytest.mark.parametrize("fill", ["mean", "add", "min", "max", "mul", 0.5, torch.ones(4)])
def test_edge_features_equal_pyg(pyg, fill):
    options = {"heads": 2, "edge_dim": 4, "fill_value": fill}
    ours, theirs = GATConv(7, 5, **options), pyg.GATConv(7, 5, **options)
    edge_attr = torch.rand(GRAPH.num_edges, 4) + 0.5
    assert_equal_layers(ours, theirs, torch.randn(30, 7), GRAPH, edge_attr, torch.float64)


def test_edge_features_without_loops_and_of_width_one(pyg):
    options = {"edge_dim": 1, "add_self_loops": False}
    ours, theirs = GATConv(7, 5, **options), pyg.GATConv(7, 5, **options)
    edge_attr = torch.randn(GRAPH.num_edges)
    assert_equal_layers(ours, theirs, torch.randn(30, 7), GRAPH, edge_attr)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("widths", [7, (7, 7), (7, 4)])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_bipartite_equals_pyg(pyg, name, widths, loops):
    graph = random_graph(20, 30, mean_degree=4, seed=2)
    options = {"heads": 2, "add_self_loops": loops, "residual": True}
    ours = {"GATConv": GATConv, "GATv2Conv": GATv2Conv}[name](widths, 5, **options)
    second = widths if isinstance(widths, int) else widths[1]
    x = (torch.randn(30, 7), torch.randn(20, second))
    assert_equal_layers(ours, getattr(pyg, name)(widths, 5, **options), x, graph)


def test_destinations_may_be_missing(pyg):
    graph = random_graph(20, 30, mean_degree=4, seed=2)
    options = {"heads": 2, "add_self_loops": False}
    x = (torch.randn(30, 7), None)
    assert_equal_layers(GATConv(7, 5, **options), pyg.GATConv(7, 5, **options), x, graph)
    with pytest.raises(ValueError, match="x must hold the destinations' rows, got None"):
        GATv2Conv(7, 5)(x, graph)


def test_one_matrix_with_two_maps_equals_pyg(pyg):
    x = torch.randn(30, 7)
    assert_equal_layers(GATConv((7, 7), 5), pyg.GATConv((7, 7), 5), x, GRAPH)


def test_shared_weights_equal_pyg(pyg):
    options = {"heads": 2, "share_weights": True}
    x = torch.randn(30, 7)
    assert_equal_layers(GATv2Conv(7, 5, **options), pyg.GATv2Conv(7, 5, **options), x, GRAPH)


@pytest.mark.parametrize("norm", [None, "batch_norm"])
@pytest.mark.parametrize("v2", [False, True])
def test_model_equals_pyg(pyg, v2, norm):
    options = {"heads": 2, "v2": v2, "norm": norm, "act": "elu"}
    ours, theirs = GAT(7, 8, 3, 4, **options), pyg.GAT(7, 8, 3, 4, **options)
    assert_equal_layers(ours, theirs, torch.randn(30, 7), GRAPH, dtype=torch.float64)


def test_arxiv_teacher_has_the_published_number_of_parameters():
    model = GAT(
        *(168, 750, 3, 40),
        heads=3,
        out_heads=1,
        norm="batch_norm",
        residual=True,
        use_att_dst=False,
        hidden_bias=False,
    )
    assert sum(p.numel() for p in model.parameters()) == 1_441_580


def test_self_loops_are_one_a_node():
    from abkd_fast.nn._attention import with_self_loops

    graph = CSRGraph.from_edge_index(torch.tensor([[0, 0, 1, 2, 2], [0, 0, 0, 2, 1]]), 3)
    looped = with_self_loops(graph)
    assert looped.to_dense().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert with_self_loops(graph) is looped
    assert with_self_loops(random_graph(4, 2, mean_degree=0)).to_edge_index()[0].tolist() == [
        [0, 1],
        [0, 1],
    ]


@pytest.mark.parametrize("v2", [False, True])
def test_sparse_features_equal_dense(v2):
    dense = torch.rand(30, 6) * (torch.rand(30, 6) < 0.4)
    model = GAT(6, 8, 2, 3, heads=2, v2=v2)
    expected = model(dense, GRAPH)
    torch.testing.assert_close(model(CSRGraph.from_torch(dense.to_sparse_csr()), GRAPH), expected)


def test_dropout_follows_the_generator_and_the_mode():
    model, x = GAT(6, 8, 2, 3, heads=2, dropout=0.5), torch.randn(30, 6)
    torch.manual_seed(1)
    first, second = model(x, GRAPH), model(x, GRAPH)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(x, GRAPH), first)
    model.eval()
    assert torch.equal(model(x, GRAPH), model(x, GRAPH))


def test_hidden_states_of_the_model_feed_a_cache():
    data = small_data()
    model = ModelSpec.parse("gat-3x8").build(8, 3, **ModelConfig(heads=2).options("gat", data))
    assert match_layers(model) == ["acts.0", "acts.1"]
    cache = TeacherCache.build(model, data)
    assert cache.widths == [8, 8]
    with Recorder(model.eval()) as recorder:
        capture = recorder.run(data.x, data.graph)
    for i, state in enumerate(capture.states):
        torch.testing.assert_close(cache.layer(i), state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GATConv(7, 5, heads=0), "heads must be >= 1, got 0"),
        (lambda: GATConv(7, 5, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: GATConv(7, 5, fill_value="median"), "fill_value must be one of add, sum, mean"),
        (lambda: GATv2Conv(7, 5, edge_dim=3), "edge_dim must be None, got 3: GATv2 mixes"),
        (lambda: GAT(7, 8, 2, 3, heads=3), "hidden_channels must be a multiple of heads=3, got 8"),
        (lambda: GAT(7, 8, 2, 3, norm="layer_norm"), "norm must be None or batch_norm, got 'layer"),
        (lambda: GAT(7, 8, 2, 3, act="gelu"), "act must be one of relu, elu, got 'gelu'"),
        (lambda: GATConv(7, 5)(torch.ones(4, 7), GRAPH), "x must have num_src=30 rows, got 4"),
        (
            lambda: GATConv(7, 5)(torch.ones(30, 7), GRAPH, torch.ones(2, 3)),
            "edge_attr must be left out where edge_dim is None",
        ),
        (
            lambda: GATConv(7, 5, edge_dim=2)(torch.ones(30, 7), GRAPH, torch.ones(2, 3)),
            r"edge_attr must be \[E=120, edge_dim=2\], got \[2, 3\]",
        ),
    ],
)
def test_rejects(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("concat", [True, False])
def test_without_gradients_the_same_bits_and_the_input_as_it_was(concat):
    layer = GATConv(6, 4, heads=2, concat=concat, residual=True)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(30, 6)
    expected, before = layer(x, GRAPH), x.clone()
    with torch.no_grad():
        assert torch.equal(layer(x, GRAPH), expected)
    assert torch.equal(x, before)
