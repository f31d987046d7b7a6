"""What is GATv2's alone; test_edge_attention.py has what both kinds of attention share."""

import math

import pytest
import torch
from attention_cases import DROPPED, assert_as_exact_as_plain_torch, assert_matches_reference

from abkd_fast import CSRGraph
from abkd_fast.ops import edge_attention_v2
from abkd_fast.testing import GRAPHS, random_graph


def test_values():
    #                        0 <- 1, 0 <- 2;  1 <- 2;  2 <- nobody
    graph = CSRGraph.from_csr(torch.tensor([0, 2, 3, 3]), torch.tensor([1, 2, 2]), None, 3)
    x = torch.tensor([[[0.0]], [[1.0]], [[-2.0]]])
    out = edge_attention_v2(graph, x, x + 1, torch.full((1, 1), 3.0), negative_slope=0.5)
    # x_j + x_i + 1: 2 and -1; scores 6 and -1.5.
    a, b = math.exp(6), math.exp(-1.5)
    torch.testing.assert_close(out.flatten(), torch.tensor([(a - 2 * b) / (a + b), -2.0, 0.0]))


@pytest.mark.parametrize("options", [{}, DROPPED], ids=["plain", "dropout"])
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference_in_float64(name, options):
    assert_matches_reference(name, "gatv2", options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["hub", "power-law"])
def test_is_as_exact_as_plain_torch(name, dtype):
    assert_as_exact_as_plain_torch(name, "gatv2", dtype)


def test_no_features_at_all():
    x = torch.ones(5, 2, 0, requires_grad=True)
    out = edge_attention_v2(random_graph(5), x, x, torch.ones(2, 0))
    assert out.shape == (5, 2, 0)
    assert torch.autograd.grad(out.sum(), x)[0].shape == (5, 2, 0)


def test_opcheck():
    graph, att = random_graph(7, 5), torch.randn(2, 4)
    x, x_dst, dout = torch.randn(5, 2, 4), torch.randn(7, 2, 4), torch.randn(7, 2, 4)
    edges, rest = (graph.rowptr, graph.col), (0.2, 0.5, torch.tensor(3), 1, 0)
    ops = torch.ops.abkd_fast
    _, stats = ops.edge_attention_v2(*edges, x, x_dst, att, *rest)
    torch.library.opcheck(ops.edge_attention_v2.default, (*edges, x, x_dst, att, *rest))
    backward = (*edges, *graph.transposed(), dout, x, x_dst, att, stats, *rest)
    torch.library.opcheck(ops.edge_attention_v2_backward.default, backward)


X, ATT = torch.ones(5, 2, 3), torch.ones(2, 3)


def test_rejects():
    graph, x_dst = random_graph(4, 5), torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match=r"x_dst must be \[4, 2, 3\], got \[5, 2, 3\]"):
        edge_attention_v2(graph, X, X, ATT)
    with pytest.raises(ValueError, match=r"att must be \[2, 3\], got \[2, 1\]"):
        edge_attention_v2(graph, X, x_dst, torch.ones(2, 1))
    with pytest.raises(ValueError, match="graph must be a CSRGraph, got Tensor"):
        edge_attention_v2(X, X, x_dst, ATT)
