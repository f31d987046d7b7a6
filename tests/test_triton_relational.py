"""Triton's relational layer against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from relational_cases import leaves, relational_graph, results
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import RelationalGraph, reference
from abkd_fast.ops import relational
from abkd_fast.testing import assert_no_worse

pytestmark = needs_triton
ORDERS = ("aggregate_first", "transform_first")
NAMES = ("out", "dx", "dweight", "droot", "dbias", "dx_root")


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def operands(graph, width, width_out, dtype, **rest):
    """(graph, arguments, options) on the device."""
    given, options = leaves(graph, width, width_out, dtype, **rest)
    given = [t.detach().to(DEVICE).requires_grad_() for t in given]
    options = {k: t.detach().to(DEVICE).requires_grad_() for k, t in options.items()}
    return graph.to(DEVICE), given, options


def assert_matches(graph, given, options, dtype, oracle=reference.relational, **rest):
    """Values and every gradient, and the same bits twice."""
    shared = {key: value for key, value in rest.items() if key in ("aggr", "act")}
    wide = [t.detach().double().requires_grad_() for t in given]
    exact_options = {k: t.detach().double().requires_grad_() for k, t in options.items()}
    exact = results(oracle, graph, wide, exact_options, **shared)
    plain = results(oracle, graph, given, options, **shared)
    got = results(relational, graph, given, options, **rest)
    for what, a, b, c in zip(NAMES, got, exact, plain, strict=False):
        assert a.dtype == dtype
        assert_no_worse(a, b, c, what)
    again = results(relational, graph, given, options, **rest)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", ["types", "parallel", "bipartite"])
def test_matches_reference(case, order):
    for dtype, aggr in ((torch.float32, "mean"), (torch.float64, "sum")):
        graph, given, options = operands(
            relational_graph(case), 6, 4, dtype, by_type=case == "types"
        )
        rest = {"aggr": aggr, "act": "relu" if aggr == "mean" else "none", "order": order}
        assert_matches(graph, given, options, dtype, **rest)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("widths", [(1, 33), (35, 1), (3, 131)])
def test_widths_of_several_blocks(widths, order):
    index = torch.tensor([[0, 1, 2, 2, 3, 4], [1, 1, 1, 0, 3, 4]])
    graph = RelationalGraph.from_edge_type(index, torch.tensor([0, 0, 0, 1, 1, 1]), 5, 3)
    assert_matches(*operands(graph, *widths, torch.float32), torch.float32, order=order)


def test_many_pairs_and_rows_of_many_edges():
    index = torch.stack(
        [torch.arange(60) % 40, torch.cat([torch.arange(40), torch.full((20,), 3)])]
    )
    graph = RelationalGraph.from_edge_type(index, torch.zeros(60, dtype=torch.int64), 40, 1)
    assert_matches(*operands(graph, 3, 2, torch.float32), torch.float32, order="aggregate_first")


@pytest.mark.parametrize("case", ["no-edges", "no-relations"])
def test_nothing_to_aggregate(case):
    graph, given, options = operands(relational_graph(case), 3, 2, torch.float64)
    got = results(relational, graph, given, options)
    expected = results(reference.relational, graph, given, options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@pytest.mark.parametrize("order", ORDERS)
def test_targets_only_without_root_or_bias(order):
    graph, (x, weight, _, bias), options = operands(
        relational_graph("types"), 3, 2, torch.float64, by_type=True
    )

    def first(*arguments, **rest):
        return reference.relational(*arguments, **rest)[: graph.num_nodes["paper"]]

    for offset in (bias, None):
        given = [x, weight, None, offset]
        expected = results(first, graph, given, options)
        found = results(relational, graph, given, options, targets_only=True, order=order)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wanted", range(4))
def test_gradients_one_at_a_time(wanted):
    graph, given, options = operands(relational_graph("parallel"), 3, 2, torch.float64)
    expected = results(reference.relational, graph, given, options)[1 + wanted]
    given = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(given)]
    for order in ORDERS:
        out = relational(graph, *given, order=order)
        slope = torch.arange(out.numel(), dtype=out.dtype, device=DEVICE).view_as(out).cos()
        (found,) = torch.autograd.grad(out, given[wanted], slope)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
