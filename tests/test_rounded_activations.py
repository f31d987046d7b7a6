"""Activations stored in bfloat16: what is rounded, and what that does to gradients."""

import pytest
import torch
from helpers import small_data
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from typed_data import typed_data

from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig
from abkd_fast._activations import keep, storing
from abkd_fast.capture import Recorder
from abkd_fast.nn import GAT, GCN, GCNII, MLP, RGCN, GraphSAGE
from abkd_fast.nn.gcn2_conv import GCN2Conv
from abkd_fast.nn.gcn_conv import GCNConv
from abkd_fast.nn.linear import Linear
from abkd_fast.nn.sage_conv import SAGEConv
from abkd_fast.ops import edge_attention, edge_attention_v2
from abkd_fast.testing import random_graph

BFLOAT16 = torch.bfloat16
UNIT = 2.0**-8  # round to nearest, 8 significant bits: x is stored as x (1 + e), |e| <= UNIT
MODELS = {
    "mlp": lambda: MLP(16, 24, 4, 3, dropout=0.0),
    "gcn": lambda: GCN(16, 24, 4, 40, dropout=0.0),  # its last layer widens: aggregates first
    "gcnii": lambda: GCNII(16, 24, 6, 3, dropout=0.0),
    "gcnii-dropped": lambda: GCNII(16, 24, 6, 3, dropout=0.5),
    "sage": lambda: GraphSAGE(16, 24, 3, 3, dropout=0.0),
}


def double_problem():
    graph = random_graph(90, mean_degree=5, dtype=torch.float64, power_law=True, seed=1)
    return graph, torch.randn(90, 16, dtype=torch.float64)


class Watch:
    """Inputs, outputs and gradients of the outputs of a model's layers."""

    def __init__(self, model):
        kinds = GCN2Conv | GCNConv | SAGEConv | Linear
        found = [(path, m) for path, m in model.named_modules() if isinstance(m, kinds)]
        self.layers = {p: m for p, m in found if not p.rpartition(".")[2].startswith("lin")
                       or p.startswith("lins.")}  # fmt: skip
        self.seen, self.douts = {}, {}
        for path, layer in self.layers.items():
            layer.register_forward_hook(self.hook(path))

    def hook(self, path):
        def record(module, args, out):
            self.seen[path] = [t.detach() for t in (*args, out) if isinstance(t, torch.Tensor)]
            out.register_hook(lambda dout: self.douts.__setitem__(path, dout))

        return record


def gradients_of(model, graph, x, activations, **options):
    """Of a fixed function of the scores in all parameters."""
    torch.manual_seed(3)
    with storing(activations, model):
        out = model(x, graph, **options)
    model.zero_grad()
    torch.tanh(out).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def bound(layer, tensors, dout, a_hat):
    r"""2^-8 \|X\|^T \|dZ\|: X is what W multiplies, dZ the gradient before the activation."""
    x, *rest, out = tensors
    dz = dout * (out > 0) if layer.act == "relu" else dout
    if isinstance(layer, Linear):
        return UNIT * dz.abs().t() @ x.abs()
    if isinstance(layer, GCN2Conv):
        s = (1 - layer.alpha) * a_hat @ x + layer.alpha * rest[0]
        return UNIT * layer.beta * s.abs().t() @ dz.abs()
    if layer.out_channels <= layer.in_channels:  # A (X W)
        return UNIT * (a_hat.t() @ dz).abs().t() @ x.abs()
    return UNIT * dz.abs().t() @ (a_hat @ x).abs()


WEIGHTS = {Linear: "weight", GCN2Conv: "weight1", GCNConv: "lin.weight"}


@pytest.mark.parametrize("name", ["mlp", "gcn", "gcnii"])
def test_weights_gradients_within_the_bound_all_others_exact(name):
    """In float64, where the roundings are all that there is; the first layer reads x itself."""
    graph, x = double_problem()
    model = MODELS[name]().double()
    watch = Watch(model)
    exact = gradients_of(model, graph, x, None)
    douts, watch.douts = watch.douts, {}
    rounded = gradients_of(model, graph, x, "bfloat16")
    a_hat = graph.gcn_norm().to_dense()
    assert len(watch.layers) >= 4 and len(douts) == len(watch.layers)
    for path, layer in watch.layers.items():
        assert torch.equal(douts[path], watch.douts[path]), path
        weight = f"{path}.{WEIGHTS[type(layer)]}"
        error = (rounded.pop(weight) - exact[weight]).abs()
        assert bool((error <= bound(layer, watch.seen[path], douts[path], a_hat) + 1e-14).all())
        assert bool(error.any()) == (watch.seen[path][0] is not x and path != "lins.0"), path
    assert len(rounded) > 0
    for bias, gradient in rounded.items():
        assert torch.equal(gradient, exact[bias]), bias


