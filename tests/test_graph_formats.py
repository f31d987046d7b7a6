"""CSRGraph to and from other formats."""

import numpy as np
import pytest
import scipy.sparse
import torch
from test_graph import tiny

from abkd_fast import CSRGraph
from abkd_fast.testing import GRAPHS, random_graph, sample_graph


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("name", GRAPHS)
def test_round_trips(name, dtype):
    graph = sample_graph(name, dtype)
    dense = graph.to_dense()
    for back in (
        CSRGraph.from_scipy(graph.to_scipy()),
        CSRGraph.from_scipy(graph.to_scipy().tocoo()),
        CSRGraph.from_torch(graph.to_torch()),
        CSRGraph.from_torch(graph.to_torch().to_sparse_coo()),
    ):
        assert back.shape == graph.shape
        torch.testing.assert_close(back.to_dense(), dense)
    edge_index, weight = graph.to_edge_index()
    back = CSRGraph.from_edge_index(edge_index, (graph.num_src, graph.num_dst), weight)
    torch.testing.assert_close(back.to_dense(), dense)


def test_scipy_dtypes():
    assert CSRGraph.from_scipy(scipy.sparse.eye_array(3, dtype=bool, format="coo")).value is None
    assert CSRGraph.from_scipy(scipy.sparse.eye_array(3, dtype=int)).value.dtype == torch.float32
    half = random_graph(4, dtype=torch.bfloat16)
    assert half.to_scipy().dtype == np.float32
    with pytest.raises(ValueError, match="value must be float16 or .*, got complex128"):
        CSRGraph.from_scipy(scipy.sparse.eye_array(3, dtype=complex))
    with pytest.raises(ValueError, match="matrix must be a scipy sparse matrix, got ndarray"):
        CSRGraph.from_scipy(np.eye(3))


def test_from_torch_rejects_other_layouts():
    with pytest.raises(ValueError, match="matrix must be sparse CSR or COO, got layout"):
        CSRGraph.from_torch(torch.eye(3))


def test_from_pyg():
    class Data:
        adj_t = None
        edge_index = torch.tensor([[0, 1], [1, 2]])
        edge_weight = torch.tensor([0.5, 2.0])
        num_nodes = 3

    data = Data()
    graph = CSRGraph.from_pyg(data)
    assert graph.row().tolist() == [1, 2] and graph.value.tolist() == [0.5, 2.0]
    data.adj_t = graph.to_torch()
    assert CSRGraph.from_pyg(data).fingerprint() == graph.fingerprint()
    with pytest.raises(ValueError, match="data must have edge_index or adj_t"):
        CSRGraph.from_pyg(object())


def test_from_torch_sparse():
    class SparseTensor:
        def csr(self):
            return tiny().rowptr.long(), tiny().col.long(), tiny().value

        def size(self, dim):
            return (3, 3)[dim]

    assert CSRGraph.from_torch_sparse(SparseTensor()).fingerprint() == tiny().fingerprint()
