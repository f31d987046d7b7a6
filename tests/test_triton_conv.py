"""Triton's fused layer against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from conv_cases import LAYERS, cast, labels, leaves, results
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import CSRGraph, reference
from abkd_fast.ops import conv
from abkd_fast.testing import assert_no_worse, random_graph, sample_graph

pytestmark = needs_triton
GRAPHS = ["no-nodes", "isolated", "wide", "tall", "hub"]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def assert_matches(graph, tensors, rest, dtype):
    """Values and every gradient, and the same bits twice."""
    exact_graph = graph if graph.value is None else graph.to(dtype=torch.float64)
    exact = results(reference.conv, exact_graph, cast(tensors, torch.float64), rest)
    plain = results(reference.conv, graph, cast(tensors, dtype), rest)
    got = results(conv, graph, tensors, rest)
    for what, a, b, c in zip(labels(tensors), got, exact, plain, strict=True):
        assert_no_worse(a, b, c, what)
    return got


@pytest.mark.parametrize("case", list(LAYERS))
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference(name, case):
    dtypes = (torch.float32,) if case == "very-wide" else (torch.float32, torch.float64)
    for dtype in dtypes:
        graph = sample_graph(name, dtype if case != "gcn-scores" else None).to(DEVICE)
        tensors, rest = leaves(graph, *LAYERS[case], dtype)
        tensors = [None if t is None else t.detach().to(DEVICE).requires_grad_() for t in tensors]
        got = assert_matches(graph, tensors, rest, dtype)
        again = results(conv, graph, tensors, rest)
        assert all(torch.equal(a, b) for a, b in zip(again, got, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_features_are_computed_in_float32(dtype):
    graph = sample_graph("isolated", torch.float32).to(DEVICE)
    x = torch.randn(5, 6).to(DEVICE, dtype)
    weight = torch.randn(6, 3).to(DEVICE, dtype)
    out, sums = conv(graph, x, weight, act="relu")
    exact, exact_sums = reference.conv(graph, x.float(), weight.float(), act="relu")
    assert out.dtype == dtype and sums.dtype == torch.float32
    torch.testing.assert_close(out, exact.to(dtype))
    torch.testing.assert_close(sums, exact_sums)


@pytest.mark.parametrize("case", ["gcn-narrow", "gcn-wide", "gcnii", "no-transform"])
def test_many_hubs_and_blocks_of_rows(case):
    degrees = torch.tensor([300, 1, 0, 257, 256, 2, 700] + [1] * 60)
    rowptr = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    col = torch.randint(67, (int(rowptr[-1]),))
    graph = CSRGraph.from_csr(rowptr, col, torch.randn(len(col))).to(DEVICE)
    width, width_out, options = LAYERS[case]
    width, width_out = min(width, 9), min(width_out, 9)
    tensors, rest = leaves(graph, width, width_out, options, torch.float32)
    tensors = [None if t is None else t.detach().to(DEVICE).requires_grad_() for t in tensors]
    assert_matches(graph, tensors, rest, torch.float32)


@pytest.mark.parametrize("case", ["gcn-narrow", "gcnii", "no-transform"])
def test_frozen_arguments(case):
    graph = random_graph(9, dtype=torch.float64).to(DEVICE)
    tensors, rest = leaves(graph, 5, 5 if case != "gcn-narrow" else 3, LAYERS[case][2])
    tensors = [None if t is None else t.detach().to(DEVICE).requires_grad_() for t in tensors]
    for trained in [i for i, t in enumerate(tensors) if t is not None]:
        alone = [None if t is None else t.detach() for t in tensors]
        alone[trained].requires_grad_()
        gradients = []
        for layer in (conv, reference.conv):
            x, weight, bias, x_0 = alone
            out, sums = layer(graph, x, weight, bias, x_0=x_0, **rest)
            gradients.append(torch.autograd.grad(out.sum() + sums.sum(), alone[trained])[0])
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("case", ["gcn-narrow", "gcnii"])
def test_gradcheck(case):
    graph = random_graph(4, 3, mean_degree=2, dtype=torch.float64).to(DEVICE)
    tensors, rest = leaves(graph, 3, 3 if case == "gcnii" else 2, LAYERS[case][2])
    given = [t.detach().to(DEVICE).requires_grad_() for t in tensors if t is not None]

    def layer(*arguments):
        filled = iter(arguments)
        x, weight, bias, x_0 = (None if t is None else next(filled) for t in tensors)
        return conv(graph, x, weight, bias, x_0=x_0, **rest)

    assert torch.autograd.gradcheck(layer, given, fast_mode=True)


def test_nan_passes_relu():
    graph = CSRGraph.from_csr(torch.tensor([0, 1, 2]), torch.tensor([1, 0])).to(DEVICE)
    x = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]], device=DEVICE)
    out, sums = conv(graph, x, torch.ones(2, 3, device=DEVICE), act="relu")
    assert out.isnan().all(1).tolist() == [False, True] and sums.isnan().all()
