"""The dense linear layer against torch's."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import reference
from abkd_fast.ops import linear
from abkd_fast.testing import assert_no_worse

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(0, 3, 2), (1, 1, 1), (5, 7, 3), (130, 65, 17)]


def operands(rows, width, width_out, dtype, bias):
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(width_out, width).to(dtype)
    return [x, weight, *([torch.randn(width_out).to(dtype)] if bias else [])]


@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(shape, dtype, bias, act):
    given = operands(*shape, dtype, bias)
    dout = torch.randn(shape[0], shape[2]).to(dtype)

    def run(layer, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in given]
        out = layer(*leaves, act=act)
        return out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))

    results = run(linear, dtype), run(reference.linear, torch.float64), run(reference.linear, dtype)
    for parts in zip(*results, ["out", "dx", "dweight", "dbias"], strict=False):
        assert_no_worse(*parts)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_laid_out_as_the_weight(transposed):
    x, weight = torch.randn(5, 4), torch.randn(3, 4)
    weight = (weight.t().contiguous().t() if transposed else weight).requires_grad_()
    out = linear(x, weight)
    (dweight,) = torch.autograd.grad(out, weight, torch.ones_like(out))
    assert dweight.stride() == weight.stride()
    torch.testing.assert_close(dweight, x.sum(0).expand(3, 4))


@pytest.mark.parametrize("act", ["none", "relu"])
def test_gradcheck(act):
    leaves = [t.requires_grad_() for t in operands(4, 3, 2, torch.float64, True)]

    def layer(*given):
        return linear(*given, act=act)

    assert gradcheck(layer, leaves) and gradgradcheck(layer, leaves)


def test_compiles_without_graph_breaks():
    given = operands(6, 5, 4, torch.float32, True)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given, act="relu"), linear(*given, act="relu"))


X, W = torch.zeros(4, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], W), r"x must have 2 dimension\(s\), got shape \[3\]"),
        ((X, W.t()), r"weight must be \[out, in=3\], got \[3, 2\]"),
        ((X, W.double()), "weight must be float32, got float64"),
        ((X, W, torch.zeros(3)), r"bias must be \[out=2\], got \[3\]"),
        ((X, W, None, "tanh"), "act must be one of none, relu, got 'tanh'"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear(*arguments)
