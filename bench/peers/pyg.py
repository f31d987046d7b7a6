"""Baseline `pyg`: GCNII from torch_geometric layers, adjacency normalised once, kept as CSR."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv
from torch_geometric.nn.conv.gcn_conv import gcn_norm


def prepare(edge_index: Tensor, num_nodes: int, sparse: str = "csr") -> object:
    """The transposed, normalised adjacency: torch's CSR, or torch_sparse's SparseTensor."""
    edge_index, weight = gcn_norm(edge_index, num_nodes=num_nodes)
    size = (num_nodes, num_nodes)
    if sparse == "torch_sparse":
        from torch_sparse import SparseTensor

        adj_t = SparseTensor(row=edge_index[1], col=edge_index[0], value=weight, sparse_sizes=size)
        return adj_t.fill_cache_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
        return torch.sparse_coo_tensor(edge_index.flip(0), weight, size).to_sparse_csr()


class GCNII(nn.Module):
    """As torch_geometric's own GCNII example; parameter names are those of abkd_fast.nn.GCNII."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float,
        alpha: float,
        theta: float,
    ) -> None:
        super().__init__()
        self.lins = nn.ModuleList(
            [nn.Linear(in_channels, hidden_channels), nn.Linear(hidden_channels, out_channels)]
        )
        self.convs = nn.ModuleList(
            GCN2Conv(hidden_channels, alpha, theta, layer, normalize=False)
            for layer in range(1, num_layers + 1)
        )
        self.dropout = dropout

    def forward(self, x: Tensor, adj_t: object) -> tuple[Tensor, list[Tensor]]:
        """Class scores, and the hidden state of every convolution."""
        h = h_0 = self.lins[0](F.dropout(x, self.dropout, self.training)).relu()
        states = []
        for conv in self.convs:
            h = conv(F.dropout(h, self.dropout, self.training), h_0, adj_t).relu()
            states.append(h)
        return self.lins[1](F.dropout(h, self.dropout, self.training)), states
