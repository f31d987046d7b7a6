"""Four nodes in a row, each edge stored once, in arrays as a user would save them."""

import numpy as np
import torch

EDGES = np.array([[0, 1], [1, 2], [2, 3]])
X = np.array([[1.0, 0.0], [0, 2], [3, 1], [0, 0]], np.float32)
Y = np.array([0, 1, 0, 1])
SPLIT = {"train": [0], "val": [1], "test": [2, 3]}
BOTH = {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}


def mask(nodes):
    out = np.zeros(4, bool)
    out[nodes] = True
    return out


def edges_of(data):
    return set(map(tuple, data.edge_index.t().tolist()))


def assert_is_the_path_graph(data):
    assert edges_of(data) == BOTH
    assert torch.equal(data.dense_x, torch.from_numpy(X))
    assert data.y.tolist() == Y.tolist()
    for name, nodes in SPLIT.items():
        assert getattr(data, f"{name}_mask").nonzero().flatten().tolist() == nodes
