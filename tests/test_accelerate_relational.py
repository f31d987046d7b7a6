"""The accelerated RGCNConv gives PyG's outputs and gradients."""

import pytest
import torch
from pyg_cases import KINDS, N, assert_parity, edge_index

from abkd_fast import RelationalGraph, accelerate, acceleration

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")

R = 4


def features(width, rows=N, dtype=torch.float32):
    return torch.randn(rows, width, dtype=dtype, requires_grad=True)


def edge_type(edges):
    """Relations 0 to R - 2: the last has no edges."""
    return torch.randint(R - 1, (edges.size(1),), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_bases": 3},
        {"num_blocks": 2},
        {"aggr": "sum", "bias": False},
        {"root_weight": False, "aggr": "add"},
        {"flow": "target_to_source"},
    ],
    ids=str,
)
def test_rgcn_conv(options, kind):
    edges = edge_index(kind)
    for widths in ((8, 4), (4, 8)):
        conv = pyg.RGCNConv(*widths, R, **options)
        assert_parity(conv, features(widths[0]), edges, edge_type(edges))
    if "num_blocks" not in options:
        conv = pyg.RGCNConv(N, 5, R, **options)
        assert_parity(conv, None, edges, edge_type(edges))


@pytest.mark.parametrize("options", [{}, {"num_bases": 2}, {"root_weight": False}], ids=str)
def test_pairs(options):
    edges = torch.stack([torch.arange(20) % 11, torch.arange(20) % 7])
    conv = pyg.RGCNConv((4, 6), 3, R, **options)
    assert_parity(conv, (features(4, 11), features(6, 8)), edges, edge_type(edges))


def test_float64_and_graphs_of_ours():
    edges = edge_index("duplicates")
    kinds, x = edge_type(edges), features(5, dtype=torch.float64)
    conv = pyg.RGCNConv(5, 3, R).double()
    expected = conv(x, edges, kinds)
    torch.testing.assert_close(accelerate(conv)(x, edges, kinds), expected)
    graph = RelationalGraph.from_edge_type(edges, kinds, N, R)
    torch.testing.assert_close(conv(x, graph), expected)


def test_changed_types_are_another_graph():
    edges = edge_index()
    kinds, x = edge_type(edges), features(5).detach()
    conv = accelerate(pyg.RGCNConv(5, 3, R))
    first = conv(x, edges, kinds)
    assert torch.equal(conv(x, edges, kinds), first)
    kinds.fill_(R - 1)
    assert not torch.allclose(conv(x, edges, kinds), first)


@pytest.mark.parametrize(
    ("options", "arguments", "why"),
    [
        ({}, lambda: (torch.arange(N),), "x is not a dense tensor"),
        ({}, lambda: ((None, torch.arange(N)),), "x is a pair without features of the sources"),
    ],
)
def test_calls_that_we_cannot_serve_run_pygs_code(options, arguments, why):
    edges = edge_index()
    conv = pyg.RGCNConv(N, 3, R, **options)
    expected = conv(*arguments(), edges, edge_type(edges))
    with pytest.warns(UserWarning, match=f"PyG's own RGCNConv serves a call: {why}"):
        out = accelerate(conv)(*arguments(), edges, edge_type(edges))
    assert torch.equal(out, expected)


def test_layers_that_are_left():
    model = torch.nn.ModuleDict(
        {"max": pyg.RGCNConv(4, 4, R, aggr="max"), "fast": pyg.FastRGCNConv(4, 4, R)}
    )
    with pytest.warns(UserWarning, match="2 of 2 layers are not accelerated"):
        accelerate(model)
    assert acceleration(model).left == {
        "max": "aggr='max' is none of mean, add, sum",
        "fast": "it is a subclass of RGCNConv, which may compute something else",
    }
