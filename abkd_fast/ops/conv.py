"""The fused layer: aggregate, residual mix, dense transform, bias, activation, column sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast._activations import keep
from abkd_fast._autocast import narrowed
from abkd_fast._backend import register
from abkd_fast.graph import CSRGraph
from abkd_fast.ops._conv_checks import check_arguments
from abkd_fast.ops.dropout import check_dropout, dropout, seed_tensor
from abkd_fast.ops.spmm import check_operands, differentiable_sum, spmm
from abkd_fast.reference.conv import finish, op_conv, op_conv_backward


@narrowed
def conv(
    graph: CSRGraph,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    x_0: Tensor | None = None,
    alpha: float = 0.0,
    beta: float = 1.0,
    act: str = "none",
    order: str | None = None,
    p: float = 0.0,
    seed: int | Tensor | None = None,
    layer: int = 0,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""One graph convolution in one pass over blocks of rows.

    .. math::
        S = (1 - \alpha) A \, drop(x) + \alpha x_0, \qquad
        out = act((1 - \beta) S + \beta S W + b)

    GCN's layer has neither residual nor identity mix; GCNII's has both (arXiv 2007.02133, eq. 5).
    Differentiable to any order in x, weight, bias, x_0 and ``graph.value``; the fused kernels
    serve the first derivative in all but ``graph.value``, a chain of simpler ops the rest.
    Deterministic at any number of threads; the backward walks the kept transpose (see ``spmm``).

    Args:
        graph: A, [num_dst, num_src].
        x: [num_src, in] float16/bfloat16/float32/float64. 16-bit tensors are computed in float32.
            Under autocast x, weight, bias and x_0 are taken in its dtype.
        weight: W [in, out], dtype of x, any strides; None leaves the transform out.
        bias: [out], dtype of x, or None.
        x_0: [num_dst, in], dtype of x, or None: no residual.
        alpha: weight of the residual; needs x_0.
        beta: weight of the transform against the identity; a square W unless 1.
        act: ``"none"`` or ``"relu"``.
        order: ``"transform_first"`` computes A (x W), ``"aggregate_first"`` (A x) W; None
            aggregates the narrower side. A residual needs ``"aggregate_first"``.
        p: probability of dropping an element of x; seed, layer, step as in ``ops.dropout``.
        seed: needed where p > 0.
        layer: number of this dropout in the model.
        step: number of the training step.

    Returns:
        out [num_dst, out] in the dtype of x, and its column sums [out] in the accumulation dtype
        (float32; float64 for float64), added up in float64. Both differentiable.

    Raises:
        ValueError: shapes, dtypes or options do not fit.
    """
    value = check_operands(graph, x, "sum")
    order = check_arguments(graph, x, weight, bias, x_0, alpha, beta, act, order)
    check_dropout(p, layer, step)
    if p > 0.0 and seed is None:
        raise ValueError("seed must be given where p > 0, got None; draw_seed() makes one")
    key = None if seed is None or p == 0.0 else seed_tensor(seed)
    constants = (alpha, beta, act == "relu", order, p, layer, step)
    if x.dtype in (torch.float16, torch.bfloat16):
        weight, bias, x_0 = (None if t is None else t.float() for t in (weight, bias, x_0))
        out, sums = _conv(graph, value, x.float(), weight, bias, x_0, constants, key)
        return out.to(x.dtype), sums
    return _conv(graph, value, x, weight, bias, x_0, constants, key)


