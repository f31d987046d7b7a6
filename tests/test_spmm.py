"""spmm forward, on the back end that serves it; test_backend.py runs this file on the others."""

import pytest
import torch
from thread_counts import at_thread_counts, short_rows

from abkd_fast import CSRGraph, reference
from abkd_fast.ops import spmm
from abkd_fast.testing import (
    GRAPHS,
    assert_no_worse,
    random_graph,
    sample_graph,
    wide_indices,
)

REDUCTIONS = ["sum", "mean", "max", "min"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WIDTHS = [0, 1, 2, 3, 5, 8, 13, 16, 33, 64, 127, 130, 300]  # every tile shape of every kernel
FEW_WIDTHS = [0, 1, 7, 40]

#          0 <- 1 (weight 2), 0 <- 2 (weight -1);  1 <- nothing;  2 <- 2 (weight 3)
ROWPTR, COL, VALUE = [0, 2, 2, 3], [1, 2, 2], [2.0, -1.0, 3.0]
X = [[1.0, 10.0], [3.0, -4.0], [5.0, 6.0]]


def tiny(value=None):
    weights = None if value is None else torch.tensor(value)
    return CSRGraph.from_csr(torch.tensor(ROWPTR), torch.tensor(COL), weights)


@pytest.mark.parametrize(
    ("reduce", "value", "expected"),
    [
        ("sum", None, [[8.0, 2.0], [0.0, 0.0], [5.0, 6.0]]),
        ("mean", None, [[4.0, 1.0], [0.0, 0.0], [5.0, 6.0]]),
        ("max", None, [[5.0, 6.0], [0.0, 0.0], [5.0, 6.0]]),
        ("min", None, [[3.0, -4.0], [0.0, 0.0], [5.0, 6.0]]),
        ("sum", VALUE, [[1.0, -14.0], [0.0, 0.0], [15.0, 18.0]]),
        ("mean", VALUE, [[0.5, -7.0], [0.0, 0.0], [15.0, 18.0]]),
        ("max", VALUE, [[6.0, -6.0], [0.0, 0.0], [15.0, 18.0]]),
        ("min", VALUE, [[-5.0, -8.0], [0.0, 0.0], [15.0, 18.0]]),
    ],
)
def test_values(reduce, value, expected):
    assert spmm(tiny(value), torch.tensor(X), reduce).tolist() == expected


def test_winners_are_edge_ids_first_edge_wins_ties_and_empty_rows_have_none():
    graph = tiny()
    x = torch.tensor([[0.0, 0.0], [7.0, 1.0], [7.0, 2.0]])
    out, arg = torch.ops.abkd_fast.spmm_extremum(graph.rowptr, graph.col, None, x, True, True)
    assert out.tolist() == [[7.0, 2.0], [0.0, 0.0], [7.0, 2.0]]
    assert arg.tolist() == [[0, 1], [-1, -1], [2, 2]]
    assert arg.dtype == graph.col.dtype


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference(name, dtype, reduce, weighted):
    graph = sample_graph(name, dtype if weighted else None)
    for width in WIDTHS if name == "power-law" else FEW_WIDTHS:
        x = torch.randn(graph.num_src, width).to(dtype)
        exact = reference.spmm(graph.to(dtype=torch.float64), x.double(), reduce)
        plain = reference.spmm(graph, x, reduce)
        out = spmm(graph, x, reduce)
        assert_no_worse(out, exact, plain)
        assert torch.equal(spmm(wide_indices(graph), x, reduce), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_is_read_and_written_as_torch_does(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(-1, 64)
    graph = CSRGraph.from_csr(torch.arange(x.size(0) + 1), torch.arange(x.size(0)))
    torch.testing.assert_close(spmm(graph, x), x, rtol=0, atol=0, equal_nan=True)
    scale = torch.linspace(0.3, 3, x.size(0))  # products that need rounding, and overflow
    expected = (x.float() * scale.unsqueeze(1)).to(dtype)
    scaled = spmm(graph.with_value(scale), x)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_float32_beside_16_bit_features(dtype):
    graph = tiny([0.1, 0.7, 1 / 3])
    x = torch.tensor(X).to(dtype)
    assert torch.equal(spmm(graph, x), spmm(graph, x.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_hub_of_a_hundred_thousand_edges_accumulates_in_float32(dtype):
    degree = 100_000 if dtype == torch.bfloat16 else 60_000  # float16 ends at 65504
    col = torch.arange(degree) % 10
    graph = CSRGraph.from_csr(torch.tensor([0, degree, degree]), col, None, 10)
    x = torch.ones(10, 20, dtype=dtype)
    expected = torch.tensor([[degree], [0]]).to(dtype).expand(2, 20)
    assert torch.equal(spmm(graph, x), expected)
    assert torch.equal(spmm(graph, x, "mean"), (expected > 0).to(dtype))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nan_stays_in_the_rows_that_read_it(reduce):
    graph = random_graph(40, mean_degree=3, seed=1)
    x = torch.randn(40, 33)
    node = int(graph.col[0])
    x[node, 5] = torch.nan
    readers = torch.zeros(40, dtype=torch.bool)
    readers[graph.row()[graph.col == node]] = True
    out = spmm(graph, x, reduce)
    assert torch.equal(out.isnan()[:, 5], readers)
    assert not out[:, :5].isnan().any() and not out[:, 6:].isnan().any()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_non_contiguous_features(reduce):
    graph = random_graph(20, 12, dtype=torch.float32)
    base = torch.randn(24, 40)
    for x in (base[::2, 3:20], base.t()[:12], base[:1].expand(12, 40)):
        assert torch.equal(spmm(graph, x, reduce), spmm(graph, x.clone().contiguous(), reduce))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_thousands_of_short_rows(dtype, reduce):
    graph = short_rows(torch.float64 if dtype == torch.float64 else torch.float32)
    for width in (1, 3, 4, 8, 16, 23):
        x = torch.randn(700, width).to(dtype)
        results = at_thread_counts(lambda x=x: spmm(graph, x, reduce))
        exact = reference.spmm(graph.to(dtype=torch.float64), x.double(), reduce)
        assert_no_worse(results[0], exact, reference.spmm(graph, x, reduce))
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [450, 528])
def test_wide_features_of_thousands_of_nodes(dtype, width):
    """Some processors read these in slices of columns; the last vector of 450 overlaps another."""
    graph = random_graph(300, 5_000, mean_degree=6, dtype=dtype)
    x = torch.randn(5_000, width).to(dtype)
    exact = reference.spmm(graph.to(dtype=torch.float64), x.double())
    assert_no_worse(spmm(graph, x), exact, reference.spmm(graph, x))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("power_law", [False, True])
def test_runs_and_thread_counts_agree_to_the_bit(reduce, power_law):
    graph = random_graph(3000, mean_degree=8, power_law=power_law, dtype=torch.float32)
    x = torch.randn(3000, 37)
    results = at_thread_counts(lambda: spmm(graph, x, reduce))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_order_of_the_edges_within_rows_does_not_matter(reduce):
    graph = random_graph(30, mean_degree=5, dtype=torch.float64)
    order = torch.argsort(graph.row() * 1000 + torch.randint(1000, (graph.num_edges,)))
    shuffled = CSRGraph.from_csr(graph.rowptr, graph.col[order], graph.value[order])
    x = torch.randn(30, 9, dtype=torch.float64)
    torch.testing.assert_close(spmm(shuffled, x, reduce), spmm(graph, x, reduce))


def test_transpose_identity():
    graph = random_graph(30, 20, power_law=True, dtype=torch.float64)
    x, y = torch.randn(20, 9, dtype=torch.float64), torch.randn(30, 9, dtype=torch.float64)
    torch.testing.assert_close((spmm(graph, x) * y).sum(), (x * spmm(graph.t(), y)).sum())


@pytest.mark.parametrize(
    ("x", "reduce", "message"),
    [
        (torch.ones(4, 2), "sum", r"x must be \[num_src=5, F\], got \[4, 2\]; pass graph.t\(\)"),
        (torch.ones(3, 2), "sum", r"x must be \[num_src=5, F\], got \[3, 2\]; one row per source"),
        (torch.ones(5), "sum", r"x must have 2 dimension\(s\), got shape \[5\]"),
        (torch.ones(5, 2, dtype=torch.int64), "sum", "x must be float16 or .*, got int64"),
        (torch.ones(5, 2, device="meta"), "sum", "x must be on cpu, got meta"),
        ([[1.0]], "sum", "x must be a torch.Tensor, got list"),
        (torch.ones(5, 2), "add", "reduce must be one of sum, mean, max, min, got 'add'"),
        (torch.ones(5, 2), "sum", "graph.value must be float32 or narrower .* x is float32"),
    ],
)
def test_rejects(x, reduce, message):
    with pytest.raises(ValueError, match=message):
        spmm(random_graph(4, 5, dtype=torch.float64), x, reduce)


def test_rejects_dense_and_sparse_tensors_in_each_other_s_place():
    with pytest.raises(ValueError, match="graph must be a CSRGraph, got Tensor; build one"):
        spmm(torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"x must be a dense \(strided\) tensor, got layout"):
        spmm(random_graph(3), torch.eye(3).to_sparse())


def test_meta_tensors_and_fake_shapes():
    graph = random_graph(4, 5)
    x = torch.ones(5, 3, device="meta", dtype=torch.bfloat16)
    rowptr, col = graph.rowptr.to("meta"), graph.col.to("meta")
    out = torch.ops.abkd_fast.spmm(rowptr, col, None, x, False)
    assert (out.shape, out.dtype, out.device.type) == ((4, 3), torch.bfloat16, "meta")
