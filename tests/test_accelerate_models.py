"""Accelerated models: PyG's own, nested ones, what is left alone, undoing, copies, training."""

import copy
import io
import pickle

import pytest
import torch
from helpers import small_data
from pyg_cases import N, assert_parity, edge_index, edge_weight
from torch import nn

from abkd_fast import (
    ABKD,
    KD,
    Distiller,
    TrainConfig,
    accelerate,
    accelerated,
    acceleration,
    decelerate,
)

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")

EDGES = edge_index("self loops")


class UsersGCN(nn.Module):
    """A user's model, nested: layers in a list, a Sequential of PyG's, a GCN2Conv."""

    def __init__(self):
        super().__init__()
        self.first = pyg.Sequential(
            "x, edge_index",
            [(pyg.GCNConv(6, 8), "x, edge_index -> x"), nn.ReLU(), pyg.Linear(8, 8)],
        )
        self.blocks = nn.ModuleList(nn.ModuleDict({"conv": pyg.SAGEConv(8, 8)}) for _ in range(2))
        self.residual = pyg.GCN2Conv(8, alpha=0.2, theta=0.5, layer=1)
        self.out = pyg.GCNConv(8, 3, cached=True)

    def forward(self, x, edge_index):
        h = h_0 = self.first(x, edge_index)
        for block in self.blocks:
            h = nn.functional.dropout(block["conv"](h, edge_index).relu(), 0.3, self.training)
        return self.out(self.residual(h, h_0, edge_index), edge_index)


class UsersConv(pyg.GCNConv):
    def message(self, x_j, edge_weight):
        return 2 * x_j


def features(width=6, rows=N):
    return torch.randn(rows, width, requires_grad=True)


def train(model, steps=5, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.05)
    x, y = torch.randn(N, 6, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3
    torch.manual_seed(2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, EDGES), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


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


def test_hooks_and_parametrisations_of_the_inner_linear_are_honoured():
    x = features()
    conv = pyg.GCNConv(6, 3)
    nn.utils.parametrizations.weight_norm(conv.lin)
    assert_parity(conv, x, EDGES)
    for model, lin in ((pyg.GCNConv(6, 3), "lin"), (pyg.SAGEConv(6, 3), "lin_l")):
        getattr(model, lin).register_forward_hook(lambda module, args, out: 2 * out)
        assert_parity(model, x, EDGES)
    conv = pyg.SAGEConv(6, 3, bias=False)
    conv.lin_r = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
    assert_parity(conv, x, EDGES)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda conv, x: conv(x.expand(2, N, 6), EDGES), r"x is not a dense tensor \[N, F\]"),
        (lambda conv, x: conv(x, EDGES, edge_weight(EDGES, torch.float64)), "edge_weight is torch"),
        (lambda conv, x: conv(x, EDGES.to(torch.int16)), r"edge_index is torch.int16 \[2, \d+\]"),
    ],
    ids=["3-d", "weights in float64", "int16"],
)
def test_calls_that_we_cannot_serve_run_pygs_code_and_say_so(call, why):
    conv, x = pyg.GCNConv(6, 3), features()
    try:
        expected = call(conv, x)
    except (IndexError, RuntimeError) as error:
        with (
            pytest.warns(UserWarning, match=f"PyG's own GCNConv serves a call: {why}"),
            pytest.raises(type(error)),
        ):
            call(accelerate(conv), x)
        return
    with pytest.warns(UserWarning, match=f"PyG's own GCNConv serves a call: {why}"):
        out = call(accelerate(conv), x)
    assert torch.equal(out, expected)


def test_autocast_runs_pygs_code():
    conv, x = pyg.SAGEConv(6, 3), features()
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x, EDGES)
        with pytest.warns(UserWarning, match="autocast is on"):
            out = accelerate(conv)(x, EDGES)
    assert torch.equal(out, expected) and out.dtype == expected.dtype


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_takes_other_graphs():
    conv, x, other = accelerate(pyg.SAGEConv(6, 3)), features().detach(), EDGES.flip(0)
    with pytest.warns(UserWarning, match="a trace would keep this graph for good"):
        traced = torch.jit.trace(conv, (x, EDGES))
    torch.testing.assert_close(traced(x, other), conv(x, other))


