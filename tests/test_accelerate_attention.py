"""The accelerated GATConv and GATv2Conv give PyG's outputs and gradients."""

import pytest
import torch
from pyg_cases import KINDS, N, assert_parity, edge_index, matrix

from abkd_fast import CSRGraph, accelerate, acceleration, decelerate

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")

LAYOUTS = ["csr graph", "coo", "csr", "csc", "torch_sparse"]
SHARED = [
    {},
    {"heads": 3},
    {"heads": 2, "concat": False, "bias": False},
    {"heads": 2, "residual": True, "negative_slope": 0.5},
    {"heads": 2, "concat": False, "residual": True, "add_self_loops": False},
    {"heads": 2, "flow": "target_to_source"},
]


def features(width, rows=N, dtype=torch.float32):
    return torch.randn(rows, width, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", SHARED, ids=str)
@pytest.mark.parametrize("make", [pyg.GATConv, pyg.GATv2Conv])
def test_options(make, options, kind):
    assert_parity(make(5, 3, **options), features(5), edge_index(kind))
    assert_parity(make((5, 5), 3, **options), features(5), edge_index(kind))
    if make is pyg.GATv2Conv:
        conv = make(5, 3, share_weights=True, **options)
        assert_parity(conv, features(5), edge_index(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill_value", ["mean", "add", "max", "min", 0.5, "tensor"])
def test_edge_features(fill_value, kind):
    edges = edge_index(kind)
    fill = torch.randn(4) if fill_value == "tensor" else fill_value
    for loops in (True, False):
        conv = pyg.GATConv(5, 3, 2, edge_dim=4, fill_value=fill, add_self_loops=loops)
        attr = features(4, edges.size(1))
        assert_parity(conv, features(5), edges, attr)
        assert_parity(conv, features(5), edges, edge_attr=attr)
    conv = pyg.GATConv(5, 3, edge_dim=4, fill_value=fill)
    assert_parity(conv, features(5), edges)
    if fill_value != "tensor":
        conv = pyg.GATConv(5, 3, edge_dim=1, fill_value=fill)
        assert_parity(conv, features(5), edges, features(1, edges.size(1)).detach()[:, 0])


@pytest.mark.parametrize("loops", [True, False])
def test_gat_on_a_bipartite_graph(loops):
    edges = torch.stack([torch.arange(20) % 11, torch.arange(20) % 7])
    source, target = features(4, 11), features(5, 8)
    conv = pyg.GATConv((4, 5), 3, 2, add_self_loops=loops, residual=True)
    assert_parity(conv, (source, target), edges)
    assert_parity(conv, (source, target), edges, size=(11, 8))
    assert_parity(conv, (source, None), edges, size=(11, 8))
    assert_parity(conv, (source, None), edges)
    assert_parity(pyg.GATConv(4, 3, add_self_loops=loops), (source, features(4, 8)), edges)
    for layout in ("csr graph", "torch_sparse"):
        theirs = ((source, target), edges) if layout == "csr graph" else None
        assert_parity(conv, (source, target), matrix(layout, edges, size=(8, 11)), theirs=theirs)


@pytest.mark.parametrize("loops", [True, False])
def test_gatv2_on_a_bipartite_graph(loops):
    edges = torch.stack([torch.arange(20) % 11, torch.arange(20) % 7])
    source, target = features(4, 11), features(5, 8)
    conv = pyg.GATv2Conv((4, 5), 3, 2, add_self_loops=loops, residual=True)
    assert_parity(conv, (source, target), edges)
    conv = pyg.GATv2Conv(4, 3, 2, add_self_loops=loops, share_weights=True)
    assert_parity(conv, (source, features(4, 8)), edges)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [pyg.GATConv, pyg.GATv2Conv])
def test_matrices(make, layout):
    """PyG's layers take torch's sparse matrices in part; the same edges stand for them."""
    edges, x = edge_index("self loops").unique(dim=1), features(5)
    for loops in (True, False):
        conv = make(5, 3, 2, add_self_loops=loops)
        theirs = None if layout == "torch_sparse" else (x, edges)
        assert_parity(conv, x, matrix(layout, edges), theirs=theirs)


def test_edge_features_of_a_graph_of_ours():
    edges, x = edge_index(), features(5)
    graph = CSRGraph.from_edge_index(edges, N)
    index, attr = graph.to_edge_index()[0], features(4, edges.size(1))
    conv = pyg.GATConv(5, 3, 2, edge_dim=4)
    assert_parity(conv, x, graph, attr, theirs=(x, index, attr))


@pytest.mark.parametrize("make", [pyg.GATConv, pyg.GATv2Conv])
def test_float64_lazy_widths_and_hooks(make):
    x, edges = features(5, dtype=torch.float64), edge_index()
    assert_parity(make(5, 3, 2).double(), x, edges)
    conv = make(-1, 3, 2)
    expected = accelerate(conv)(x.float(), edges)
    torch.testing.assert_close(conv(x.float(), edges), expected)
    conv = make(5, 3, 2).double()
    for name, layer in conv.named_children():
        if name.startswith("lin"):
            layer.register_forward_hook(lambda layer, given, out: 2 * out)
    assert_parity(conv, x, edges)


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"jk": "cat", "act": "elu"}, {"concat": False, "norm": "batch_norm"}], ids=str
)
def test_pygs_model(options, v2):
    model = pyg.GAT(6, 8, num_layers=3, out_channels=4, heads=2, v2=v2, **options)
    assert_parity(model, features(6), edge_index("self loops"))
    if not v2:
        model = pyg.GAT(6, 8, num_layers=2, out_channels=4, heads=2, edge_dim=3, **options)
        edges = edge_index("self loops")
        assert_parity(model, features(6), edges, edge_attr=features(3, edges.size(1)))


