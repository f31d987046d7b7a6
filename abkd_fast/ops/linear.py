"""Dense linear layer, in memory that is kept from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast._activations import keep
from abkd_fast._autocast import narrowed
from abkd_fast._backend import register
from abkd_fast._checks import FLOATS, check_choice, check_tensor
from abkd_fast.memory import empty_output, transposed
from abkd_fast.reference.linear import linear as _differentiable
from abkd_fast.reference.linear import op_linear, op_linear_backward

ACTIVATIONS = ("none", "relu")
# Elements of a weight past which rows stream in one pass, which leaves no more to do than to read
# and write them: what a core's first-level cache holds, or the columns and the steps of one GPU
# program that products on tensor cores keep up with memory for. Above, and for dtypes that the
# kernels of a device do not take, torch's matrix products serve.
_SMALL_WEIGHT = {"cpu": 4096, "cuda": 16384}
_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": FLOATS}


@narrowed
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    r"""out = act(x W^T + b), as ``torch.nn.functional.linear``.

    Differentiable to any order. Rows stream past a small weight in one pass, as in ``ops.conv``;
    larger products are torch's. On the CPU the result and the gradients lie in kept memory (see
    :mod:`abkd_fast.memory`). Under autocast x, W and b are taken in its dtype.

    Args:
        x: [N, in] float16/bfloat16/float32/float64, any strides.
        weight: W [out, in], dtype of x, any strides.
        bias: [out], dtype of x, or None.
        act: ``"none"`` or ``"relu"``.

    Returns:
        [N, out], dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    check_tensor("x", x, dim=2, dtypes=FLOATS)
    check_tensor("weight", weight, dim=2, dtypes=(x.dtype,), device=x.device)
    check_choice("act", act, ACTIVATIONS)
    if weight.size(1) != x.size(1):
        raise ValueError(f"weight must be [out, in={x.size(1)}], got {list(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias, dim=1, dtypes=(x.dtype,), device=x.device)
        if bias.numel() != weight.size(0):
            raise ValueError(f"bias must be [out={weight.size(0)}], got {list(bias.shape)}")
    if torch.compiler.is_compiling():
        return _differentiable(x, weight, bias, act)
    return _Linear.apply(x, weight, bias, act == "relu")


class _Linear(Function):
    """Keeps x, W, and out where there is ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        if _is_small(x, weight):
            out = torch.ops.abkd_fast.linear(x, weight, bias, relu)
        else:
            out = _product(x, weight, bias, relu)
        keep(weight)
        ctx.save_for_backward(x, weight, bias, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, out = ctx.saved_tensors
        want_x, want_weight, want_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable_backward(x, weight, bias, out, dout, ctx.needs_input_grad)
        if _is_small(x, weight):
            dx, dweight_t, dbias = torch.ops.abkd_fast.linear_backward(
                dout, out, x, weight, want_x, want_weight
            )
            # Laid out as the weight is: autograd then keeps it, where it would copy another.
            dweight = dweight_t.t() if want_weight else None
            if want_weight and weight.is_contiguous():
                dweight = transposed(dweight_t)
            gradients = (dx, want_x), (dweight, want_weight), (dbias, want_bias)
            return *(gradient if want else None for gradient, want in gradients), None
        if out is not None:
            masked = empty_output(dout, *dout.shape)
            dout = torch.ops.aten.threshold_backward(dout, out, 0, grad_input=masked)
        dx = dweight = None
        if want_x:
            dx = torch.mm(dout, weight, out=empty_output(dout, *x.shape))
        if want_weight:
            dweight = _weight_gradient(dout, x, weight)
        return dx, dweight, dout.sum(0) if want_bias else None, None


def _is_small(x: Tensor, weight: Tensor) -> bool:
    """Whether our kernels serve; the one place where they are chosen over torch's products."""
    kind = x.device.type
    small = 0 < weight.numel() <= _SMALL_WEIGHT.get(kind, 0)
    return small and x.dtype in _DTYPES[kind]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out = empty_output(x, x.size(0), weight.size(0))
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
    return out.relu_() if relu else out


def _weight_gradient(dout: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """dout^T x, laid out as the weight is: autograd then keeps it, where it would copy another."""
    if weight.is_contiguous():
        return torch.mm(dout.t(), x, out=empty_output(dout, *weight.shape))
    return torch.mm(x.t(), dout, out=empty_output(dout, *weight.t().shape)).t()


def _differentiable_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    dout: Tensor,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again."""
    result = _differentiable(x, weight, bias, "none" if out is None else "relu")
    given = (x, weight, bias)
    inputs = [t for t, want in zip(given, wanted, strict=False) if want and t is not None]
    gradients = iter(torch.autograd.grad(result, inputs, dout, create_graph=True))
    return *(next(gradients) if want else None for want in wanted[:3]), None


def _like_rows(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


def _like_gradients(
    dout: Tensor, out: Tensor | None, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if want_x else (0,))
    dweight_t = x.new_empty(weight.t().shape if want_weight else (0,))
    return dx, dweight_t, x.new_empty(weight.size(0))


register("linear", op_linear, _like_rows)
register("linear_backward", op_linear_backward, _like_gradients)
