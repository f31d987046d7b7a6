"""The loss on class scores: cross-entropy with labels, divergence from a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast._autocast import widened, without_autocast
from abkd_fast._backend import register
from abkd_fast._checks import FLOATS, accumulation_dtype, check_tensor
from abkd_fast.reference.kl_div import kl_div as op_kl_div
from abkd_fast.reference.kl_div import op_kl_div_backward


@without_autocast
def kl_div(
    logits: Tensor, target: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Mean divergence of the predicted classes from the target, in one pass over the scores.

    .. math:: \frac{1}{|mask|} \sum_{v \in mask}
        KL\bigl(q_v \,\|\, softmax(z_v / \tau)\bigr),
        \qquad KL(q \| p) = \sum_c q_c (\log q_c - \log p_c)

    Labels stand for one-hot q, for which this is the cross-entropy. The sum is taken in float64;
    the backward computes the softmax again instead of keeping it. Differentiable in the logits, to
    any order; the target is a constant. (Hinton, Vinyals, Dean, arXiv 1503.02531, whose factor
    tau^2 is left to the caller.)

    Args:
        logits: z [N, C] float16/bfloat16/float32/float64; 16-bit ones are computed in float32.
        target: labels [N] int64 in [0, C) where the mask is set, or log-probabilities log q [N, C]
            in the dtype of logits, or in float32 where these are 16-bit.
        mask: [N] bool, the rows that count; None = all. Without rows the mean is NaN.
        temperature: tau > 0.

    Returns:
        The loss [], in the accumulation dtype, and the number [] int64 of rows that count whose
        largest score is at the label, or at the target's largest probability.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
    """
    _check(logits, target, mask, temperature)
    target = target.detach()
    logits, target = widened(logits), widened(target)
    try:
        return _KlDiv.apply(logits, target, mask, temperature)
    except (RuntimeError, IndexError):
        if not target.is_floating_point():
            _check_labels(target, mask, logits.size(1))
        raise


def _check(logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float) -> None:
    check_tensor("logits", logits, dim=2, dtypes=FLOATS)
    nodes, classes = logits.shape
    if classes == 0:
        raise ValueError(f"logits must be [N, C >= 1], got {list(logits.shape)}")
    floats = dict.fromkeys((logits.dtype, accumulation_dtype(logits)))
    check_tensor("target", target, dtypes=(torch.int64, *floats), device=logits.device)
    shape = [nodes, classes] if target.is_floating_point() else [nodes]
    if list(target.shape) != shape:
        raise ValueError(f"target must be {shape}, got {list(target.shape)}")
    if mask is not None:
        check_tensor("mask", mask, dim=1, dtypes=(torch.bool,), device=logits.device)
        if mask.numel() != nodes:
            raise ValueError(f"mask must be [N={nodes}], got {list(mask.shape)}")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")


def _check_labels(target: Tensor, mask: Tensor | None, classes: int) -> None:
    outside = (target < 0) | (target >= classes)
    if mask is not None:
        outside &= mask
    if bool(outside.any()):
        node = int(outside.nonzero()[0])
        raise ValueError(
            f"target must be labels in [0, C={classes}), got {int(target[node])} at node {node}; "
            "leave unlabelled nodes out with mask"
        )


class _KlDiv(Function):
    """Keeps the scores only."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        loss, correct = torch.ops.abkd_fast.kl_div(logits, target, mask, temperature)
        ctx.save_for_backward(logits, target, mask)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, mask = ctx.saved_tensors
        arguments = (dloss, logits, target, mask, ctx.temperature)
        if torch.is_grad_enabled():
            return op_kl_div_backward(*arguments), None, None, None
        return torch.ops.abkd_fast.kl_div_backward(*arguments), None, None, None


def _like_scalars(
    logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty((), dtype=torch.int64)


def _like_logits(
    dloss: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    return logits.new_empty(logits.shape)


register("kl_div", op_kl_div, _like_scalars)
register("kl_div_backward", op_kl_div_backward, _like_logits)
