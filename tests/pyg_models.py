"""Models of a user of PyG, and how they are trained."""

import pytest
import torch
from pyg_cases import N, edge_index
from torch import nn

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")

EDGES = edge_index("self loops")


class UsersGCN(nn.Module):
    """A user's model, nested: layers in a list, a Sequential of PyG's, a GCN2Conv."""

    def __init__(self):
        super().__init__()
        self.first = pyg.Sequential(
            "x, edge_index",
            [(pyg.GCNConv(6, 8), "x, edge_index -> x"), nn.ReLU(), pyg.Linear(8, 8)],
        )
        self.blocks = nn.ModuleList(nn.ModuleDict({"conv": pyg.SAGEConv(8, 8)}) for _ in range(2))
        self.residual = pyg.GCN2Conv(8, alpha=0.2, theta=0.5, layer=1)
        self.out = pyg.GCNConv(8, 3, cached=True)

    def forward(self, x, edge_index):
        h = h_0 = self.first(x, edge_index)
        for block in self.blocks:
            h = nn.functional.dropout(block["conv"](h, edge_index).relu(), 0.3, self.training)
        return self.out(self.residual(h, h_0, edge_index), edge_index)


class UsersConv(pyg.GCNConv):
    def message(self, x_j, edge_weight):
        return 2 * x_j


def features(width=6, rows=N):
    return torch.randn(rows, width, requires_grad=True)


def train(model, steps=5, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.05)
    x, y = torch.randn(N, 6, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3
    torch.manual_seed(2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, EDGES), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
