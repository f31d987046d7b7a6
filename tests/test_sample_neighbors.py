"""sample_neighbors against its definition in plain torch, and against what a sample must be."""

import pytest
import torch

from abkd_fast._backend import backend, backend_of
from abkd_fast.graph import CSRGraph
from abkd_fast.ops import sample_neighbors
from abkd_fast.testing import random_graph, sample_graph, wide_indices

GRAPHS = {
    "power-law": lambda: random_graph(300, mean_degree=9, power_law=True, seed=1),
    "weighted": lambda: random_graph(40, mean_degree=5, dtype=torch.float32, seed=2),
    "wide-indices": lambda: wide_indices(random_graph(60, mean_degree=4, seed=3)),
    "no-edges": lambda: CSRGraph.from_csr(torch.zeros(6, dtype=torch.int64), torch.zeros(0).long()),
    "hub": lambda: sample_graph("hub"),
}


def parts(sample):
    graph = sample.graph
    return [graph.rowptr, graph.col, sample.n_id, sample.e_id]


def star(leaves):
    """Node 0 has edges from all other nodes."""
    col = torch.arange(1, leaves + 1)
    rowptr = torch.cat([torch.tensor([0]), torch.full((leaves + 1,), leaves)])
    return CSRGraph.from_csr(rowptr, col)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("num_neighbors", [[], [0], [3], [4, 2], [1, 7, 2], [-1, 3], [130]])
