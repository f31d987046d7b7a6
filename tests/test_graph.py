"""CSRGraph: construction and its checks, derived graphs."""

import copy
import pickle

import numpy as np
import pytest
import torch

from abkd_fast import CSRGraph
from abkd_fast.testing import GRAPHS, random_graph, sample_graph, wide_indices

NAN = float("nan")


def long(*values):
    return torch.tensor(values, dtype=torch.int64)


# 0 <- 1 (2), 0 <- 2 (-1), 2 <- 2 (3); node 1 has no incoming edge
def tiny(value=(2.0, -1.0, 3.0)):
    weights = None if value is None else torch.tensor(value)
    return CSRGraph.from_csr(long(0, 2, 2, 3), long(1, 2, 2), weights)


def test_parts():
    graph = CSRGraph.from_csr(long(0, 2, 2, 3), long(1, 4, 2), None, 5)
    assert (graph.num_dst, graph.num_src, graph.num_edges, graph.shape) == (3, 5, 3, (3, 5))
    assert graph.rowptr.tolist() == [0, 2, 2, 3] and graph.col.tolist() == [1, 4, 2]
    assert graph.rowptr.dtype == graph.col.dtype == torch.int32
    assert graph.row().tolist() == [0, 0, 2] and graph.row().dtype == torch.int64
    assert graph.value is None and graph.device == torch.device("cpu")
    assert repr(graph) == "CSRGraph(num_dst=3, num_src=5, num_edges=3, unweighted, cpu)"
    assert "torch.float32" in repr(tiny())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], long()), "rowptr must be a torch.Tensor, got list"),
        ((long()[:0], long()), r"rowptr must hold num_dst \+ 1 entries, got 0; an empty graph"),
        ((long(0, 1)[None], long(0)), r"rowptr must have 1 dimension\(s\), got shape \[1, 2\]"),
        ((torch.tensor([0.0, 1.0]), long(0)), "rowptr must be int32 or int64, got float32"),
        ((long(1, 1), long(0)), r"rowptr must start at 0, got rowptr\[0\]=1"),
        (
            (long(0, 2, 1, 3), long(0, 0, 0)),
            r"must not decrease, got rowptr\[1\]=2 > rowptr\[2\]=1",
        ),
        (  # rises modulo 2^64
            (long(0, 2**62, 2**63 - 1, -(2**63), -(2**62), 0, 1), long(0)),
            r"must not decrease, got rowptr\[2\]=9223372036854775807 > rowptr\[3\]=-92233",
        ),
        ((long(0, 2), long(0)), r"rowptr must end at E=1 \(the length of col\), got 2"),
        ((long(0, 1).to("meta"), long(0).to("meta")), "rowptr must be on a device that holds"),
        ((long(0, 1), [0]), "col must be a torch.Tensor, got list"),
        ((long(0, 1), long(0).to("meta")), "col must be on cpu, got meta; move it"),
        ((long(0, 1), torch.tensor([0.0])), "col must be int32 or int64, got float32"),
        ((long(0, 1), long(1)), r"col must lie in \[0, num_src=1\), got values from 1 to 1"),
        ((long(0, 1), long(-1)), r"col must lie in \[0, num_src=1\), got values from -1"),
        ((long(0, 1), long(7), None, 7), r"col must lie in \[0, num_src=7\)"),
        ((long(0, 0), long(), None, -1), "num_src must be >= 0, got -1"),
        ((long(0, 0), long(), None, 1.5), "num_src must be an integer, got 1.5"),
        ((long(0, 1), long(0), long(1)), "value must be float16 or .* or float64, got int64"),
        ((long(0, 1), long(0), torch.ones(2)), r"value must be \[E=1\], got \[2\]"),
        ((long(0, 1), long(0), torch.ones(1, 1)), r"value must have 1 dimension\(s\)"),
        ((long(0, 1), long(0), torch.ones(1, device="meta")), "value must be on cpu, got meta"),
        ((long(0, 1), long(0), torch.tensor([NAN])), "value must be finite, got 1 NaN .* clean"),
    ],
)
def test_from_csr_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        CSRGraph.from_csr(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2, dtype=torch.int64), 4), r"edge_index must be \[2, E\], got \[3, 2\]"),
        ((torch.zeros(2, 2), 4), "edge_index must be int32 or int64, got float32"),
        ((torch.tensor([[0], [3]]), 3), r"edge_index\[1\] must lie in \[0, num_nodes=3\)"),
        ((torch.tensor([[3], [0]]), 3), r"edge_index\[0\] must lie in \[0, num_nodes=3\)"),
        ((torch.tensor([[0], [0]]), 3, torch.ones(2)), r"edge_weight must be \[E=1\], got \[2\]"),
        ((torch.tensor([[0], [0]]), -1), "num_nodes must be >= 0, got -1"),
        ((torch.tensor([[0], [0]]), 2.0), "num_nodes must be an integer, got 2.0"),
        ((torch.tensor([[0], [0]]), 3, torch.tensor([NAN])), "value must be finite"),
    ],
)
def test_from_edge_index_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        CSRGraph.from_edge_index(*arguments)