def _conv(
    graph: CSRGraph,
    value: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_0: Tensor | None,
    constants: tuple[Any, ...],
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    alpha, beta, relu, order, p, layer, step = constants
    if alpha == 0.0:
        x_0 = None
    elif x_0 is x:
        x_0 = x.view_as(x)  # torch.compile wants distinct arguments
    transform_first = order == "transform_first"
    trained = [t is not None and t.requires_grad for t in (x, weight, bias, x_0)]
    if torch.is_grad_enabled() and value is not None and value.requires_grad:
        dropped = x if seed is None else dropout(x, p, seed, layer, step)
        aggregated = spmm(graph, dropped)
        return finish(aggregated, weight, bias, x_0, alpha, beta, relu)
    rowptr_t = col_t = value_t = None
    if not (torch.is_grad_enabled() and any(trained)):
        arguments = (graph.rowptr, graph.col, value, x, weight, bias, x_0, alpha, beta, relu)
        rest = (not transform_first, False, p, seed, layer, step)
        return torch.ops.abkd_fast.conv(*arguments, *rest)[:2]
    if trained[0] or (trained[1] and transform_first):
        transposed = graph.t()
        rowptr_t, col_t = transposed.rowptr, transposed.col
        if value is not None and transposed.value is not None:
            value_t = transposed.value.to(value.dtype)
    options = (alpha, beta, relu, transform_first, p, layer, step)
    edges = (graph.rowptr, graph.col, value, rowptr_t, col_t, value_t)
    return _Conv.apply(*edges, x, weight, bias, x_0, seed, options)


class _Conv(Function):
    """Keeps S where the weight is trained and aggregation comes first, out where there is ReLU."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        value: Tensor | None,
        rowptr_t: Tensor | None,
        col_t: Tensor | None,
        value_t: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        x_0: Tensor | None,
        seed: Tensor | None,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        alpha, beta, relu, transform_first, p, layer, step = options
        keep_mixed = ctx.needs_input_grad[7] and not transform_first
        orders = (not transform_first, keep_mixed)
        out, sums, mixed = torch.ops.abkd_fast.conv(
            rowptr,
            col,
            value,
            x,
            weight,
            bias,
            x_0,
            alpha,
            beta,
            relu,
            *orders,
            p,
            seed,
            layer,
            step,
        )
        keep(weight)
        kept = (mixed if keep_mixed else None, out if relu else None)
        ctx.save_for_backward(
            rowptr, col, value, rowptr_t, col_t, value_t, x, weight, bias, x_0, seed, *kept
        )
        ctx.set_materialize_grads(False)
        ctx.options, ctx.num_dst = options, out.size(0)
        return out, sums

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dsums: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dout, dsums)
        *_, rowptr_t, col_t, value_t, x, weight, _, _, seed, mixed, out = ctx.saved_tensors
        alpha, beta, _, transform_first, p, layer, step = ctx.options
        want_x, want_weight, want_bias, want_x_0 = ctx.needs_input_grad[6:10]
        if dout is None:
            if dsums is None:
                return (None,) * 12
            dout, dsums = dsums.expand(ctx.num_dst, -1), None
        features = x if transform_first else mixed
        options = (alpha, beta, p, seed, layer, step, weight is not None and not transform_first)
        dx, dweight, dbias, dx_0 = torch.ops.abkd_fast.conv_backward(
            *(rowptr_t, col_t, value_t, dout, dsums, out, features, weight, *options),
            *(want_x, want_weight, want_x_0),
        )
        return (
            *(None,) * 6,
            dx if want_x else None,
            dweight if want_weight else None,
            dbias if want_bias else None,
            dx_0 if want_x_0 else None,
            None,
            None,
        )


def _differentiable_backward(
    ctx: Any, dout: Tensor | None, dsums: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the same layer in simpler ops."""
    rowptr, col, value, rowptr_t, col_t, value_t, x, weight, bias, x_0, seed, *_ = ctx.saved_tensors
    alpha, beta, relu, _, p, layer, step = ctx.options
    dropped = x if seed is None else dropout(x, p, seed, layer, step)
    edges = (rowptr_t, col_t, value_t, None)
    aggregated = differentiable_sum(rowptr, col, value, dropped, *edges)
    results = finish(aggregated, weight, bias, x_0, alpha, beta, relu)
    given = [(o, g) for o, g in zip(results, (dout, dsums), strict=True) if g is not None]
    wanted = ctx.needs_input_grad[6:10]
    inputs = [t for t, want in zip((x, weight, bias, x_0), wanted, strict=True) if want]
    if not given:
        return (None,) * 12
    outputs, douts = zip(*given, strict=True)
    gradients = iter(torch.autograd.grad(outputs, inputs, douts, create_graph=True))
    return (*(None,) * 6, *(next(gradients) if want else None for want in wanted), None, None)


def _like_outputs(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = rowptr.numel() - 1, x.size(1)
    width_out = width if weight is None else weight.size(1)
    keep_mixed = options[6]
    mixed = x.new_empty((rows, width) if keep_mixed else (0,))
    return x.new_empty(rows, width_out), x.new_empty(width_out), mixed


def _like_gradients(
    rowptr_t: Tensor | None,
    col_t: Tensor | None,
    value_t: Tensor | None,
    dout: Tensor,
    dsums: Tensor | None,
    out: Tensor | None,
    features: Tensor | None,
    weight: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want_x, want_weight, want_x_0 = options[-3:]
    width = dout.size(1) if weight is None else weight.size(0)
    return (
        dout.new_empty((rowptr_t.numel() - 1, width) if want_x and rowptr_t is not None else (0,)),
        dout.new_empty((width, dout.size(1)) if want_weight else (0,)),
        dout.new_empty(dout.size(1)),
        dout.new_empty((dout.size(0), width) if want_x_0 else (0,)),
    )


register("conv", op_conv, _like_outputs)
register("conv_backward", op_conv_backward, _like_gradients)
