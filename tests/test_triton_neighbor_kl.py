"""Triton's neighbor_kl against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from neighbor_cases import KERNELS, exact_results, results, rows
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import CSRGraph, ops, reference
from abkd_fast.testing import assert_no_worse, sample_graph, wide_indices

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def problem(graph, *widths, dtype=torch.float64):
    student, teacher = rows(graph, *widths, dtype=dtype)
    return student.detach().to(DEVICE).requires_grad_(), teacher.to(DEVICE)


def assert_matches(graph, student, teacher, **options):
    """Value and gradient, of both forms; and the same bits twice."""
    exact = exact_results(graph, student, teacher, **options)
    plain = results(graph, student, teacher, reference, **options)
    for target in (False, True):
        got = results(graph, student, teacher, target=target, **options)
        for what, a, b, c in zip(["loss", "dstudent"], got, exact, plain, strict=True):
            assert_no_worse(a, b, c, what)
        again = results(graph, student, teacher, target=target, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_matches_reference(kernel):
    graph = sample_graph("unsorted").to(DEVICE)
    for dtype, widths in ((torch.float32, (5, 3)), (torch.float64, (1, 9))):
        assert_matches(graph, *problem(graph, *widths, dtype=dtype), **KERNELS[kernel])


@pytest.mark.parametrize("kernel", ["rbf", "poly"])
def test_several_tiles_of_features_and_blocks_of_rows(kernel):
    degrees = torch.tensor([1, 0, 2, 5] + [1] * 7)
    rowptr = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    graph = CSRGraph.from_csr(rowptr, torch.arange(15) % 11).to(DEVICE)
    few = CSRGraph.from_csr(torch.tensor([0, 5, 5, 6]), torch.tensor([0, 1, 1, 2, 2, 0]))
    assert_matches(few.to(DEVICE), *problem(few, 131, 3), **KERNELS[kernel])
    student, teacher = problem(graph, 1, 1)
    assert_matches(graph, student, teacher, **KERNELS[kernel])
    wide = results(wide_indices(graph), student, teacher, **KERNELS[kernel])
    narrow = results(graph, student, teacher, **KERNELS[kernel])
    assert all(torch.equal(a, b) for a, b in zip(wide, narrow, strict=True))


def test_no_edges_and_no_nodes():
    for graph in (CSRGraph.from_csr(torch.zeros(4).long(), torch.zeros(0).long()),
                  sample_graph("no-nodes")):  # fmt: skip
        student, teacher = problem(graph.to(DEVICE), 2, 3)
        loss, dstudent = results(graph.to(DEVICE), student, teacher)
        assert dstudent.shape == student.shape and not dstudent.any()
        assert float(loss) == 0.0 or (graph.num_dst == 0 and bool(loss.isnan()))
        assert ops.neighbor_log_softmax(graph.to(DEVICE), teacher).shape == (0,)


def test_large_scores_do_not_overflow():
    graph = sample_graph("isolated").to(DEVICE)
    student, teacher = problem(graph, 4, 4, dtype=torch.float32)
    student = (30.0 * student.detach()).requires_grad_()
    loss, dstudent = results(graph, student, 30.0 * teacher, kernel="l2")
    assert bool(loss.isfinite()) and bool(dstudent.isfinite().all())
    assert_matches(graph, student, 30.0 * teacher, kernel="l2")
