"""What must hold for every graph; weights and features are small integers, so sums are exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkd_fast import CSRGraph
from abkd_fast.ops import spmm

REDUCTIONS = ("sum", "mean", "max", "min")
every = settings(deadline=None, derandomize=True, max_examples=150)
reductions = st.sampled_from(REDUCTIONS)


@st.composite
def graphs(draw, square=False, weighted=None, dtypes=(torch.float32, torch.float64)):
    """Up to 8 x 8 nodes and 24 edges in any order, repeated edges and self-loops included."""
    num_dst = draw(st.integers(0, 8))
    num_src = num_dst if square else draw(st.integers(0, 8))
    node_pairs = st.tuples(st.integers(0, max(num_dst - 1, 0)), st.integers(0, max(num_src - 1, 0)))
    edges = draw(st.lists(node_pairs, max_size=24 if num_dst and num_src else 0))
    weighted = draw(st.booleans()) if weighted is None else weighted
    value = None
    if weighted:
        weights = draw(st.lists(st.integers(-4, 4), min_size=len(edges), max_size=len(edges)))
        value = torch.tensor(weights, dtype=draw(st.sampled_from(dtypes)))
    row, col = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()
    return CSRGraph.from_edge_index(torch.stack([col, row]), (num_src, num_dst), value)


def features(rows, seed, like=None):
    """[rows, 0..9] integers from -4 to 4; float64, or the dtype of the graph's weights."""
    generator = torch.Generator().manual_seed(seed)
    width = int(torch.randint(10, (), generator=generator))
    dtype = torch.float64 if like is None or like.value is None else like.value.dtype
    return torch.randint(-4, 5, (rows, width), generator=generator).to(dtype)


seeds = st.integers(0, 2**31)


def edges_of(graph):
    """Every edge with its weight, in a fixed order."""
    index, value = graph.to_edge_index()
    weights = [1.0] * graph.num_edges if value is None else value.tolist()
    return sorted(zip(*index.tolist(), weights, strict=True))


def permuted(graph, order):
    """The square graph after node i has become node order[i]."""
    index, value = graph.to_edge_index()
    return CSRGraph.from_edge_index(order[index], graph.num_dst, value)


@every
@given(graphs(), seeds, st.integers(-3, 3), st.integers(-3, 3))
def test_spmm_is_linear(graph, seed, a, b):
    x = features(graph.num_src, seed, graph)
    y = x.flip(1)
    combined = spmm(graph, a * x + b * y)
    assert torch.equal(combined, a * spmm(graph, x) + b * spmm(graph, y))


@every
@given(graphs(), seeds)
def test_the_transpose_is_the_adjoint_and_the_gradient(graph, seed):
    x = features(graph.num_src, seed, graph).requires_grad_()
    out = spmm(graph, x)
    y = torch.arange(out.numel()).reshape(out.shape).to(out.dtype) % 7 - 3
    assert (out * y).sum() == (x * spmm(graph.t(), y)).sum()
    (dx,) = torch.autograd.grad(out, x, y)
    assert torch.equal(dx, spmm(graph.t(), y))


@every
@given(graphs(), seeds, reductions)
def test_reductions_against_scipy(graph, seed, reduce):
    x = features(graph.num_src, seed, graph)
    matrix = graph.to_scipy()
    expected = matrix @ x.numpy()
    degree = np.diff(matrix.indptr)
    if reduce == "mean":
        expected = expected / np.maximum(degree, 1)[:, None].astype(expected.dtype)
    elif reduce in ("max", "min"):
        messages = matrix.data[:, None] * x.numpy()[matrix.indices]
        pick = np.max if reduce == "max" else np.min
        for i in range(graph.num_dst):
            if degree[i]:
                expected[i] = pick(messages[matrix.indptr[i] : matrix.indptr[i + 1]], axis=0)
    np.testing.assert_array_equal(spmm(graph, x, reduce).numpy(), expected.astype(x.numpy().dtype))


@every
@given(graphs(square=True), seeds, reductions)
def test_spmm_is_equivariant_to_the_order_of_nodes(graph, seed, reduce):
    x = features(graph.num_src, seed, graph)
    order = torch.randperm(graph.num_dst, generator=torch.Generator().manual_seed(seed))
    out = torch.empty_like(x)
    out[order] = spmm(graph, x, reduce)
    moved = torch.empty_like(x)
    moved[order] = x
    assert torch.equal(spmm(permuted(graph, order), moved, reduce), out)


