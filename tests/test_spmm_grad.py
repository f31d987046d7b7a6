"""Gradients of spmm: values, dtypes, orders, strides, compilation."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import CSRGraph, reference
from abkd_fast.ops import spmm
from abkd_fast.testing import GRAPHS, assert_no_worse, random_graph, sample_graph, wide_indices

REDUCTIONS = ["sum", "mean", "max", "min"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = torch.ops.abkd_fast


def gradients(product, graph, value, x, dout, reduce):
    """(dx, dvalue or None) of ``product`` at fresh leaves."""
    x = x.detach().requires_grad_()
    leaves = [x]
    if value is not None:
        leaves.append(value.detach().requires_grad_())
        graph = graph.with_value(leaves[1])
    out = product(graph, x, reduce)
    grads = torch.autograd.grad(out, leaves, dout, allow_unused=True)
    return [*grads, None][:2]


def test_values():
    #            0 <- 1 (weight 2), 0 <- 2 (weight -1);  1 <- 2 (weight 3)
    graph = CSRGraph.from_csr(torch.tensor([0, 2, 3]), torch.tensor([1, 2, 2]), None, 3)
    value = torch.tensor([2.0, -1.0, 3.0])
    x = torch.tensor([[1.0, 10.0], [3.0, -4.0], [5.0, 6.0]])
    dout = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    expected = {
        "sum": ([[0, 0], [2, 4], [29, 58]], [-5, 17, 170]),
        "mean": ([[0, 0], [1, 2], [29.5, 59]], [-2.5, 8.5, 170]),
        "max": ([[0, 0], [2, 0], [30, 58]], [3, 12, 170]),  # row 0: 6 by edge 0, -6 by edge 1
        "min": ([[0, 0], [0, 4], [29, 60]], [-8, 5, 170]),
    }
    for reduce, (dx, dvalue) in expected.items():
        got = gradients(spmm, graph, value, x, dout, reduce)
        assert [g.tolist() for g in got] == [dx, dvalue], reduce


def test_a_tie_sends_the_gradient_to_the_first_edge():
    graph = CSRGraph.from_csr(torch.tensor([0, 3]), torch.tensor([2, 0, 1]), None, 3)
    dx, _ = gradients(spmm, graph, None, torch.ones(3, 1), torch.ones(1, 1), "max")
    assert dx.tolist() == [[0], [0], [1]]


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference(name, dtype, reduce, weighted):
    graph = sample_graph(name, dtype)
    for width in (0, 1, 7, 33, 130) if name == "power-law" else (1, 33):
        x = torch.randn(graph.num_src, width).to(dtype)
        dout = torch.randn(graph.num_dst, width).to(dtype)
        value = graph.value if weighted else None
        exact_value = None if value is None else value.double()
        bare = graph.with_value(None)
        exact = gradients(reference.spmm, bare, exact_value, x.double(), dout.double(), reduce)
        plain = gradients(reference.spmm, bare, value, x, dout, reduce)
        for edges in (bare, wide_indices(bare)) if width == 33 else (bare,):
            got = gradients(spmm, edges, value, x, dout, reduce)
            assert_no_worse(got[0], exact[0], plain[0], "dx")
            if weighted:
                assert_no_worse(got[1], exact[1], plain[1], "dvalue")


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradient_of_fixed_weights_uses_the_kept_transpose(reduce):
    graph = random_graph(12, 9, dtype=torch.float64)
    x, dout = torch.randn(9, 5).double(), torch.randn(12, 5).double()
    expected = gradients(reference.spmm, graph, None, x, dout, reduce)[0]
    torch.testing.assert_close(gradients(spmm, graph, None, x, dout, reduce)[0], expected)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck(reduce):
    graph = random_graph(6, 5, mean_degree=2, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    value = graph.value.clone().requires_grad_()
    assert gradcheck(lambda v, x: spmm(graph.with_value(v), x, reduce), (value, x))
    assert gradcheck(lambda x: spmm(graph, x, reduce), (x,))
    assert gradcheck(lambda v: spmm(graph.with_value(v), x.detach(), reduce), (value,))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_second_and_third_derivatives(reduce):
    graph = random_graph(5, 4, mean_degree=2, dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    value = graph.value.clone().requires_grad_()

    def product(v, x):
        return spmm(graph.with_value(v), x, reduce)

    def gradient(v, x):
        return torch.autograd.grad(product(v, x).pow(3).sum(), (v, x), create_graph=True)

    assert gradgradcheck(product, (value, x))
    assert gradgradcheck(lambda x: spmm(graph, x, reduce), (x,))
    assert gradgradcheck(lambda v: product(v, x.detach()), (value,))
    assert gradgradcheck(gradient, (value, x))


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_second_derivative_of_an_extremum_is_a_clear_error(reduce):
    graph = random_graph(5, 4)
    x = torch.randn(4, 2, requires_grad=True)
    (dx,) = torch.autograd.grad(spmm(graph, x, reduce).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_stride_0_and_non_contiguous_gradients(reduce):
    graph = random_graph(20, 12, dtype=torch.float32)
    x = torch.randn(12, 17)
    for dout in (torch.ones(()).expand(20, 17), torch.randn(17, 20).t()):
        got = gradients(spmm, graph, graph.value, x, dout, reduce)
        expected = gradients(spmm, graph, graph.value, x, dout.clone().contiguous(), reduce)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_runs_and_thread_counts_agree_to_the_bit(reduce):
    graph = random_graph(3000, mean_degree=8, power_law=True, dtype=torch.float32)
    x, dout = torch.randn(3000, 20), torch.randn(3000, 20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(gradients(spmm, graph, graph.value, x, dout, reduce))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_trained_weights_are_read_anew():
    graph = random_graph(6, dtype=torch.float32)
    weight = graph.value.clone().requires_grad_()
    trained = graph.with_value(weight)
    x = torch.randn(6, 2, requires_grad=True)
    spmm(trained, x).sum().backward()
    with torch.no_grad():
        weight.mul_(2)
    x.grad = None
    spmm(trained, x).sum().backward()
    torch.testing.assert_close(
        x.grad, spmm(graph.with_value(2 * graph.value).t(), torch.ones(6, 2))
    )


def op_arguments():
    graph = random_graph(7, 5, dtype=torch.float32)
    rowptr, col, value = graph.rowptr, graph.col, graph.value
    x, dout = torch.randn(5, 4), torch.randn(7, 4)
    arg = OPS.spmm_extremum(rowptr, col, value, x, True, True)[1]
    return {
        "spmm": (rowptr, col, value, x, False),
        "spmm-mean": (rowptr, col, None, x.bfloat16(), True),
        "sddmm": (rowptr, col, dout, x),
        "spmm_extremum": (rowptr, col, value, x, True, True),
        "spmm_extremum-alone": (rowptr, col, value, x, True, False),
        "spmm_extremum_dx": (*graph.transposed(), value, arg, dout),
        "spmm_extremum_dvalue": (rowptr, col, x, arg, dout),
    }


@pytest.mark.parametrize("name", list(op_arguments()))
def test_opcheck(name):
    op = getattr(OPS, name.split("-")[0]).default
    torch.library.opcheck(op, op_arguments()[name])


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("trained", [False, True], ids=["fixed", "trained"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_compiles_without_graph_breaks(reduce, trained):
    torch._dynamo.reset()
    graph = random_graph(12, dtype=torch.float32)
    graph.t()
    weight = graph.value.clone().requires_grad_(trained)

    def loss(x, weight):
        edges = graph.with_value(weight) if trained else graph
        return spmm(edges, x.relu(), reduce).sin().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-1, 1, 60).view(12, 5).requires_grad_()
        weight.grad = None
        value = function(x, weight)
        value.backward()
        results.append((value.detach(), x.grad, weight.grad))
    torch.testing.assert_close(results[1], results[0])
