"""What objectives compute on edges: gradients, and the same bits whatever the threads."""

import pytest
import torch
from objective_cases import assert_same, graph

from abkd_fast.distill._edges import edge_distances, edge_dots


def test_edge_distances_and_dots_are_those_of_the_gathered_rows():
    edges, x = graph(), torch.randn(40, 19, dtype=torch.float64, requires_grad=True)
    y = torch.randn(19, 40, dtype=torch.float64).t().requires_grad_()  # strided
    rows, cols, weight = edges.row(), edges.col.long(), torch.randn(edges.num_edges).double()
    for state in (x, y):
        found = (edge_distances(edges, state) * weight).sum()
        assert_same(found, ((state[rows] - state[cols]).abs().sum(1) * weight).sum(), [state])
    found = (edge_dots(edges, x, y) * weight).sum()
    assert_same(found, ((x[rows] * y[cols]).sum(1) * weight).sum(), [x, y])


@pytest.mark.parametrize("function", [edge_distances, lambda g, x: edge_dots(g, x, x.sin())])
def test_edges_give_the_same_bits_on_any_number_of_threads(function):
    edges, x = graph(5000), torch.randn(5000, 24)
    found = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaf = x.clone().requires_grad_()
            out = function(edges, leaf)
            found.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