@every
@given(graphs())
def test_edge_lists_round_trip(graph):
    index, value = graph.to_edge_index()
    again = CSRGraph.from_edge_index(index, (graph.num_src, graph.num_dst), value)
    assert edges_of(again) == edges_of(graph) and again.fingerprint() == graph.fingerprint()
    order = torch.arange(graph.num_edges).flip(0)
    shuffled = None if value is None else value[order]
    mixed = CSRGraph.from_edge_index(index[:, order], (graph.num_src, graph.num_dst), shuffled)
    assert edges_of(mixed) == edges_of(graph)
    key = mixed.row() * 8 + mixed.col.long()
    assert bool((key.diff() >= 0).all())


@every
@given(graphs())
def test_transposing_swaps_the_ends_of_every_edge(graph):
    transposed = graph.t()
    assert transposed.t() is graph and transposed.shape == graph.shape[::-1]
    assert edges_of(transposed) == sorted((i, j, w) for j, i, w in edges_of(graph))
    parts = (transposed.rowptr, transposed.col, transposed.value, transposed.num_src)
    assert CSRGraph.from_csr(*parts).t().fingerprint() == graph.fingerprint()


@every
@given(graphs())
def test_other_formats_round_trip(graph):
    weighted = graph
    if graph.value is None:
        weighted = graph.with_value(torch.ones(graph.num_edges))
    csr = CSRGraph.from_csr(graph.rowptr.long(), graph.col.long(), graph.value, graph.num_src)
    assert csr.fingerprint() == graph.fingerprint()
    assert CSRGraph.from_scipy(graph.to_scipy()).fingerprint() == weighted.fingerprint()
    assert CSRGraph.from_torch(graph.to_torch()).fingerprint() == weighted.fingerprint()


@every
@given(graphs(square=True, weighted=True, dtypes=(torch.float64,)))
def test_gcn_norm_of_a_symmetric_graph_is_symmetric_and_bounded(graph):
    index, value = graph.to_edge_index()
    both = torch.cat([index, index.flip(0)], dim=1)
    symmetric = CSRGraph.from_edge_index(both, graph.num_dst, value.abs().repeat(2))
    dense = symmetric.gcn_norm().to_dense()
    torch.testing.assert_close(dense, dense.t())
    looped = symmetric.add_self_loops().to_dense()
    scale = looped.sum(1).pow(-0.5).masked_fill(looped.sum(1) <= 0, 0)
    torch.testing.assert_close(dense, scale[:, None] * looped * scale)
    if graph.num_dst:
        assert float(torch.linalg.eigvalsh(dense).abs().max()) <= 1 + 1e-12


@every
@given(graphs(square=True, weighted=False))
def test_rows_of_row_norm_sum_to_one(graph):
    total = graph.row_norm().to_dense().sum(1)
    expected = (graph.rowptr.diff() > 0).to(total.dtype)
    torch.testing.assert_close(total, expected)


@every
@given(graphs(square=True), st.sampled_from([-2.0, 1.0, 3.0]))
def test_self_loops_are_added_once(graph, fill):
    looped = graph.add_self_loops(fill)
    row, col = looped.row(), looped.col.long()
    assert sorted(row[row == col].tolist()) == list(range(graph.num_dst))
    assert edges_of(looped.add_self_loops(7.0)) == edges_of(looped)
    kept = [edge for edge in edges_of(graph) if edge[0] != edge[1]]
    assert [edge for edge in edges_of(looped) if edge[0] != edge[1]] == kept


@every
@given(graphs(), st.sampled_from([(-1, 0), (0, -1), (8, 0), (0, 8), (2**40, 0)]))
def test_edges_beyond_the_nodes_are_refused(graph, edge):
    index, _ = graph.to_edge_index()
    outside = torch.cat([index, torch.tensor(edge)[:, None]], dim=1)
    with pytest.raises(ValueError, match="must lie in"):
        CSRGraph.from_edge_index(outside, (graph.num_src, graph.num_dst))
