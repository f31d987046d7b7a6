"""Means over all nodes, estimated from mini-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RunningMeans(nn.Module):
    r"""Exponential average of batch means, weighted by the share of nodes in a batch.

    .. math:: m \leftarrow (1 - \rho) m + \rho \bar h, \quad \rho = B / N

    :math:`\bar h` [d] is the mean of a state over the B nodes of a batch, out of N. The average
    thus spans about one epoch, N / B batches: its variance is that of about 2 N / B batches
    together, its bias what the state has moved in that time. The first batch starts it. With
    :math:`B = N` it is the mean itself. In the backward it passes the gradient on to
    :math:`\bar h` as though it were :math:`\bar h`, so that the expected gradient is the full
    batch's. The average is a buffer: checkpoints keep it.
    """

    def __init__(self, widths: Sequence[int], device: torch.device | None = None) -> None:
        super().__init__()
        self.widths = list(widths)
        self.mean: Tensor
        self.started: Tensor
        self.register_buffer("mean", torch.zeros(sum(widths), device=device))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool, device=device))

    def forward(self, means: Sequence[Tensor], share: float) -> list[Tensor]:
        """Estimates [d_j] of the means over all nodes, after a batch of ``share`` B / N."""
        batch = torch.cat(list(means))
        with torch.no_grad():
            moved = torch.lerp(self.mean.to(batch.dtype), batch, share)
            self.mean.copy_(torch.where(self.started, moved, batch))
            self.started.fill_(True)
        estimate = batch + (self.mean - batch).detach()
        return list(estimate.split(self.widths))
