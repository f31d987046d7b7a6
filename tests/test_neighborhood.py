"""neighborhood against its definition, and what callers rely on."""

import pytest
import torch
from query_cases import GRAPHS, assert_same_graph

from abkd_fast import ops
from abkd_fast._backend import backend, backend_of
from abkd_fast.ops.neighborhood import unvisited


def chosen(graph, count=3, step=1):
    return torch.randperm(graph.num_dst, generator=torch.Generator().manual_seed(0))[:count][::step]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("num_hops", [0, 1, 3])
def test_neighborhood_equals_its_definition(name, num_hops):
    graph = GRAPHS[name]()
    nodes = chosen(graph, count=6, step=2)  # not contiguous
    found = ops.neighborhood(graph, nodes, num_hops)
    with backend("reference"):
        expected = ops.neighborhood(graph, nodes, num_hops)
    assert torch.equal(found.n_id, expected.n_id)
    assert found.sizes == expected.sizes
    assert_same_graph(found.graph, expected.graph)


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_within_the_hops_are_the_graphs_and_the_last_are_empty(name):
    graph = GRAPHS[name]()
    nodes = chosen(graph)
    found = ops.neighborhood(graph, nodes, 2)
    inner = found.sizes[1]
    whole = graph.to_dense()[found.n_id]
    assert torch.equal(found.graph.to_dense()[:inner], whole[:inner][:, found.n_id])
    outside = torch.ones(graph.num_src, dtype=torch.bool)
    outside[found.n_id] = False
    assert not whole[:inner][:, outside].any()
    assert found.graph.rowptr[inner] == found.graph.num_edges
    assert found.sizes[0] == nodes.numel() and found.sizes[-1] == found.n_id.numel()


@pytest.mark.skipif(backend_of("neighborhood")[0] != "cpu", reason="the kernel's own scratch")
def test_positions_are_as_before_after_answers_and_after_errors():
    graph = GRAPHS["power-law"]()
    positions = unvisited(graph)

    def search(nodes, positions=positions):
        return torch.ops.abkd_fast.neighborhood(graph.rowptr, graph.col, None, nodes, 2, positions)

    search(torch.tensor([3, 7]))
    assert bool((positions == -1).all())
    for wrong, why in (([5, 5], "distinct"), ([5, 300], "must lie in"), ([5, -1], "must lie in")):
        with pytest.raises(RuntimeError, match=why):
            search(torch.tensor(wrong))
        assert bool((positions == -1).all())
    with pytest.raises(RuntimeError, match="positions must be"):
        search(torch.tensor([0]), positions[:3])


def test_bad_input_is_named():
    graph = GRAPHS["weighted"]()
    with pytest.raises(ValueError, match="num_hops must be 0 or more, got -1"):
        ops.neighborhood(graph, torch.tensor([0]), -1)
    with pytest.raises(ValueError, match="nodes must be distinct"):
        ops.neighborhood(graph, torch.tensor([4, 4]), 1)
    with pytest.raises(ValueError, match="nodes must lie in"):
        ops.neighborhood(graph, torch.tensor([40]), 1)
    with pytest.raises(ValueError, match="graph must be square"):
        ops.neighborhood(ops.select_rows(graph, torch.tensor([0])), torch.tensor([0]), 1)
