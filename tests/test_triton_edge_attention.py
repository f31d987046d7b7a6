"""Triton's edge attention against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from attention_cases import CASES, cast, fits, leaves, results
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import CSRGraph
from abkd_fast.testing import assert_no_worse, sample_graph, wide_indices

pytestmark = needs_triton
DROPPED = {"p": 0.4, "seed": 77, "layer": 2, "step": 1}
GRAPHS = ["no-nodes", "isolated", "wide", "tall"]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def on_device(case, graph, heads, width, dtype=torch.float64):
    tensors = leaves(case, graph, heads, width, dtype)
    return {name: t.detach().to(DEVICE).requires_grad_() for name, t in tensors.items()}


def assert_matches(case, graph, tensors, dtype=torch.float64, **options):
    """Values and every gradient, and the same bits twice."""
    exact = results(case, graph, cast(tensors, torch.float64), True, **options)
    plain = results(case, graph, tensors, True, **options)
    got = results(case, graph, tensors, **options)
    for what, a, b, c in zip(["out", *tensors], got, exact, plain, strict=True):
        assert a.dtype == dtype
        assert_no_worse(a, b, c, what)
    again = results(case, graph, tensors, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference(name, case):
    graph = sample_graph(name).to(DEVICE)
    if not fits(case, graph):
        assert graph.num_src != graph.num_dst
        return
    for dtype, heads, width in ((torch.float32, 3, 5), (torch.float64, 1, 9)):
        options = DROPPED if dtype == torch.float64 else {}
        assert_matches(case, graph, on_device(case, graph, heads, width, dtype), dtype, **options)


@pytest.mark.parametrize("case", ["gat-edges", "gatv2"])
def test_several_tiles_of_features(case):
    graph = CSRGraph.from_csr(torch.tensor([0, 5, 5, 6]), torch.tensor([0, 1, 1, 2, 2, 0]))
    graph = graph.to(DEVICE)
    assert_matches(case, graph, on_device(case, graph, 1, 131), **DROPPED)


@pytest.mark.parametrize("case", ["gat", "gatv2"])
def test_several_blocks_of_rows(case):
    degrees = torch.tensor([1, 0, 2, 9] + [1] * 14)
    rowptr = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    graph = CSRGraph.from_csr(rowptr, torch.arange(26) % 18).to(DEVICE)
    tensors = on_device(case, graph, 2, 1)
    assert_matches(case, graph, tensors, **DROPPED)
    wide = results(case, wide_indices(graph), tensors, **DROPPED)
    narrow = results(case, graph, tensors, **DROPPED)
    assert all(torch.equal(a, b) for a, b in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("case", ["gat", "gatv2"])
def test_large_scores_do_not_overflow(case):
    graph = sample_graph("isolated").to(DEVICE)
    tensors = on_device(case, graph, 2, 3, torch.float32)
    with torch.no_grad():
        tensors["x"] *= 300.0
    assert results(case, graph, tensors)[0].isfinite().all()
    assert_matches(case, graph, tensors, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["gat-edges", "gatv2"])
def test_16_bit_features_are_computed_in_float32(case, dtype):
    graph = sample_graph("isolated").to(DEVICE)
    tensors = on_device(case, graph, 2, 5, dtype)
    exact = results(case, graph, cast(tensors, torch.float64), True)
    # The interpreter truncates to bfloat16: one unit in the last place, where GPUs round.
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    for a, b in zip(results(case, graph, tensors), exact, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=unit, atol=4 * unit)


@pytest.mark.parametrize("case", list(CASES))
def test_drops_what_the_cpu_drops(case):
    """With one edge a row, coefficients are 1: outputs are 0 or x / (1 - p)."""
    graph = CSRGraph.from_csr(torch.arange(41), torch.arange(40)).to(DEVICE)
    tensors = on_device(case, graph, 3, 1)
    out = results(case, graph, tensors, **DROPPED)[0]
    with abkd_fast.backend("cpu" if DEVICE == "cpu" else "reference"):
        expected = results(case, graph, tensors, **DROPPED)[0]
    assert torch.equal(out == 0, expected == 0) and 0.2 < (out == 0).float().mean() < 0.6


def test_strided_arguments():
    graph = sample_graph("isolated").to(DEVICE)
    tensors = on_device("gat-edges", graph, 3, 4)
    expected = results("gat-edges", graph, tensors)
    strided = {
        name: t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
        for name, t in tensors.items()
    }
    assert not strided["x"].is_contiguous()
    for a, b in zip(results("gat-edges", graph, strided), expected, strict=True):
        assert torch.equal(a, b)
