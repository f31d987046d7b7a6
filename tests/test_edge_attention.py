"""Edge attention on the back end that serves it; test_backend.py runs this file on the others."""

import math

import pytest
import torch
from attention_cases import (
    CASES,
    DROPPED,
    assert_as_exact_as_plain_torch,
    assert_matches_reference,
    attend,
    fits,
    leaves,
    results,
)
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import CSRGraph
from abkd_fast._backend import backend_of
from abkd_fast.ops import dropout, edge_attention
from abkd_fast.testing import GRAPHS, random_graph, sample_graph

GAT_CASES = [case for case in CASES if case != "gatv2"]  # test_edge_attention_v2.py
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_values():
    #                        0 <- 1, 0 <- 2;  1 <- 2;  2 <- nobody
    graph = CSRGraph.from_csr(torch.tensor([0, 2, 3, 3]), torch.tensor([1, 2, 2]), None, 3)
    x = torch.tensor([[[0.0]], [[1.0]], [[-2.0]]])
    out = edge_attention(graph, x, torch.ones(1, 1), torch.full((1, 1), 2.0), negative_slope=0.5)
    # Scores of row 0: leaky(1 + 0) = 1 and leaky(-2 + 0) = -1.
    a, b = math.exp(1), math.exp(-1)
    torch.testing.assert_close(out.flatten(), torch.tensor([(a - 2 * b) / (a + b), -2.0, 0.0]))


@pytest.mark.parametrize("options", [{}, DROPPED], ids=["plain", "dropout"])
@pytest.mark.parametrize("case", GAT_CASES)
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference_in_float64(name, case, options):
    graph = sample_graph(name)
    if fits(case, graph):
        assert_matches_reference(name, case, options)
        return
    with pytest.raises(ValueError, match="x_dst must be given where the graph is not square"):
        attend(case, graph, leaves(case, graph, 1, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "case"),
    [("power-law", case) for case in GAT_CASES] + [("hub", case) for case in GAT_CASES[1:]],
)
def test_is_as_exact_as_plain_torch(name, case, dtype):
    assert_as_exact_as_plain_torch(name, case, dtype)


@pytest.mark.parametrize("case", list(CASES))
def test_gradcheck(case):
    graph = random_graph(5, mean_degree=2)
    tensors = leaves(case, graph, 2, 3)

    def op(*given):
        return attend(case, graph, dict(zip(tensors, given, strict=True)), **DROPPED)

    assert gradcheck(op, list(tensors.values()))
    assert gradgradcheck(op, list(tensors.values()))


@pytest.mark.parametrize("case", list(CASES))
def test_frozen_arguments(case):
    graph = random_graph(30, mean_degree=4)
    tensors = leaves(case, graph, 2, 4)
    full = results(case, graph, tensors)
    for position, trained in enumerate(tensors, start=1):
        alone = {n: t.detach().requires_grad_(n == trained) for n, t in tensors.items()}
        out = attend(case, graph, alone)
        generator = torch.Generator().manual_seed(1)
        dout = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        (only,) = torch.autograd.grad(out, alone[trained], dout)
        assert torch.equal(only, full[position])
    with torch.no_grad():
        assert torch.equal(attend(case, graph, tensors), full[0])