def test_later_changes_of_the_callers_arrays_do_not_reach_the_graph():
    for dtype in (torch.int32, torch.int64):
        rowptr, col = long(0, 2, 3).to(dtype), long(1, 0, 1).to(dtype)
        weights = torch.nn.Parameter(torch.ones(3))
        graph = CSRGraph.from_csr(rowptr, col, weights)
        rowptr.fill_(99)
        col.fill_(99)
        assert graph.rowptr.tolist() == [0, 2, 3] and graph.col.tolist() == [1, 0, 1]
        assert graph.value is weights  # trained in place


def test_from_edge_index_sorts_keeps_duplicates_and_reads_source_to_target():
    edges = torch.tensor([[2, 0, 2, 1, 2], [0, 1, 0, 0, 2]])
    graph = CSRGraph.from_edge_index(edges, np.int64(3), torch.tensor([1.0, 2, 3, 4, 5]))
    assert graph.rowptr.tolist() == [0, 3, 4, 5]
    assert graph.col.tolist() == [1, 2, 2, 0, 2]
    assert graph.value.tolist() == [4, 1, 3, 2, 5]
    edge_index, weight = graph.to_edge_index()
    assert edge_index.tolist() == [[1, 2, 2, 0, 2], [0, 0, 0, 1, 2]]
    assert weight is graph.value and edge_index.dtype == torch.int64


def test_from_edge_index_bipartite_and_empty():
    graph = CSRGraph.from_edge_index(torch.tensor([[4, 0], [1, 1]]), (5, 2))
    assert graph.shape == (2, 5) and graph.col.tolist() == [0, 4]
    empty = CSRGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    assert empty.shape == (0, 0) and empty.rowptr.tolist() == [0]
    assert empty.gcn_norm().degree_stats().mean == 0


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("name", GRAPHS)
def test_transpose(name, dtype):
    for graph in (sample_graph(name, dtype), wide_indices(sample_graph(name, dtype))):
        assert torch.equal(graph.t().to_dense(), graph.to_dense().t())
        assert graph.t() is graph.t() and graph.t().t() is graph
        assert graph.t().col.dtype == graph.col.dtype
        rowptr, col, perm = graph.transposed()
        assert torch.equal(graph.row()[perm].to(col.dtype), col)
        assert rowptr[-1] == graph.num_edges


def test_what_inference_mode_derives_can_be_trained_on():
    graph = random_graph(5, dtype=torch.float32)
    with torch.inference_mode():
        derived = [getattr(graph, method)() for method in ("t", "gcn_norm", "row_norm")]
        derived += [graph.gcn_norm().t(), random_graph(5).t()]
    for kept in derived:
        tensors = (kept.rowptr, kept.col, *kept.transposed())
        assert not any(tensor.is_inference() for tensor in tensors)
        assert kept.value is None or not kept.value.is_inference()
    assert graph.gcn_norm() is derived[1]


def test_derived_graphs_are_kept_unless_weights_train():
    graph = random_graph(5, dtype=torch.float32)
    assert graph.gcn_norm() is graph.gcn_norm() and graph.row_norm() is graph.row_norm()
    weight = graph.value.clone().requires_grad_()
    trained = graph.with_value(weight)
    for method in ("t", "gcn_norm", "row_norm"):
        before = getattr(trained, method)().value.detach().clone()
        with torch.no_grad():
            weight.add_(1.0)
        assert not torch.equal(getattr(trained, method)().value, before), method
    assert trained.t().t() is trained
    assert torch.equal(trained.transposed()[2], graph.transposed()[2])


