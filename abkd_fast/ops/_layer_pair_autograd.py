"""layer_pair's place in autograd: its op leaves the gradients with the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from abkd_fast.memory import empty_output


class LayerPair(torch.autograd.Function):
    """The gradients are there after the forward; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        widths: Sequence[int],
        constants: tuple[Any, ...],
        attention: Tensor,
        teacher_map: Tensor,
        student_map: Tensor,
        *student_states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        loss, dissimilarity, *gradients = torch.ops.abkd_fast.layer_pair(
            teacher, widths, list(student_states), attention, teacher_map, student_map, *constants
        )
        ctx.save_for_backward(*gradients)
        ctx.student_widths = [state.size(1) for state in student_states]
        ctx.mark_non_differentiable(dissimilarity)
        return loss, dissimilarity

    @staticmethod
    def backward(ctx: Any, *dout: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "layer_pair has no second derivative; differentiate without create_graph=True, "
                "or use abkd_fast.reference.layer_pair"
            )
        *gradients, dstates = ctx.saved_tensors
        gradients += dstates.split(ctx.student_widths, dim=1)
        wanted = zip(gradients, ctx.needs_input_grad[3:], strict=True)
        return (
            None,
            None,
            None,
            *(scaled(gradient, dout[0]) if want else None for gradient, want in wanted),
        )


def scaled(gradient: Tensor, dout: Tensor) -> Tensor:
    """Gradient times a scalar, contiguous."""
    return torch.mul(gradient, dout, out=empty_output(gradient, *gradient.shape))