@pytest.mark.parametrize("case", ["gat", "gat-edges", "gatv2"])
def test_runs_and_thread_counts_agree_to_the_bit(case):
    if backend_of("edge_attention")[0] != "cpu":
        pytest.skip("torch's index_add does not share out its rows")
    graph = random_graph(4000, mean_degree=8, power_law=True)
    tensors = leaves(case, graph, 4, 20, torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            runs.append(results(case, graph, tensors, **DROPPED))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@pytest.mark.parametrize("case", list(CASES))
def test_strides_do_not_matter(case):
    graph = random_graph(20, mean_degree=4)
    tensors = leaves(case, graph, 3, 5)
    strided = {
        n: t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
        for n, t in tensors.items()
    }
    for a, b in zip(results(case, graph, strided), results(case, graph, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", ["gat", "gatv2"])
def test_large_scores_are_safe(case):
    graph = random_graph(40, mean_degree=6, seed=1)
    tensors = {n: 1e4 * t.detach() for n, t in leaves(case, graph, 2, 8, torch.float32).items()}
    out = attend(case, graph, tensors)
    assert bool(out.isfinite().all())
    exact = attend(case, graph, {n: t.double() for n, t in tensors.items()}, True)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("case", ["gat", "gatv2"])
def test_nan_reaches_its_readers_and_nobody_else(case):
    graph = random_graph(40, mean_degree=3, seed=1)
    tensors = leaves(case, graph, 2, 9, torch.float32)
    tensors = {n: t.detach().clone() for n, t in tensors.items()}
    node = int(graph.col[0])
    tensors["x"][node] = torch.nan
    readers = torch.zeros(40, dtype=torch.bool)
    readers[graph.row()[graph.col == node]] = True
    degree = graph.rowptr.diff()
    if case == "gat":  # its own score as a destination
        readers[node] |= bool(degree[node] > 0)
    assert torch.equal(attend(case, graph, tensors).isnan().flatten(1).any(1), readers)


def test_dropout_of_the_coefficients_is_that_of_ops_dropout():
    graph = random_graph(50, mean_degree=5)
    x, att = torch.randn(50, 3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    out = edge_attention(graph, x, att, **DROPPED)
    uniform = (1 / graph.rowptr.diff().clamp(min=1).double())[graph.row()]
    alpha = dropout(uniform.unsqueeze(1).expand(-1, 3), *DROPPED.values())
    expected = torch.zeros_like(out).index_add(
        0, graph.row(), alpha.unsqueeze(-1) * x[graph.col.long()]
    )
    torch.testing.assert_close(out, expected)


def test_no_features_at_all():
    x = torch.ones(5, 2, 0, requires_grad=True)
    graph = random_graph(5)
    out = edge_attention(graph, x, torch.ones(2, 0), torch.ones(2, 0))
    assert out.shape == (5, 2, 0)
    assert torch.autograd.grad(out.sum(), x)[0].shape == (5, 2, 0)


def test_opcheck():
    graph = random_graph(7, 5)
    x, x_dst, dout = torch.randn(5, 2, 4), torch.randn(7, 2, 4), torch.randn(7, 2, 4)
    att, edges = torch.randn(2, 4), (graph.rowptr, graph.col)
    given = (x, x_dst, att, att + 1, torch.randn(graph.num_edges, 2))
    rest = (0.2, 0.5, torch.tensor(3), 1, 0)
    ops = torch.ops.abkd_fast
    _, *kept = ops.edge_attention(*edges, *given, *rest)
    torch.library.opcheck(ops.edge_attention.default, (*edges, *given, *rest))
    backward = (*edges, *graph.transposed(), dout, *given, *kept, *rest, True)
    torch.library.opcheck(ops.edge_attention_backward.default, backward)


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("case", ["gat", "gat-edges", "gatv2"])
def test_compiles_without_graph_breaks(case):
    torch._dynamo.reset()
    graph = random_graph(12)
    graph.t()
    tensors = leaves(case, graph, 2, 4, torch.float32)
    options = DROPPED | {"seed": torch.tensor(77)}

    def layer(tensors):
        x = tensors["x"].sin()
        return attend(case, graph, tensors | {"x": x}, **options).sin().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    values = [compiled(tensors), layer(tensors)]
    torch.testing.assert_close(values[0], values[1])
    gradients = [torch.autograd.grad(value, list(tensors.values())) for value in values]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


X, ATT = torch.ones(5, 2, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(4, 2, 3), ATT), {}, r"x must be \[num_src=5, H >= 1, C\], got \[4, 2, 3\]"),
        ((torch.ones(5, 0, 3), ATT), {}, r"H >= 1, C\], got \[5, 0, 3\]"),
        ((torch.ones(5, 6), ATT), {}, r"x must have 3 dimension\(s\), got shape \[5, 6\]"),
        ((X.long(), ATT), {}, "x must be float16 or bfloat16 or float32 or float64, got int64"),
        ((X, torch.ones(3, 2)), {}, r"att_src must be \[2, 3\], got \[3, 2\]"),
        ((X, ATT.double()), {}, "att_src must be float32, got float64"),
        ((X, ATT, torch.ones(1, 3)), {}, r"att_dst must be \[2, 3\], got \[1, 3\]"),
        ((X, ATT, ATT), {}, "x_dst must be given where the graph is not square"),
        ((X, ATT), {"x_dst": torch.ones(4, 2, 3)}, "att_dst must be given where x_dst is"),
        ((X, ATT, ATT), {"x_dst": torch.ones(5, 2, 3)}, r"x_dst must be \[4, 2, 3\], got \[5"),
        ((X, ATT), {"score_edge": torch.ones(2, 2)}, r"score_edge must be \[16, 2\], got \[2, 2"),
        ((X, ATT), {"p": 0.5}, "seed must be given where p > 0"),
        ((X, ATT), {"p": 1.0, "seed": 1}, r"p must be in \[0, 1\), got 1.0"),
    ],
)
def test_rejects(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        edge_attention(random_graph(4, 5), *arguments, **options)
