"""Feature preprocessing."""

from __future__ import annotations

from torch import Tensor

from abkd_fast.graph import CSRGraph


def row_normalize(x: Tensor | CSRGraph) -> Tensor | CSRGraph:
    """Scale every row to unit L1 norm: x[i] / sum_j |x[i, j]|; rows of zeros stay zero.

    Args:
        x: features [N, F], dense or sparse; sparse features stay sparse.

    Returns:
        The same form, shape and dtype as ``x``.
    """
    if isinstance(x, Tensor):
        total = x.abs().sum(dim=1, keepdim=True)
        return x / total.masked_fill(total == 0, 1.0)
    if x.value is None:
        return x.row_norm()
    row = x.row()
    total = x.value.new_zeros(x.num_dst).index_add_(0, row, x.value.abs())
    return x.with_value(x.value / total.masked_fill(total == 0, 1.0)[row])
