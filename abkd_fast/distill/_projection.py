"""Trainable projections that objectives share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-5


class Projection(nn.Module):
    """act((x W + b - mean) / std * weight + bias), mean and std over the rows at hand.

    Linear, batch normalisation (arXiv 1502.03167) and, with ``relu``, ReLU. There are no running
    averages: an objective is never evaluated. One row alone becomes ``bias``.

    Args:
        in_channels: width of x.
        out_channels: width of the result.
        relu: whether ReLU follows.
        device: where its parameters go.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        relu: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.relu = relu
        self.linear = nn.Linear(in_channels, out_channels, device=device)
        self.weight = nn.Parameter(torch.ones(out_channels, device=device))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """X [B, in_channels]; returns [B, out_channels]."""
        x = self.linear(x)
        x = x - x.mean(0)
        scale = self.weight * (x.square().mean(0) + _EPS).rsqrt()
        x = torch.addcmul(self.bias, x, scale)
        return x.relu() if self.relu else x


def mlp(*widths: int, device: torch.device | None = None) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for wide, narrow in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(wide, narrow, device=device), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