@pytest.mark.parametrize("replace", [False, True])
def test_equals_the_definition(name, num_neighbors, replace):
    graph = GRAPHS[name]()
    nodes = torch.randperm(graph.num_dst, generator=torch.Generator().manual_seed(0))[:7]
    options = {"replace": replace, "seed": 2**40 + 5, "step": 3}
    sample = sample_neighbors(graph, nodes, num_neighbors, **options)
    with backend("reference"):
        expected = sample_neighbors(graph, nodes, num_neighbors, **options)
    for got, want in zip(parts(sample), parts(expected), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("replace", [False, True])
def test_a_sample_holds_edges_of_the_graph(name, replace):
    graph = GRAPHS[name]()
    nodes = torch.arange(0, graph.num_dst, 3)
    limits = [4, 2]
    sample = sample_neighbors(graph, nodes, limits, replace=replace, seed=1)
    local, n_id = sample.graph, sample.n_id
    assert torch.equal(n_id[: sample.batch_size], nodes)
    assert n_id.unique().numel() == n_id.numel()
    assert torch.equal(n_id[local.row()], graph.row()[sample.e_id])
    assert torch.equal(n_id[local.col.long()], graph.col[sample.e_id].long())
    if graph.value is not None:
        assert torch.equal(local.value, graph.value[sample.e_id])
    degree, kept = graph.rowptr.diff()[n_id], local.rowptr.diff()
    first_hop, second = kept[: len(nodes)], kept[len(nodes) :]
    full = degree[: len(nodes)]
    if replace:
        assert torch.equal(first_hop, torch.where(full > 0, limits[0], 0).to(kept.dtype))
    else:
        assert torch.equal(first_hop, full.clamp(max=limits[0]))
        assert sample.e_id.unique().numel() == sample.e_id.numel()
    assert bool((second <= limits[1]).all())


def test_all_neighbors_of_all_hops_are_the_k_hop_neighbourhood():
    utils = pytest.importorskip("torch_geometric.utils", reason="torch-geometric is not installed")
    graph = random_graph(200, mean_degree=3, seed=5)
    nodes = torch.tensor([17, 3, 150])
    sample = sample_neighbors(graph, nodes, [-1, -1])
    edge_index = graph.to_edge_index()[0]
    reached, *_ = utils.k_hop_subgraph(nodes, 2, edge_index, num_nodes=200)
    assert torch.equal(sample.n_id.sort().values, reached)
    inner, *_ = utils.k_hop_subgraph(nodes, 1, edge_index, num_nodes=200)
    assert torch.equal(sample.e_id.sort().values, torch.isin(graph.row(), inner).nonzero()[:, 0])


def test_the_whole_graph_is_its_own_sample():
    graph = random_graph(50, mean_degree=4, dtype=torch.float64, seed=6)
    sample = sample_neighbors(graph, torch.arange(50), [-1])
    assert torch.equal(sample.graph.to_dense(), graph.to_dense())
    assert torch.equal(sample.e_id, torch.arange(graph.num_edges))


@pytest.mark.parametrize("replace", [False, True])
def test_draws_are_uniform(replace):
    # 4,000 steps, 3 of 10 neighbours each: a count's standard deviation is at most 30.
    graph, counts = star(10), torch.zeros(10)
    pairs = torch.zeros(10, 10)
    for step in range(4000):
        sample = sample_neighbors(graph, torch.tensor([0]), [3], replace=replace, seed=9, step=step)
        counts += torch.bincount(sample.e_id, minlength=10)
        pairs[sample.e_id[0], sample.e_id[2]] += 1
    assert float((counts - 1200).abs().max()) < 4 * 30
    if not replace:
        assert (
            int((pairs > 0).sum()) == 36
        )  # the lowest and the highest of three differ by 2 or more


def test_a_row_is_drawn_alike_in_every_batch_and_anew_in_every_step():
    graph = random_graph(500, mean_degree=30, seed=7)

    def drawn(nodes, step, seed=0):
        sample = sample_neighbors(graph, torch.tensor(nodes), [5], seed=seed, step=step)
        row = nodes.index(11)
        return sample.e_id[sample.graph.rowptr[row] : sample.graph.rowptr[row + 1]].tolist()

    assert drawn([11], 0) == drawn([400, 11, 2], 0)
    assert drawn([11], 0) != drawn([11], 1)
    assert drawn([11], 0) != drawn([11], 0, seed=1)


def test_threads_do_not_change_the_sample():
    graph = random_graph(5000, mean_degree=20, power_law=True, seed=8)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(parts(sample_neighbors(graph, torch.arange(4000), [8, 4], seed=3)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_traces_with_sizes_that_are_known_at_run_time():
    graph = random_graph(30, mean_degree=4, seed=1)
    nodes = torch.tensor([4, 9])

    @torch.compile(backend="eager", fullgraph=True)
    def edges(rowptr, col, nodes, seed):
        sample = torch.ops.abkd_fast.sample_neighbors(rowptr, col, nodes, [3], False, seed, 0)
        return sample[3] + 1

    got = edges(graph.rowptr, graph.col, nodes, torch.tensor(0))
    assert torch.equal(got, sample_neighbors(graph, nodes, [3]).e_id + 1)


@pytest.mark.parametrize(
    ("nodes", "limits", "message"),
    [
        ([0, 0], [2], "nodes must be distinct"),
        ([5], [2], "nodes must lie in"),
        ([-1], [2], "nodes must lie in"),
        ([0], [-2], r"num_neighbors\[0\] must be -1"),
    ],
)
def test_refuses(nodes, limits, message):
    with pytest.raises(ValueError, match=message):
        sample_neighbors(star(4), torch.tensor(nodes), limits)


def test_refuses_a_rectangular_graph():
    with pytest.raises(ValueError, match="graph must be square"):
        sample_neighbors(random_graph(4, 5), torch.tensor([0]), [2])


def test_the_operator_checks_what_it_is_given():
    if backend_of("sample_neighbors")[0] != "cpu":
        pytest.skip("the kernel's own check, where it serves")
    graph, seed = star(4), torch.tensor(0)
    with pytest.raises(RuntimeError, match="twice"):
        torch.ops.abkd_fast.sample_neighbors(
            graph.rowptr, graph.col, torch.tensor([1, 1]), [2], False, seed, 0
        )