def test_explanations_see_single_messages():
    from torch_geometric.explain import Explainer, GNNExplainer

    model = pyg.GCN(6, 8, num_layers=2, out_channels=3)
    config = dict(mode="multiclass_classification", task_level="node", return_type="raw")
    masks = []
    for change in (decelerate, accelerate):
        torch.manual_seed(0)
        explainer = Explainer(
            change(model),
            GNNExplainer(epochs=3),
            explanation_type="model",
            edge_mask_type="object",
            model_config=config,
        )
        if change is accelerate:
            with pytest.warns(UserWarning, match="explain mode is on"):
                masks.append(explainer(features().detach(), EDGES, index=1).edge_mask)
        else:
            masks.append(explainer(features().detach(), EDGES, index=1).edge_mask)
    torch.testing.assert_close(*masks)


def test_copies_and_files():
    model, x = UsersGCN().eval(), features()
    expected = accelerate(model)(x, EDGES)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(acceleration(copied).replaced) == 5
        torch.testing.assert_close(copied(x, EDGES), expected)
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
        torch.testing.assert_close(decelerate(copied)(x, EDGES), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain = UsersGCN().eval()
    plain.load_state_dict(torch.load(file, weights_only=True), assign=True)
    torch.testing.assert_close(plain(x, EDGES), expected)
    torch.testing.assert_close(accelerate(plain)(x, EDGES), expected)
    doubled = accelerate(pyg.GCN(6, 8, 2, 3)).double()
    assert doubled(x.double(), EDGES).dtype == torch.float64


# torch.compile itself instantiates the Function class, and looks for the gradient of any tensor.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_models():
    torch._dynamo.reset()
    model, x = pyg.GCN(6, 8, num_layers=2, out_channels=3), features()
    expected = model(x, EDGES)
    compiled = torch.compile(accelerate(model), backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x, EDGES), expected)
    grads = torch.autograd.grad(compiled(x, EDGES).square().sum(), list(model.parameters()))
    for a, b in zip(
        grads,
        torch.autograd.grad(expected.square().sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


class Teacher(nn.Module):
    """GCNII of PyG's layers."""

    def __init__(self, in_channels, width, num_layers, out_channels):
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(in_channels, width), nn.Linear(width, out_channels)])
        self.convs = nn.ModuleList(
            pyg.GCN2Conv(width, 0.1, 0.5, layer) for layer in range(1, num_layers + 1)
        )

    def forward(self, x, edge_index):
        h = h_0 = self.lins[0](x).relu()
        for conv in self.convs:
            h = conv(h, h_0, edge_index).relu()
        return self.lins[1](h)


def test_distilling_a_pyg_teacher_into_a_pyg_student():
    data = small_data()
    teacher = accelerate(Teacher(8, 16, 4, 3))
    config = TrainConfig(epochs=80, lr=0.02, patience=None)
    Distiller(None, teacher, data, config=config).fit()
    results = {}
    for fast in (False, True):
        torch.manual_seed(5)
        student = pyg.GCN(8, 8, num_layers=2, out_channels=3)
        student = accelerate(student) if fast else student
        objective = KD(alpha=0.9) + ABKD(beta=1.0)
        layers = {"teacher_layers": "convs.*", "student_layers": "convs.0"}
        results[fast] = Distiller(
            teacher, student, data, objective=objective, config=config, seed=0, **layers
        ).fit()
    assert results[True].attention.shape == (4, 1)
    assert results[True].metrics["student"]["test"] > 60
    student = decelerate(results[True].student)
    assert type(student.convs[0]) is pyg.GCNConv
    expected = results[False].student
    for a, b in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_a_student_distilled_within_the_context_is_pygs_own_afterwards():
    data = small_data()
    teacher = Teacher(8, 16, 3, 3)
    student = pyg.GCN(8, 8, num_layers=2, out_channels=3)
    fresh = copy.deepcopy(student.state_dict())
    with accelerated(teacher), accelerated(student):
        result = Distiller(
            teacher,
            student,
            data,
            objective=KD(alpha=0.9) + ABKD(),
            config=TrainConfig(epochs=5),
            teacher_layers="convs.*",
            student_layers="convs.0",
        ).fit()
    assert acceleration(student).replaced == acceleration(teacher).replaced == []
    assert result.student is student
    assert any(not torch.equal(fresh[key], value) for key, value in student.state_dict().items())
