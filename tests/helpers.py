"""A small classification problem that trains in milliseconds."""

import torch

from abkd_fast import CSRGraph
from abkd_fast.data import GraphData


def small_data(seed=0, num_nodes=60, num_features=8, num_classes=3, sparse=False):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num_nodes) % num_classes
    x = torch.randn(num_nodes, num_features, generator=generator)
    x[:, :num_classes] += 2 * torch.nn.functional.one_hot(y, num_classes)
    near = torch.randint(num_nodes, (4 * num_nodes,), generator=generator)
    target = torch.randint(num_nodes, (4 * num_nodes,), generator=generator)
    same = y[near] == y[target]
    edge_index = torch.stack([near[same], target[same]])
    order = torch.randperm(num_nodes, generator=generator)
    masks = torch.zeros(3, num_nodes, dtype=torch.bool)
    for mask, part in zip(masks, order.chunk(3), strict=True):
        mask[part] = True
    if sparse:
        x = CSRGraph.from_torch((x * (x > 0)).to_sparse_csr())
    graph = CSRGraph.from_edge_index(edge_index, num_nodes)
    return GraphData(x, graph, y, *masks, name="small")
