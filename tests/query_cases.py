"""Graphs of the tests of node queries."""

import torch

from abkd_fast.graph import CSRGraph
from abkd_fast.testing import random_graph, sample_graph, wide_indices

GRAPHS = {
    "power-law": lambda: random_graph(300, mean_degree=9, power_law=True, seed=1),
    "weighted": lambda: random_graph(40, mean_degree=5, dtype=torch.float32, seed=2),
    "float64": lambda: random_graph(40, mean_degree=5, dtype=torch.float64, seed=2),
    "wide-indices": lambda: wide_indices(random_graph(60, mean_degree=4, seed=3)),
    "no-edges": lambda: CSRGraph.from_csr(torch.zeros(9, dtype=torch.int64), torch.zeros(0).long()),
    "hub": lambda: sample_graph("hub"),
}


def assert_same_graph(got, want):
    assert torch.equal(got.rowptr, want.rowptr)
    assert torch.equal(got.col, want.col)
    assert got.rowptr.dtype == want.rowptr.dtype and got.num_src == want.num_src
    assert (got.value is None) == (want.value is None)
    assert got.value is None or torch.equal(got.value, want.value)
