"""What accelerate leaves as it was, what undoes it, and what it reports."""

import pytest
import torch
from pyg_models import EDGES, UsersConv, UsersGCN, features, train
from torch import nn

from abkd_fast import accelerate, accelerated, acceleration, decelerate

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")


def test_what_there_was_stays():
    model = UsersGCN().eval()
    parameters, keys, modules = (
        list(model.parameters()),
        list(model.state_dict()),
        [*model.modules()],
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    calls = []
    handle = model.out.register_forward_hook(lambda *_: calls.append(1))
    assert accelerate(model) is model and accelerate(model) is model
    assert not model.training and isinstance(model.out, pyg.GCNConv)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    before = [p.detach().clone() for p in parameters]
    losses = train(model.train(), optimizer=optimizer)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert len(calls) == 5
    handle.remove()
    train(model, 1)
    assert len(calls) == 5


def test_the_context_undoes_what_it_did_and_keeps_what_was_learned():
    model = UsersGCN()
    types = [type(m) for m in model.modules()]
    accelerate(model.out)
    with accelerated(model) as same:
        assert same is model and len(acceleration(model).replaced) == 5
        train(model)
        learned = [p.detach().clone() for p in model.parameters()]
    assert acceleration(model).replaced == ["out"]
    with pytest.raises(KeyError, match="from inside"), accelerated(model):
        raise KeyError("from inside")
    assert acceleration(model).replaced == ["out"]
    decelerate(model)
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(a, b) for a, b in zip(learned, model.parameters(), strict=True))
    x = features()
    expected = model.eval()(x, EDGES)
    torch.testing.assert_close(accelerate(model)(x, EDGES), expected)


def test_the_report_names_what_is_left_and_why():
    model = nn.ModuleDict(
        {
            "ours": pyg.GCNConv(6, 6),
            "mean": pyg.GCNConv(6, 6, aggr="mean"),
            "lstm": pyg.SAGEConv(6, 6, aggr="lstm"),
            "several": pyg.SAGEConv(6, 6, aggr=["mean", "max"]),
            "dim": pyg.GCNConv(6, 6, node_dim=1),
            "parts": pyg.GCN2Conv(6, 0.1, decomposed_layers=2),
            "users": UsersConv(6, 6),
            "other": pyg.GINConv(nn.Linear(6, 6)),
            "patched": pyg.GCNConv(6, 6),
            "watched": pyg.GCNConv(6, 6),
        }
    )
    model["patched"].message = lambda x_j, edge_weight: x_j
    model["watched"].register_message_forward_hook(lambda *_: None)
    classes = {name: type(layer) for name, layer in model.items()}
    with pytest.warns(UserWarning, match=r"9 of 10 layers are not accelerated \(mean: aggr='mean'"):
        accelerate(model)
    assert all(type(model[name]) is classes[name] for name in classes if name != "ours")
    report = acceleration(model)
    assert report.replaced == ["ours"]
    assert report.left == {
        "mean": "aggr='mean' is none of add, sum",
        "lstm": "aggr='lstm' is none of add, sum, mean, max, min",
        "several": "aggr=['mean', 'max'] is none of add, sum, mean, max, min",
        "dim": "node_dim=1 is not -2",
        "parts": "decomposed_layers=2 is not 1",
        "users": "it is a subclass of GCNConv, which may compute something else",
        "other": "we have no such layer",
        "patched": "message of this object was replaced",
        "watched": "hooks watch its messages",
    }
    lines = str(report).splitlines()
    assert lines[0] == "1 of 10 message-passing layers accelerated"
    assert lines[1].split() == ["ours", "GCNConv", "accelerated"]
    assert lines[8].split(maxsplit=2) == ["other", "GINConv", "we have no such layer"]
    with pytest.warns(UserWarning, match="Linear has no message-passing layer of PyG"):
        accelerate(nn.Linear(2, 2))
