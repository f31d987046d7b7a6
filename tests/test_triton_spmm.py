"""Triton's spmm and its gradients against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import CSRGraph, reference
from abkd_fast.ops import spmm
from abkd_fast.reference.spmm import op_spmm_extremum
from abkd_fast.testing import GRAPHS, assert_no_worse, random_graph, sample_graph, wide_indices

pytestmark = needs_triton
REDUCTIONS = ["sum", "mean", "max", "min"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def results(product, graph, value, x, dout, reduce):
    """[out, dx, dvalue]; no dvalue without weights."""
    leaves = [x.clone().requires_grad_()]
    if value is not None:
        leaves.append(value.clone().requires_grad_())
        graph = graph.with_value(leaves[1])
    out = product(graph, leaves[0], reduce)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference(name, reduce):
    for dtype, width, weighted, wide in [
        (torch.float32, 33, True, True),
        (torch.float64, 5, True, False),
        (torch.bfloat16, 1, False, True),
        (torch.float16, 7, True, False),
    ]:
        graph = sample_graph(name, dtype).to(DEVICE)
        x = torch.randn(graph.num_src, width).to(DEVICE, dtype)
        dout = torch.randn(graph.num_dst, width).to(DEVICE, dtype)
        value = graph.value if weighted else None
        bare = graph.with_value(None)
        doubled = None if value is None else value.double()
        exact = results(reference.spmm, bare, doubled, x.double(), dout.double(), reduce)
        plain = results(reference.spmm, bare, value, x, dout, reduce)
        got = results(spmm, wide_indices(bare) if wide else bare, value, x, dout, reduce)
        for what, a, b, c in zip(("out", "dx", "dvalue"), got, exact, plain, strict=False):
            assert_no_worse(a, b, c, f"{what} in {dtype}, {width} wide")


def hub_graph(degrees, columns=97):
    """Rows of those degrees; every column is a source of each hub."""
    rowptr = torch.tensor([0, *degrees]).cumsum(0)
    col = torch.randint(columns, (int(rowptr[-1]),))
    return CSRGraph.from_csr(rowptr, col, torch.randn(len(col)), columns).to(DEVICE)


# Chunks have 256 edges: hubs that begin and end at their borders, behind them, and one after
# another within one chunk; rows just below the length of a hub.
@pytest.mark.parametrize(
    "degrees",
    [
        (256, 257, 0, 255, 256),
        (512, 1, 768),
        (100, 300, 300, 3, 700),
        (3, 0, 0, 2000),
        (257, 257, 257, 257),
    ],
    ids=str,
)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_hubs_are_split_and_put_together(reduce, degrees):
    graph = hub_graph(degrees)
    x, dout = torch.randn(97, 5).to(DEVICE), torch.randn(len(degrees), 5).to(DEVICE)
    value, bare = graph.value, graph.with_value(None)
    exact = results(reference.spmm, bare, value.double(), x.double(), dout.double(), reduce)
    plain = results(reference.spmm, bare, value, x, dout, reduce)
    got = results(spmm, bare, value, x, dout, reduce)
    for what, a, b, c in zip(("out", "dx", "dvalue"), got, exact, plain, strict=True):
        assert_no_worse(a, b, c, what)
    again = results(spmm, bare, value, x, dout, reduce)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_hubs_of_the_transpose_are_split():
    graph = hub_graph((3, 0, 700, 1), columns=4).t()
    x, dout = torch.randn(4, 6).to(DEVICE), torch.randn(4, 6).to(DEVICE)
    for reduce in REDUCTIONS:
        value, bare = graph.value, graph.with_value(None)
        exact = results(reference.spmm, bare, value.double(), x.double(), dout.double(), reduce)
        plain = results(reference.spmm, bare, value, x, dout, reduce)
        got = results(spmm, bare, value, x, dout, reduce)
        for what, a, b, c in zip(("out", "dx", "dvalue"), got, exact, plain, strict=True):
            assert_no_worse(a, b, c, what)


@pytest.mark.parametrize("at", [0, 256, 300, 699])
@pytest.mark.parametrize("special", [torch.nan, -torch.inf, 5.0], ids=str)
def test_first_edge_wins_ties_in_hubs_and_nan_beats_numbers(special, at):
    message = torch.zeros(703, 1)
    if special == -torch.inf:
        message = torch.full((703, 1), special)
    else:
        message[[at, 700]] = special
    col = torch.arange(703).roll(3)
    graph = CSRGraph.from_csr(torch.tensor([0, 3, 703]), col, None, 703).to(DEVICE)
    arguments = (graph.rowptr, graph.col, None, message.to(DEVICE), True, True)
    out, arg = torch.ops.abkd_fast.spmm_extremum(*arguments)
    exact, expected = op_spmm_extremum(*arguments)
    torch.testing.assert_close(out, exact, equal_nan=True)
    assert torch.equal(arg, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_many_features(reduce, dtype):
    graph = random_graph(5, 4, mean_degree=3).to(DEVICE)
    x = torch.randn(4, 300).to(DEVICE, dtype)
    exact = reference.spmm(graph, x.double(), reduce)
    assert_no_worse(spmm(graph, x, reduce), exact, reference.spmm(graph, x, reduce))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck(reduce):
    graph = random_graph(5, 4, mean_degree=2, dtype=torch.float64).to(DEVICE)
    x = torch.randn(4, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    value = graph.value.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, x: spmm(graph.with_value(v), x, reduce), (value, x), nondet_tol=0.0
    )


def test_non_contiguous_operands():
    graph = random_graph(12, 12, dtype=torch.float32).to(DEVICE)
    base = torch.randn(24, 24).to(DEVICE)
    for x in (base[::2, 3:20], base.t()[:12], base[:1].expand(12, 24)):
        for reduce in REDUCTIONS:
            dout = torch.ones((), device=DEVICE).expand(12, x.size(1))
            got = results(spmm, graph, graph.value, x, dout, reduce)
            expected = results(spmm, graph, graph.value, x.clone(), dout.clone(), reduce)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
