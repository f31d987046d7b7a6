"""Models that are exported in tests, and what their programs must serve."""

from dataclasses import replace

import torch
from helpers import small_data

from abkd_fast import CSRGraph
from abkd_fast.export import ExportedServer
from abkd_fast.nn import GAT, GCN, GCNII, MLP, GraphSAGE

MODELS = {
    "gcn": lambda: GCN(8, 4, 3, 3, norm="batch_norm"),
    "gcnii": lambda: GCNII(8, 4, 3, 3, shared=True),
    "sage": lambda: GraphSAGE(8, 4, 2, 3),
    "sage max": lambda: GraphSAGE(8, 4, 2, 3, aggr="max"),
    "gat": lambda: GAT(8, 4, 2, 3, heads=2),
    "mlp": lambda: MLP(8, 4, 2, 3),
}


def build(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().eval()


@torch.no_grad()
def assert_serves(exported, model, sparse=False):
    """Another graph, its single nodes, and nodes of a graph without edges."""
    other = small_data(seed=5, num_nodes=33, sparse=sparse)
    torch.testing.assert_close(exported.predict(other), model(other.x, other.graph))
    server = ExportedServer(exported, other)
    every = torch.cat([server(torch.tensor([node])) for node in range(33)])
    torch.testing.assert_close(every, model(other.x, other.graph))
    none = CSRGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 33)
    alone = replace(other, graph=none)
    scores = ExportedServer(exported, alone)(torch.tensor([32]))
    torch.testing.assert_close(scores, model(other.x, none)[32:])
