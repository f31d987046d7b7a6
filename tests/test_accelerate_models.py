"""Accelerated models: PyG's own, nested ones, single and lazy layers."""

import copy

import pytest
import torch
from helpers import small_data
from pyg_cases import N, assert_parity, edge_weight
from pyg_models import EDGES, UsersGCN, features, train

from abkd_fast import accelerate, acceleration

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE"])
@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.4},
        {"norm": "batch_norm", "act": "elu", "act_first": True},
        {"norm": "graph_norm", "jk": "cat"},
        {"jk": "lstm"},
        {"jk": "max", "dropout": 0.2},
        {"jk": "last"},
    ],
    ids=str,
)
def test_pygs_models(name, options):
    model = getattr(pyg, name)(6, 8, num_layers=3, out_channels=4, **options)
    assert_parity(model, features(), EDGES)
    assert_parity(model.eval(), features(), EDGES)
    if name == "GCN":
        assert_parity(model, features(), EDGES, edge_weight=edge_weight(EDGES))


def test_trimmed_batches_of_a_neighbour_sampler():
    """Every layer sees other edges: those of its hop and of the hops inside it."""
    model = pyg.GraphSAGE(6, 8, num_layers=2, out_channels=4)
    nodes, edges = [2, 3, 7], [4, 8]
    index = torch.tensor(
        [[2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 5], [0, 0, 1, 1, *[2, 3, 4] * 2, 2, 3]]
    )
    options = {"num_sampled_nodes_per_hop": nodes, "num_sampled_edges_per_hop": edges}
    assert_parity(model, features(), index, **options)


def test_hetero_convolutions():
    convs = {
        ("a", "to", "b"): pyg.SAGEConv((6, 5), 4),
        ("b", "to", "a"): pyg.SAGEConv((5, 6), 4, aggr="max"),
        ("a", "in", "a"): pyg.GCNConv(6, 4),
    }
    model = pyg.HeteroConv(convs)
    x = {"a": torch.randn(N, 6), "b": torch.randn(7, 5)}
    between = torch.stack([torch.arange(N), torch.arange(N) % 7])
    edges = dict(zip(convs, (between, between.flip(0), EDGES), strict=True))
    expected = model(x, edges)
    assert len(acceleration(accelerate(model)).replaced) == 3
    for name, out in model(x, edges).items():
        torch.testing.assert_close(out, expected[name])


def test_everything_nested_is_found_and_trains_as_in_pyg():
    torch.manual_seed(0)
    model = UsersGCN()
    assert_parity(model, features(), EDGES)
    copied = copy.deepcopy(model)
    losses = train(model)
    assert len(acceleration(accelerate(copied)).replaced) == 5
    assert train(copied) == pytest.approx(losses, rel=1e-4)
    for a, b in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_single_layer_is_a_model_too():
    conv = pyg.GCNConv(6, 3)
    assert str(acceleration(accelerate(conv))).endswith("(model)  GCNConv  accelerated")
    data = small_data(num_features=6)
    assert data.arguments(conv)[0] is data.dense_x  # as PyG's: not in our sparse form


def test_lazy_layers_take_their_width_from_the_first_call():
    model = pyg.GraphSAGE(-1, 8, num_layers=2, out_channels=3)
    fast = accelerate(copy.deepcopy(model))
    torch.manual_seed(3)
    expected = model(features().detach(), EDGES)
    torch.manual_seed(3)
    torch.testing.assert_close(fast(features().detach(), EDGES), expected)
    x = features()
    model.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast(x, EDGES), model(x, EDGES))
