"""Checks of the arguments of ``ops.conv``."""

from __future__ import annotations

from torch import Tensor

from abkd_fast._checks import check_choice, check_tensor
from abkd_fast.graph import CSRGraph

ACTIVATIONS = ("none", "relu")
ORDERS = ("aggregate_first", "transform_first")


def check_arguments(
    graph: CSRGraph,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_0: Tensor | None,
    alpha: float,
    beta: float,
    act: str,
    order: str | None,
) -> str:
    """Check what spmm did not; return the order of the products."""
    check_choice("act", act, ACTIVATIONS)
    width = width_out = x.size(1)
    if weight is not None:
        check_tensor("weight", weight, dim=2, dtypes=(x.dtype,), device=x.device)
        if weight.size(0) != width or weight.numel() == 0:
            raise ValueError(
                f"weight must be [in={width}, out >= 1], got {list(weight.shape)}; "
                "torch.nn.Linear keeps its transpose"
            )
        width_out = weight.size(1)
    if beta != 1.0 and (weight is None or width != width_out):
        raise ValueError(f"weight must be square where beta is not 1, got beta={beta}")
    vectors = [("bias", bias, [width_out]), ("x_0", x_0, [graph.num_dst, width])]
    for name, tensor, shape in vectors:
        if tensor is not None:
            check_tensor(name, tensor, dtypes=(x.dtype,), device=x.device)
            if list(tensor.shape) != shape:
                raise ValueError(f"{name} must be {shape}, got {list(tensor.shape)}")
    if alpha != 0.0 and x_0 is None:
        raise ValueError(f"x_0 must be given where alpha is not 0, got alpha={alpha}")
    if weight is None and x_0 is not None:
        raise ValueError("weight must be given where x_0 is")
    if order is None:
        narrow = weight is not None and x_0 is None and width_out <= width
        return "transform_first" if narrow else "aggregate_first"
    check_choice("order", order, ORDERS)
    if order == "transform_first" and (x_0 is not None or weight is None):
        raise ValueError("order must be aggregate_first with x_0 or without a weight")
    return order