def test_add_self_loops():
    graph = CSRGraph.from_edge_index(torch.tensor([[0, 1, 1, 2], [1, 1, 1, 0]]), 3)
    looped = graph.add_self_loops()
    assert looped.to_dense().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert looped.value is None
    assert graph.add_self_loops(0.5).to_dense().tolist() == [[0.5, 0, 1], [1, 1, 0], [0, 0, 0.5]]
    weighted = graph.with_value(torch.tensor([3.0, 4, 5, 6])).add_self_loops()
    assert weighted.to_dense().tolist() == [[1, 0, 3], [4, 6, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"add_self_loops\(\) needs a square graph, got num_dst=2"):
        random_graph(2, 3).add_self_loops()


@pytest.mark.parametrize("name", [n for n in GRAPHS if n not in ("no-edges", "wide", "tall")])
@pytest.mark.parametrize("weighted", [False, True])
def test_gcn_norm_is_the_formula(name, weighted):
    graph = sample_graph(name, torch.float64 if weighted else None)
    graph = graph if graph.value is None else graph.with_value(graph.value.abs())
    looped = graph.add_self_loops().to_dense().double()
    scale = looped.sum(1).rsqrt()
    expected = scale[:, None] * looped * scale
    torch.testing.assert_close(graph.gcn_norm().to_dense().double(), expected, rtol=1e-6, atol=1e-7)


def test_gcn_norm_of_negative_and_zero_degrees():
    graph = CSRGraph.from_csr(long(0, 1, 2), long(1, 0), torch.tensor([-1.0, -5.0]))
    assert graph.gcn_norm().value.tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_sum_16_bit_weights_in_float32(dtype):
    degree = 5000  # a float16 sum of ones stops at 2048, a bfloat16 one at 256
    col = torch.arange(degree) % 3
    graph = CSRGraph.from_csr(long(0, degree, degree, degree), col, torch.ones(degree).to(dtype))
    row = graph.row_norm().value
    assert row.dtype == dtype and torch.equal(row, torch.full_like(row, 1 / degree))
    assert graph.gcn_norm().value.dtype == dtype


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weighted", [False, True])
def test_gcn_norm_is_pyg_s(weighted):
    reason = "torch_geometric is not installed"
    conv = pytest.importorskip("torch_geometric.nn.conv.gcn_conv", reason=reason)
    graph = random_graph(20, power_law=True, dtype=torch.float32 if weighted else None)
    graph = graph if graph.value is None else graph.with_value(graph.value.abs())
    edge_index, weight = conv.gcn_norm(*graph.to_edge_index(), num_nodes=20)
    expected = CSRGraph.from_edge_index(edge_index, 20, weight)
    torch.testing.assert_close(graph.gcn_norm().to_dense(), expected.to_dense())


def test_row_norm():
    assert tiny().row_norm().value.tolist() == [2.0, -1.0, 1.0]
    assert tiny(None).row_norm().value.tolist() == [0.5, 0.5, 1.0]
    assert tiny((1.0, -1.0, 3.0)).row_norm().value.tolist() == [0.0, 0.0, 1.0]


def test_with_value():
    graph = tiny(None)
    graph.t()
    weighted = graph.with_value(torch.ones(3))
    assert weighted.transposed()[2] is graph.transposed()[2]
    assert weighted.with_value(None).value is None
    for value, message in [
        (torch.ones(4), r"value must be \[E=3\], got \[4\]"),
        (long(1, 1, 1), "value must be float16"),
        (torch.ones(3, device="meta"), "value must be on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            graph.with_value(value)


def test_to():
    graph = tiny()
    assert graph.to("cpu") is graph and graph.to(dtype=torch.float32) is graph
    assert graph.to(dtype=torch.float64).value.dtype == torch.float64
    moved = graph.to("meta", torch.bfloat16)
    assert moved.device.type == moved.col.device.type == "meta"
    assert moved.value.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype must be float16 or .* or float64, got int64"):
        graph.to(dtype=torch.int64)


def test_degree_stats():
    stats = CSRGraph.from_csr(long(0, 3, 3, 4), long(0, 1, 2, 0)).degree_stats()
    assert (stats.num_dst, stats.num_src, stats.num_edges) == (3, 3, 4)
    assert (stats.max, stats.median, stats.isolated, stats.self_loops) == (3, 1.0, 1, 1)
    assert stats.mean == pytest.approx(4 / 3)


def test_fingerprint():
    graph = tiny()
    prints = {
        graph.fingerprint(),
        tiny(None).fingerprint(),
        tiny((2.0, -1.0, 3.5)).fingerprint(),
        CSRGraph.from_csr(graph.rowptr, graph.col, graph.value, 4).fingerprint(),
        CSRGraph.from_csr(graph.rowptr, long(1, 2, 1), graph.value).fingerprint(),
    }
    assert len(prints) == 5
    assert wide_indices(graph).fingerprint() == tiny().fingerprint()


def test_copies():
    for clone in (copy.deepcopy(tiny()), pickle.loads(pickle.dumps(tiny()))):
        assert clone.fingerprint() == tiny().fingerprint()
