"""Batch normalisation between layers."""

from __future__ import annotations

from torch import Tensor, nn


class BatchNorm(nn.Module):
    """relu((x - mean) / std * weight + bias), mean and std over the nodes.   (arXiv 1502.03167)

    Parameters and buffers are those of ``torch_geometric.nn.BatchNorm``.

    Args:
        channels: width of x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """X [N, channels]; N >= 2 in training."""
        return self.module(x).relu()
