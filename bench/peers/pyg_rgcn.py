"""PyG's R-GCN over typed nodes: HeteroConv of SAGEConv means, a Linear a type, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch_geometric.nn import HeteroConv, SAGEConv

from abkd_fast.nn import RGCN

Relation = tuple[str, str, str]


class PygRGCN(nn.Module):
    """The model of ``abkd_fast.nn.RGCN``, from PyG's layers, with its weights."""

    def __init__(self, ours: RGCN, relations: tuple[Relation, ...]) -> None:
        super().__init__()
        self.dropout = ours.dropout
        self.types = list(ours.num_nodes)
        self.embeddings = nn.ParameterDict(
            {kind: value.detach().clone() for kind, value in ours.embeddings.items()}
        )
        self.convs, self.roots = nn.ModuleList(), nn.ModuleList()
        for layer, conv in enumerate(ours.convs):
            last = layer + 1 == len(ours.convs)
            kinds = self.types[:1] if last else self.types
            width, width_out = conv.weight.shape[1:]
            used = {
                relation: SAGEConv(width, width_out, root_weight=False, bias=False)
                for relation in relations
                if relation[2] in kinds
            }
            roots = nn.ModuleDict({kind: nn.Linear(width, width_out) for kind in kinds})
            with torch.no_grad():
                for relation, sage in used.items():
                    sage.lin_l.weight.copy_(conv.weight[relations.index(relation)].t())
                for kind, root in roots.items():
                    t = self.types.index(kind)
                    root.weight.copy_(conv.root[t].t())
                    root.bias.copy_(conv.bias[t])
            self.convs.append(HeteroConv(used, aggr="sum"))
            self.roots.append(roots)

    def forward(self, x: Tensor, edges: Mapping[Relation, Any]) -> Tensor:
        """Scores of the first type from its features; ``edges``: edge_index or transposed CSR."""
        h = {self.types[0]: x, **self.embeddings}
        for layer, (conv, roots) in enumerate(zip(self.convs, self.roots, strict=True)):
            used = {r: e for r, e in edges.items() if r[2] in roots}
            found = conv(h, used)
            h = {kind: found[kind] + root(h[kind]) for kind, root in roots.items()}
            if layer + 1 < len(self.convs):
                h = {k: dropout(v.relu(), self.dropout, self.training) for k, v in h.items()}
        return h[self.types[0]]
