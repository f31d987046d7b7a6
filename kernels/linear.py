"""Dense linear layer: the fused layer's transform, without a graph.

Forward and dx read a block of rows once and multiply it on tensor cores; dweight is a sum over
nodes in parts whose number depends on the shapes alone, added in order.
"""

from __future__ import annotations

from torch import Tensor

from abkd_fast.kernels.conv import Layer
from abkd_fast.kernels.conv_backward import activation_gradient, weight_gradient


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """act(x W^T + b) of x [N, in], W [out, in]."""
    bias = None if bias is None else bias.contiguous()
    return Layer(x.contiguous(), x.size(0), weight=weight.t(), bias=bias, relu=relu).run()[0]


def linear_backward(
    dout: Tensor, out: Tensor | None, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight^T [in, out], dbias); [0] where a gradient is not wanted."""
    dz, dbias = activation_gradient(dout, None, out)
    dx, dweight_t = dout.new_empty(0), dout.new_empty(0)
    if want_x:
        dx = Layer(dz, dz.size(0), weight=weight).run()[0]
    if want_weight:
        dweight_t = weight_gradient(x, dz, 1.0, None)
    return dx, dweight_t, dbias
