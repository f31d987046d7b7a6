"""Mini-batches: what they hold, and that they repeat."""

import pytest
import torch

from abkd_fast.batches import ClusterBatches, LoaderBatches, NeighborBatches
from abkd_fast.data import dcsbm
from abkd_fast.graph import CSRGraph
from abkd_fast.reorder import ORDERS, partition, reorder
from abkd_fast.subgraph import induced_subgraph, select_rows
from abkd_fast.testing import GRAPHS, random_graph, sample_graph


@pytest.fixture(scope="module")
def data():
    return dcsbm(200, 3, num_features=12, seed=0)


def make(kind, data, **options):
    if kind == "neighbors":
        return NeighborBatches(data, [3, 2], batch_size=64, **options)
    return ClusterBatches(data, 9, parts_per_batch=2, **options)


@pytest.mark.parametrize("kind", ["neighbors", "clusters"])
def test_an_epoch_has_every_node_once(data, kind):
    batches = make(kind, data)
    found = list(batches.epoch(0))
    assert len(found) == len(batches)
    counted = torch.cat([batch.nodes[: batch.batch_size] for batch in found])
    assert torch.equal(counted.sort().values, torch.arange(200))


@pytest.mark.parametrize("kind", ["neighbors", "clusters"])
def test_rows_are_those_of_the_nodes(data, kind):
    for batch in make(kind, data).epoch(1):
        assert torch.equal(batch.data.dense_x, data.dense_x[batch.nodes])
        assert torch.equal(batch.data.y, data.y[batch.nodes])
        assert torch.equal(batch.data.train_mask, data.train_mask[batch.nodes])
        assert batch.data.num_classes == data.num_classes
        whole = data.graph.to_dense()
        part = batch.data.graph.to_dense()
        assert bool((part <= whole[batch.nodes][:, batch.nodes]).all())


@pytest.mark.parametrize("kind", ["neighbors", "clusters"])
def test_an_epoch_depends_on_seed_and_number_alone(data, kind):
    def nodes(seed, number):
        return torch.cat([batch.nodes for batch in make(kind, data, seed=seed).epoch(number)])

    assert torch.equal(nodes(4, 2), nodes(4, 2))
    assert not torch.equal(nodes(4, 2), nodes(4, 3))
    assert not torch.equal(nodes(4, 2), nodes(5, 2))


def test_clusters_keep_the_edges_inside(data):
    parts = partition(data.graph, 4)
    row, col = data.graph.row(), data.graph.col.long()
    inside = int((parts[row] == parts[col]).sum())
    batches = ClusterBatches(data, 4)
    assert sum(batch.data.graph.num_edges for batch in batches.epoch(0)) == inside
    sizes = torch.bincount(parts)
    assert sizes.numel() == 4
    assert int(sizes.max()) <= 1.1 * 200 / 4
    shuffled = parts[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert inside > 1.5 * int((shuffled[row] == shuffled[col]).sum())


@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler':UserWarning")
def test_batches_of_a_pyg_loader(data):
    pytest.importorskip("torch_sparse", reason="torch-sparse is not installed: make bench-peers")
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader

    whole = Data(x=data.dense_x, edge_index=data.edge_index, num_nodes=data.num_nodes)
    loader = NeighborLoader(whole, [3, 2], batch_size=64, shuffle=True)
    batches = LoaderBatches(data, loader)
    found = list(batches.epoch(0))
    assert len(found) == len(batches) == 4
    counted = torch.cat([batch.nodes[: batch.batch_size] for batch in found])
    assert torch.equal(counted.sort().values, torch.arange(200))
    for batch in found:
        assert torch.equal(batch.data.dense_x, data.dense_x[batch.nodes])


@pytest.mark.parametrize("method", ORDERS)
def test_an_order_renumbers(data, method):
    order = reorder(data.graph, method)
    assert torch.equal(order.sort().values, torch.arange(200))
    renumbered = data.subgraph(order)
    assert torch.equal(renumbered.graph.to_dense(), data.graph.to_dense()[order][:, order])
    assert torch.equal(renumbered.dense_x, data.dense_x[order])


def test_rcm_finds_the_band_of_a_shuffled_path():
    path = torch.stack([torch.arange(49), torch.arange(1, 50)])
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    graph = CSRGraph.from_edge_index(shuffled[torch.cat([path, path.flip(0)], 1)], 50)
    ordered = induced_subgraph(graph, reorder(graph, "rcm"))
    assert int((ordered.row() - ordered.col.long()).abs().max()) == 1


def test_degree_puts_the_most_read_first():
    graph = random_graph(60, mean_degree=5, power_law=True, seed=3)
    reads = torch.bincount(graph.col.long(), minlength=60)[reorder(graph, "degree")]
    assert torch.equal(reads, reads.sort(descending=True).values)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_select_rows(name, dtype):
    graph = sample_graph(name, dtype)
    nodes = torch.arange(graph.num_dst).flip(0).repeat(2)
    assert torch.equal(select_rows(graph, nodes).to_dense(), graph.to_dense()[nodes])


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_induced_subgraph(dtype):
    graph = random_graph(40, mean_degree=6, dtype=dtype, seed=2)
    nodes = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:17]
    part = induced_subgraph(graph, nodes)
    assert torch.equal(part.to_dense(), graph.to_dense()[nodes][:, nodes])
    assert induced_subgraph(graph, nodes[:0]).shape == (0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: induced_subgraph(g, torch.tensor([1, 1])), "nodes must be distinct"),
        (lambda g: induced_subgraph(g, torch.tensor([99])), "nodes must lie in"),
        (lambda g: induced_subgraph(random_graph(3, 4), torch.tensor([0])), "must be square"),
        (lambda g: partition(g, 0), "num_parts must be in"),
        (lambda g: partition(g, 41), "num_parts must be in"),
        (lambda g: reorder(g, "hilbert"), "method must be one of"),
        (lambda g: reorder(random_graph(3, 4), "rcm"), "must be square"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_graph(40, mean_degree=3))


def test_batches_refuse_sizes_out_of_range(data):
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        NeighborBatches(data, [2], batch_size=0)
    with pytest.raises(ValueError, match="nodes must hold"):
        NeighborBatches(data, [2], nodes=torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="parts_per_batch must be in"):
        ClusterBatches(data, 3, parts_per_batch=4)
