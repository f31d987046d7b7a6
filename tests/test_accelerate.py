"""Accelerated PyG layers give PyG's outputs and gradients, over options, graphs and formats."""

import pytest
import torch
from pyg_cases import KINDS, TOLERANCE, N, assert_parity, edge_index, edge_weight, matrix

from abkd_fast import accelerate, decelerate

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
EdgeIndex = pytest.importorskip("torch_geometric").EdgeIndex

LAYOUTS = ["csr graph", "coo", "csr", "csc", "torch_sparse"]


def features(width, rows=N, dtype=torch.float32):
    return torch.randn(rows, width, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"improved": True},
        {"add_self_loops": False},
        {"normalize": False},
        {"cached": True},
        {"bias": False, "aggr": "sum"},
        {"flow": "target_to_source"},
        {"flow": "target_to_source", "normalize": False},
        {"cached": True, "flow": "target_to_source", "improved": True},
    ],
    ids=str,
)
def test_gcn_conv(options, weighted, kind):
    edges = edge_index(kind)
    weight = edge_weight(edges) if weighted else None
    for widths in ((7, 3), (3, 7)):
        conv = pyg.GCNConv(*widths, **options)
        assert_parity(conv, features(widths[0]), edges, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"theta": 0.5, "layer": 3},
        {"theta": 0.5, "layer": 3, "shared_weights": False},
        {"alpha": 0.0},
        {"add_self_loops": False},
        {"normalize": False},
        {"cached": True},
        {"flow": "target_to_source"},
    ],
    ids=str,
)
def test_gcn2_conv(options, kind):
    edges = edge_index(kind)
    for weight in (None, edge_weight(edges)):
        conv = pyg.GCN2Conv(5, **{"alpha": 0.1, **options})
        assert_parity(conv, features(5), features(5), edges, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggr", ["mean", "max", "min", "sum", "add"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True, "bias": False},
        {"root_weight": False},
        {"project": True},
        {"flow": "target_to_source"},
    ],
    ids=str,
)
def test_sage_conv(aggr, options, kind):
    for widths in ((7, 3), (3, 7)):
        conv = pyg.SAGEConv(*widths, aggr=aggr, **options)
        assert_parity(conv, features(widths[0]), edge_index(kind))


@pytest.mark.parametrize("aggr", ["mean", "max"])
@pytest.mark.parametrize("root_weight", [True, False])
def test_sage_conv_on_a_bipartite_graph(aggr, root_weight):
    conv = pyg.SAGEConv((4, 5), 3, aggr=aggr, root_weight=root_weight)
    edges = torch.stack([torch.arange(20) % 11, torch.arange(20) % 7])
    source, root = features(4, 11), features(5, 8)
    assert_parity(conv, (source, root), edges)
    assert_parity(conv, (source, root), edges, size=(11, 8))
    assert_parity(conv, (source, None), edges, size=(11, 8))
    assert_parity(conv, (source, None), edges)
    for layout in LAYOUTS:
        adjacency = matrix(layout, edges, size=(8, 11))
        theirs = ((source, root), edges) if layout in ("csr graph", "csc") else None
        assert_parity(conv, (source, root), adjacency, theirs=theirs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"improved": True}, {"normalize": False}], ids=str)
def test_gcn_conv_takes_matrices(options, layout, weighted):
    edges, x = edge_index(), features(5)
    edges = edges[:, : 1 + edges.size(1) // 2].unique(dim=1)  # a matrix sums duplicates
    weight = edge_weight(edges) if weighted else torch.ones(edges.size(1))
    adjacency = matrix(layout, edges, weight)
    # PyG takes no CSRGraph, and no CSC matrix where it normalises.
    takes = layout not in ("csr graph", "csc")
    theirs = None if takes else (x, edges, weight)
    assert_parity(pyg.GCNConv(5, 3, **options), x, adjacency, theirs=theirs)
    theirs = None if takes else (x, x, edges, weight)
    options = {**options, "alpha": 0.2}
    options.pop("improved", None)
    assert_parity(pyg.GCN2Conv(5, **options), x, x, adjacency, theirs=theirs)


@pytest.mark.parametrize("layout", ["coo", "csr", "torch_sparse"])
def test_cached_layers_and_self_loops_of_matrices_follow_pyg(layout):
    edges = edge_index("self loops").unique(dim=1)
    adjacency = matrix(layout, edges, edge_weight(edges))
    assert_parity(pyg.GCNConv(5, 3), features(5), adjacency)
    assert_parity(pyg.GCNConv(5, 3, cached=True), features(5), adjacency)


@pytest.mark.parametrize("layout", ["csr", "torch_sparse"])
@pytest.mark.parametrize("aggr", ["mean", "max", "sum"])
def test_sage_conv_reads_the_weights_of_matrices_as_pyg_does(layout, aggr):
    """Those of torch's matrices multiply, those of torch_sparse's are ignored."""
    edges = edge_index().unique(dim=1)
    adjacency = matrix(layout, edges, edge_weight(edges))
    assert_parity(pyg.SAGEConv(5, 3, aggr=aggr), features(5), adjacency)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_edge_weights_get_gradients(kind, normalize):
    edges = edge_index(kind)
    weight = edge_weight(edges, requires_grad=True)
    for flow in ("source_to_target", "target_to_source"):
        conv = pyg.GCNConv(5, 3, normalize=normalize, flow=flow)
        assert_parity(conv, features(5), edges, weight)
    conv = pyg.GCN2Conv(5, 0.1, 0.5, 2, normalize=normalize)
    assert_parity(conv, features(5), features(5), edges, weight)


def test_weights_of_torch_sparse_matrices_get_gradients():
    edges = edge_index().unique(dim=1)
    weight = edge_weight(edges, requires_grad=True)
    adjacency = matrix("torch_sparse", edges, weight)
    conv, x = pyg.GCNConv(5, 3), features(5)
    gradients = []
    for change in (decelerate, accelerate):
        out = change(conv)(x, adjacency)
        gradients.append(torch.autograd.grad(out.square().sum(), [x, weight], retain_graph=True))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    edges = edge_index()
    conv = pyg.GCNConv(5, 3).to(dtype)
    x = features(5, dtype=dtype)
    if dtype == torch.float64:
        assert_parity(conv, x, edges, edge_weight(edges, dtype))
        return
    expected = pyg.GCNConv(5, 3).to(torch.float64)
    expected.load_state_dict(conv.state_dict())
    exact, plain = expected(x.double(), edges), conv(x, edges)
    ours = accelerate(conv)(x, edges)
    assert ours.dtype == plain.dtype == dtype
    assert (ours - exact).abs().max() <= 1.1 * (plain - exact).abs().max()


def test_edge_index_objects_and_columns_of_weights():
    edges = edge_index()
    weight = edge_weight(edges)
    index = EdgeIndex(edges, sparse_size=(N, N))
    for given in (index, index.sort_by("col").values):
        assert_parity(pyg.GCNConv(5, 3), features(5), given)
        assert_parity(pyg.SAGEConv(5, 3), features(5), given)
    assert_parity(pyg.GCNConv(5, 3), features(5), edges.int(), weight)
    for normalize in (True, False):
        conv, x = pyg.GCNConv(5, 3, normalize=normalize), features(5)
        expected = conv(x, edges, weight)
        torch.testing.assert_close(accelerate(conv)(x, edges, weight.unsqueeze(1)), expected)
