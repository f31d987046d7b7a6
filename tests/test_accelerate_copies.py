"""Accelerated models copied, in files, traced and compiled."""

import copy
import io
import pickle

import pytest
import torch
from pyg_models import EDGES, UsersGCN, features

from abkd_fast import accelerate, acceleration, decelerate

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")


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


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_takes_other_graphs():
    conv, x, other = accelerate(pyg.SAGEConv(6, 3)), features().detach(), EDGES.flip(0)
    with pytest.warns(UserWarning, match="a trace would keep this graph for good"):
        traced = torch.jit.trace(conv, (x, EDGES))
    torch.testing.assert_close(traced(x, other), conv(x, other))


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