@pytest.mark.parametrize("name", ["gcnii-dropped", "sage"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_layers_outputs_and_of_biases_are_exact(name, dtype):
    graph, x = double_problem()
    graph, x = graph.to(dtype=dtype), x.to(dtype)
    model = MODELS[name]().to(dtype)
    watch = Watch(model)
    exact = gradients_of(model, graph, x, None)
    douts, watch.douts = watch.douts, {}
    rounded = gradients_of(model, graph, x, "bfloat16")
    assert len(douts) == len(watch.layers) >= 3
    for path, dout in douts.items():
        assert torch.equal(dout, watch.douts[path]), path
    for path, gradient in exact.items():
        error = float((rounded[path] - gradient).norm())
        assert error == 0.0 if path.endswith("bias") else error <= 2 * UNIT * gradient.norm()


class Attention(nn.Module):
    """Attention over features that are made of the arguments."""

    def __init__(self, op):
        super().__init__()
        self.op = op
        self.att_src, self.att_dst = (nn.Parameter(torch.randn(2, 8).double()) for _ in range(2))

    def forward(self, x, graph):
        h = (2 * x).view(-1, 2, 8)
        if self.op is edge_attention:
            return self.op(graph, h, self.att_src, self.att_dst).flatten(1)
        return self.op(graph, h, h + 1, self.att_src).flatten(1) * self.att_dst.flatten()


def rounding_shape(shape):
    """Hooks that round what has this shape."""

    def pack(tensor):
        return tensor.to(BFLOAT16).to(tensor.dtype) if tensor.shape == shape else tensor

    return saved_tensors_hooks(pack, lambda tensor: tensor)


def test_attention_reads_rounded_features_and_exact_scores():
    """GATv2 forms its scores again from the features, which stay exact for that."""
    graph, x = double_problem()
    model = Attention(edge_attention)
    with rounding_shape((90, 2, 8)):
        expected = gradients_of(model, graph, x, None)
    exact, found = (gradients_of(model, graph, x, kind) for kind in (None, "bfloat16"))
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient) and not torch.equal(found[name], exact[name])
    model = Attention(edge_attention_v2)
    exact, found = (gradients_of(model, graph, x, kind) for kind in (None, "bfloat16"))
    assert torch.equal(found["att_src"], exact["att_src"])


def test_weights_made_of_parameters_are_not_rounded():
    """R-GCN's bases: the gradients of its first layer's outputs pass through the second's."""
    data = typed_data()
    relations = data.relations
    model = RGCN(8, 6, 2, 3, relations.num_nodes, relations.num_relations, ("author",),
                 dropout=0.0, num_bases=2)  # fmt: skip
    options = {"other_x": data.other_x}
    exact = gradients_of(model, relations, data.x, None, **options)
    found = gradients_of(model, relations, data.x, "bfloat16", **options)
    assert torch.equal(found["convs.0.bias"], exact["convs.0.bias"])
    error = (found["convs.1.weight"] - exact["convs.1.weight"]).norm()
    assert 0.0 < float(error) <= UNIT * float(exact["convs.1.weight"].norm()) * 2


def test_captured_states_are_stored_as_they_are():
    """Also where they are rows of what is stored: the target's of all types'."""
    graph, x = double_problem()
    model = GCN(16, 12, 3, 3, dropout=0.0).double()
    exact = gradients_of(model, graph, x, None)
    with Recorder(model) as recorder, storing("bfloat16", model):
        capture = recorder.run(x, graph)
    model.zero_grad()
    torch.tanh(capture.logits).square().sum().backward()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, exact[name]), name  # A (X W) keeps its inputs alone
    data = typed_data()
    relations = data.relations
    model = RGCN(8, 6, 2, 3, relations.num_nodes, relations.num_relations, ("author",), dropout=0.0)
    arguments = data.x, relations, data.other_x
    model(*arguments).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with Recorder(model) as recorder, storing("bfloat16", model):
        capture = recorder.run(*arguments)
    capture.logits.square().sum().backward()
    assert torch.equal(model.convs[1].weight.grad, wanted["convs.1.weight"])


def test_under_autocast_float32_copies_are_rounded_back():
    graph, x = double_problem()
    graph, x = graph.to(dtype=torch.float32), x.float()
    model = GCNII(16, 24, 4, 3, dropout=0.0)
    with torch.autocast("cpu", dtype=BFLOAT16):
        exact, found = (gradients_of(model, graph, x, kind) for kind in (None, "bfloat16"))
    for name, gradient in exact.items():
        error = float((found[name] - gradient).norm())
        assert error == 0.0 if "bias" in name else error <= 2 * UNIT * float(gradient.norm())


class InPlace(nn.Module):
    """Changes a tensor that autograd has kept."""

    def __init__(self, rounded):
        super().__init__()
        self.weight, self.rounded = nn.Parameter(torch.randn(4, 4)), rounded

    def forward(self, x):
        h = 3 * x
        keep(None if self.rounded else h)
        out = h @ self.weight
        h.add_(1)
        return out


def test_changes_in_place():
    """An error where the tensor itself is kept, as ever; a rounded copy is of before."""
    x = torch.randn(7, 4)
    for rounded in (False, True):
        model = InPlace(rounded)
        with storing("bfloat16", model):
            out = model(x)
        if rounded:
            out.sum().backward()
            expected = (3 * x).bfloat16().float().sum(0)[:, None].expand(4, 4)
            torch.testing.assert_close(model.weight.grad, expected)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation: .* expected"):
                out.sum().backward()


def test_a_distilled_gat_learns_as_without():
    data = small_data()
    teacher = TeacherCache.build(GCNII(8, 6, 4, 3), data)
    last = []
    for activations in (None, "bfloat16"):
        torch.manual_seed(1)
        student = GAT(8, 4, 3, 3, dropout=0.2, heads=2, norm="batch_norm")
        config = TrainConfig(epochs=40, patience=None, lr=0.02, activations=activations)
        run = Distiller(teacher, student, data, KD() + ABKD(attention_dim=8), config=config,
                        callbacks=())  # fmt: skip
        history = run.fit().history
        last.append(history[-1]["loss"])
        assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert last[0] != last[1] and last[0] == pytest.approx(last[1], rel=0.1)
