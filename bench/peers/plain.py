"""Baseline `plain`: GCNII in torch alone, on a sparse CSR adjacency; needs no other package."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Conv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(channels, channels))


class GCNII(nn.Module):
    """Parameter names are those of abkd_fast.nn.GCNII, without dropout."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        alpha: float,
        theta: float,
    ) -> None:
        super().__init__()
        self.lins = nn.ModuleList(
            [nn.Linear(in_channels, hidden_channels), nn.Linear(hidden_channels, out_channels)]
        )
        self.convs = nn.ModuleList(_Conv(hidden_channels) for _ in range(num_layers))
        self.alpha, self.theta = alpha, theta

    def forward(self, x: Tensor, matrix: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class scores of dense features, and the hidden state of every convolution."""
        h = h_0 = self.lins[0](x).relu()
        states = []
        for layer, conv in enumerate(self.convs, start=1):
            beta = math.log(self.theta / layer + 1.0)
            mixed = torch.lerp(matrix @ h, h_0, self.alpha)
            h = F.relu(torch.addmm(mixed, mixed, conv.weight1, beta=1 - beta, alpha=beta))
            states.append(h)
        return self.lins[1](h), states