@pytest.mark.parametrize("make", [pyg.GATConv, pyg.GATv2Conv])
def test_dropout_follows_the_generator_and_leaves_evaluation_alone(make):
    x, edges = features(5), edge_index()
    conv = accelerate(make(5, 3, 2, dropout=0.5))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(conv(x, edges))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert_parity(decelerate(conv).eval(), x, edges)
    torch.manual_seed(0)
    mean = sum(accelerate(conv).train()(x, edges).detach() for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, conv.eval()(x, edges).detach(), rtol=0.0, atol=0.2)


ATTR = torch.randn(edge_index().size(1), 4)


@pytest.mark.parametrize(
    ("make", "call", "why"),
    [
        (
            lambda: pyg.GATConv(5, 3),
            lambda conv, x, edges: conv(x, edges, return_attention_weights=True)[0],
            "the attention weights are asked for",
        ),
        (
            lambda: pyg.GATv2Conv(5, 3),
            lambda conv, x, edges: conv(x, edges, return_attention_weights=True)[0],
            "the attention weights are asked for",
        ),
        (
            lambda: pyg.GATConv(5, 3, edge_dim=4, flow="target_to_source"),
            lambda conv, x, edges: conv(x, edges, ATTR),
            "flow is target_to_source with edge_attr",
        ),
        (
            lambda: pyg.GATConv(5, 3, edge_dim=4, add_self_loops=False),
            lambda conv, x, edges: conv(x, matrix("torch_sparse", edges.unique(dim=1))),
            "edge_dim is given with a sparse matrix",
        ),
    ],
)
def test_calls_that_we_cannot_serve_run_pygs_code(make, call, why):
    conv, x, edges = make(), features(5), edge_index()
    expected = call(conv, x, edges)
    kind = type(conv).__name__
    with pytest.warns(UserWarning, match=f"PyG's own {kind} serves a call: {why}"):
        out = call(accelerate(conv), x, edges)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda conv, x, edges: conv(x, edges, ATTR), "edge_attr is given where edge_dim is None"),
        (lambda conv, x, edges: conv((x, None), edges), "x is a pair without features of the dest"),
    ],
)
def test_calls_that_pyg_refuses_too(call, why):
    conv = accelerate(pyg.GATv2Conv(5, 3))
    with pytest.warns(UserWarning, match=why), pytest.raises(AssertionError):
        call(conv, features(5), edge_index())


def test_layers_that_are_left():
    model = torch.nn.ModuleDict(
        {
            "mean": pyg.GATConv(4, 4, aggr="mean"),
            "edges": pyg.GATv2Conv(4, 4, edge_dim=3),
            "all": pyg.GATConv(4, 4, dropout=1.0),
            "fused": pyg.GATConv(4, 4),
        }
    )
    model["fused"].edge_update = model["fused"].edge_update
    with pytest.warns(UserWarning, match="4 of 4 layers are not accelerated"):
        accelerate(model)
    assert acceleration(model).left == {
        "mean": "aggr='mean' is none of add, sum",
        "edges": "edge_dim=3 mixes edge features into every feature of every edge",
        "all": "dropout=1.0 is not in [0, 1)",
        "fused": "edge_update of this object was replaced",
    }
