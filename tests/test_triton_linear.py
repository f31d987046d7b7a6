"""Triton's dense layer against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import nn, reference
from abkd_fast.ops import linear
from abkd_fast.reference.linear import op_linear, op_linear_backward
from abkd_fast.testing import assert_no_worse, sample_graph

pytestmark = needs_triton
SHAPES = [(0, 3, 2), (1, 1, 1), (5, 7, 3), (300, 33, 17), (40, 9, 130), (33, 150, 5)]
NAMES = ("out", "dx", "dweight", "dbias")


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def operands(rows, width, width_out, dtype, bias=True):
    tensors = [torch.randn(rows, width), torch.randn(width_out, width)]
    tensors += [torch.randn(width_out)] if bias else []
    return [t.to(DEVICE, dtype) for t in tensors]


def results(layer, given, dout, act, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in given]
    out = layer(*leaves, act=act)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))]


@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, bias, act):
    for dtype in (torch.float32, torch.float64):
        given = operands(*shape, dtype, bias)
        dout = torch.randn(shape[0], shape[2]).to(DEVICE, dtype)
        exact = results(reference.linear, given, dout, act, torch.float64)
        plain = results(reference.linear, given, dout, act, dtype)
        got = results(linear, given, dout, act, dtype)
        for what, a, b, c in zip(NAMES, got, exact, plain, strict=False):
            assert_no_worse(a, b, c, f"{what} in {dtype}")
        again = results(linear, given, dout, act, dtype)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_operands_are_added_in_float32(dtype):
    x, weight, bias = operands(70, 40, 9, dtype)
    out = torch.ops.abkd_fast.linear(x, weight, bias, True)
    wide = [t.double() for t in (x, weight, bias)]
    # The interpreter truncates to bfloat16: one unit in the last place, where GPUs round.
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    torch.testing.assert_close(out.double(), op_linear(*wide, True), rtol=unit, atol=1e-3)
    dout = torch.randn(70, 9).to(DEVICE, dtype)
    got = torch.ops.abkd_fast.linear_backward(dout, out, x, weight, True, True)
    exact = op_linear_backward(dout.double(), out.double(), *wide[:2], True, True)
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=unit, atol=1e-3)


def test_strides_and_frozen_arguments():
    base = torch.randn(20, 20).to(DEVICE)
    for x in (base[::2, 3:9], base.t()[:10, :6], base[:1, :6].expand(10, 6)):
        for weight in (base[:4, :6], base[:6, :4].t()):
            bias, dout = base[:4, 0], torch.ones((), device=DEVICE).expand(10, 4)
            got = results(linear, (x, weight, bias), dout, "relu", torch.float32)
            dense = [t.clone(memory_format=torch.contiguous_format) for t in (x, weight, bias)]
            expected = results(linear, dense, dout.clone(), "relu", torch.float32)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            for trained in range(3):
                alone = [t.detach().clone() for t in dense]
                alone[trained].requires_grad_()
                (gradient,) = torch.autograd.grad(linear(*alone, act="relu"), alone[trained], dout)
                assert torch.equal(gradient, expected[1 + trained])


@pytest.mark.parametrize("act", ["none", "relu"])
def test_gradcheck(act):
    given = [t.requires_grad_() for t in operands(4, 3, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: linear(*given, act=act), given)


def test_many_parts_of_the_nodes_add_up():
    x, weight, _ = operands(1100, 3, 2, torch.float32)
    dout = torch.randn(1100, 2).to(DEVICE)
    got = torch.ops.abkd_fast.linear_backward(dout, None, x, weight, False, True)
    exact = op_linear_backward(dout.double(), None, x.double(), weight.double(), False, True)
    plain = op_linear_backward(dout, None, x, weight, False, True)
    for what, a, b, c in zip(("dx", "dweight", "dbias"), got, exact, plain, strict=True):
        assert_no_worse(a, b, c, what)
    assert got[0].numel() == 0


@pytest.mark.parametrize("name", ["no-edges", "isolated", "tall", "hub", "power-law"])
def test_sparse_inputs_dropped_on_their_values(name):
    """act(drop(X) W^T + b) of CSR features is spmm with the weight for features."""
    features = sample_graph(name, torch.float32)
    layer = nn.Linear(features.num_src, 6, act="relu").to(DEVICE)
    dout = torch.randn(features.num_dst, 6)
    dropped = reference.dropout(features.value, 0.4, 5, layer=3)
    dense = features.with_value(dropped).to_dense()
    parameters = [layer.weight, layer.bias]
    found = layer(nn.dropout(features.to(DEVICE), 0.4, True, torch.tensor(5), 3))
    got = [found, *torch.autograd.grad(found, parameters, dout.to(DEVICE))]
    given = (dense, layer.weight.detach().cpu(), layer.bias.detach().cpu())
    exact = results(reference.linear, given, dout, "relu", torch.float64)
    plain = results(reference.linear, given, dout, "relu", torch.float32)
    del exact[1], plain[1]  # of the features
    for what, a, b, c in zip(("out", "dweight", "dbias"), got, exact, plain, strict=True):
        assert_no_worse(a.detach().cpu(), b, c, what)


def test_nan_passes_relu():
    x = torch.tensor([[torch.nan, 1.0], [1.0, -1.0]], device=DEVICE)
    assert linear(x, torch.ones(3, 2, device=DEVICE), act="relu").isnan().all(1).tolist() == [
        True,
        False,
    ]
