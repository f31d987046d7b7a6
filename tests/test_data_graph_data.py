from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from abkd_fast import CSRGraph
from abkd_fast.data import GraphData, row_normalize

EDGES = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])


def mask(*nodes, n=4):
    out = torch.zeros(n, dtype=torch.bool)
    out[list(nodes)] = True
    return out


def parts(**changes):
    """A path of two edges with four nodes; node 3 is unlabelled."""
    return {
        "x": torch.tensor([[1.0, 0.0, 3.0], [0, 2, 0], [0, 0, 0], [4, 0, 4]]),
        "graph": CSRGraph.from_edge_index(EDGES, 4),
        "y": torch.tensor([0, 1, 1, -1]),
        "train_mask": mask(0),
        "val_mask": mask(1),
        "test_mask": mask(2),
    } | changes


def sparse_x():
    return CSRGraph.from_torch(parts()["x"].to_sparse_csr())


def test_sizes():
    data = GraphData(**parts(), name="tiny")
    assert (data.num_nodes, data.num_features, data.num_classes) == (4, 3, 2)
    assert set(map(tuple, data.edge_index.t().tolist())) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert data.edge_index.dtype == torch.int64
    assert data.dense_x is data.x
    assert repr(data) == (
        "GraphData(tiny, num_nodes=4, num_edges=4, num_features=3 (dense), num_classes=2, "
        "split=1/1/1)"
    )


def test_sparse_features():
    data = GraphData(**parts(x=sparse_x()))
    assert data.num_features == 3
    assert torch.equal(data.dense_x, parts()["x"])
    assert data.dense_x is data.dense_x
    assert "3 (sparse)" in repr(data)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"graph": EDGES}, "graph must be a CSRGraph, got Tensor"),
        ({"graph": CSRGraph.from_edge_index(EDGES, (4, 5))}, "graph must be square"),
        ({"graph": CSRGraph.from_edge_index(EDGES[:, :0], 0)}, "at least one node, got 0"),
        ({"x": torch.zeros(3, 2)}, "x must have N=4 rows as the graph, got 3"),
        ({"x": torch.zeros(4)}, "x must have 2 dimension"),
        ({"x": torch.zeros(4, 0)}, "at least one feature"),
        ({"x": torch.zeros(4, 2, dtype=torch.int64)}, "x must be float16"),
        ({"x": torch.tensor([[1.0], [float("nan")], [0], [0]])}, r"x must be finite.*\[1, 0\]"),
        ({"x": CSRGraph.from_edge_index(EDGES, 4)}, "x must have weights"),
        ({"x": CSRGraph.from_edge_index(EDGES, 5, torch.ones(4))}, "x must have N=4 rows"),
        ({"y": torch.zeros(4)}, "y must be int64, got float32"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, "y must have N=4 rows"),
        ({"train_mask": mask()}, "train_mask must select at least one node"),
        ({"val_mask": mask()}, "val_mask must select at least one node"),
        ({"test_mask": mask()}, "test_mask must select at least one node"),
        ({"test_mask": mask(2, n=5)}, "test_mask must have N=4 rows"),
        ({"test_mask": torch.tensor([0, 0, 1, 0])}, "test_mask must be bool"),
        ({"test_mask": mask(0, 2)}, "train_mask and test_mask must not overlap, got 1 common"),
        ({"val_mask": mask(0, 1)}, "train_mask and val_mask must not overlap"),
        ({"test_mask": mask(2, 3)}, "y must be >= 0 on test_mask, got -1 at node 3"),
    ],
)
def test_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        GraphData(**parts(**changes))


def test_is_immutable():
    data = GraphData(**parts())
    with pytest.raises(AttributeError):
        data.name = "other"
    assert replace(data, name="other").name == "other"


def test_fingerprint():
    base = GraphData(**parts()).fingerprint()
    assert GraphData(**parts(), name="other").fingerprint() == base
    other_y = torch.tensor([1, 1, 1, -1])
    other_graph = CSRGraph.from_edge_index(EDGES[:, :2], 4)
    for changes in ({"y": other_y}, {"graph": other_graph}, {"x": parts()["x"] + 1}):
        assert GraphData(**parts(**changes)).fingerprint() != base
    sparse = GraphData(**parts(x=sparse_x()))
    assert sparse.fingerprint() == GraphData(**parts(x=sparse_x())).fingerprint()
    assert GraphData(**parts(x=parts()["x"].bfloat16())).fingerprint() != base


def test_fingerprint_is_computed_once(monkeypatch):
    data = GraphData(**parts())
    first = data.fingerprint()
    monkeypatch.setattr(CSRGraph, "fingerprint", None)
    assert data.fingerprint() == first


def test_to_keeps_everything():
    data = GraphData(**parts(x=sparse_x()), name="tiny", synthetic=True)
    moved = data.to("cpu")
    assert moved.fingerprint() == data.fingerprint()
    assert (moved.name, moved.synthetic) == ("tiny", True)
    meta = GraphData(**parts())
    with pytest.raises(ValueError, match="x must be on cpu, got meta"):
        replace(meta, x=meta.x.to("meta"))


# -- binding -------------------------------------------------------------------------------


def model(forward):
    """A module whose forward has the signature of ``forward``."""
    return type("Model", (nn.Module,), {"forward": forward})()


def test_binds_by_name():
    data = GraphData(**parts(x=sparse_x()))
    x, edges = data.arguments(model(lambda self, x, edge_index: None))
    assert x is data.dense_x and edges is data.edge_index
    graph, x = data.arguments(model(lambda self, graph, x: None))
    assert graph is data.graph and x is data.x
    for name in ("adj_t", "adj"):
        scope = {}
        exec(f"def forward(self, x, {name}): pass", scope)
        x, adjacency = data.arguments(model(scope["forward"]))
        assert x is data.dense_x
        assert torch.equal(adjacency.to_dense(), data.graph.to_dense())


def test_our_models_get_features_as_stored():
    ours = model(lambda self, x: None)
    type(ours).__module__ = "abkd_fast.nn.mlp"
    data = GraphData(**parts(x=sparse_x()))
    assert data.arguments(ours)[0] is data.x
    assert data.arguments(model(lambda self, x: None))[0] is data.dense_x


def test_defaults():
    data = GraphData(**parts())
    bound = data.arguments(model(lambda self, x, flag=7, edge_index=None, extra=None, **rest: None))
    assert bound[1] == 7 and bound[2] is data.edge_index and len(bound) == 3


def test_edge_weight():
    def optional(self, x, edge_index, edge_weight=None):
        pass

    def required(self, x, edge_index, edge_weight):
        pass

    data = GraphData(**parts())
    assert data.arguments(model(optional))[2] is None
    assert data.arguments(model(required))[2].tolist() == [1, 1, 1, 1]
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    data = GraphData(**parts(graph=CSRGraph.from_edge_index(EDGES, 4, weight)))
    bound = data.arguments(model(optional))
    pairs = dict(zip(map(tuple, bound[1].t().tolist()), bound[2].tolist(), strict=True))
    assert pairs == {(0, 1): 1, (1, 0): 2, (2, 3): 3, (3, 2): 4}


@pytest.mark.parametrize(
    "forward, message",
    [
        (lambda self, x, batch: None, r"Model.forward .*x, graph, edge_index.*got 'batch'; .*forw"),
        (lambda self, *, x, edge_index: None, "must be positional.*got 'x'"),
        (lambda self, *args: None, "must take at least one of"),
        (lambda self, flag=1: None, "must take at least one of"),
    ],
)
def test_refuses_what_it_cannot_bind(forward, message):
    with pytest.raises(ValueError, match=message):
        GraphData(**parts()).arguments(model(forward))


# -- PyG objects ---------------------------------------------------------------------------


def pyg(**changes):
    base = {name: parts()[name] for name in parts() if name != "graph"}
    return SimpleNamespace(**(base | {"edge_index": EDGES, "num_nodes": 4} | changes))


def test_from_pyg():
    data = GraphData.from_pyg(pyg(), name="mine")
    assert data.name == "mine"
    assert data.fingerprint() == GraphData(**parts()).fingerprint()
    assert torch.equal(data.train_mask, mask(0))


def test_from_pyg_variants():
    masks = torch.stack([mask(1), mask(0)], dim=1)
    data = GraphData.from_pyg(
        pyg(
            train_mask=masks,
            val_mask=masks.flip(1),
            y=parts()["y"][:, None],
            x=parts()["x"].to_sparse_csr(),
        ),
        split=1,
    )
    assert torch.equal(data.train_mask, mask(0))
    assert isinstance(data.x, CSRGraph)
    assert data.y.shape == (4,)
    adjacency = CSRGraph.from_edge_index(EDGES, 4).to_torch()
    assert GraphData.from_pyg(pyg(adj_t=adjacency)).num_nodes == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_mask": None}, "got no train_mask.*RandomNodeSplit"),
        ({"x": None, "y": None}, "got no x, y"),
        ({"train_mask": torch.ones(4, 2, dtype=torch.bool)}, r"split must lie in \[0, 2\)"),
        ({"edge_index": None}, "edge_index"),
    ],
)
def test_from_pyg_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        GraphData.from_pyg(pyg(**changes), split=2)


# -- normalisation -------------------------------------------------------------------------


def test_row_normalize():
    dense = torch.tensor([[1.0, 0.0, 3.0], [0, 2, -2], [0, 0, 0]])
    expected = torch.tensor([[0.25, 0.0, 0.75], [0, 0.5, -0.5], [0, 0, 0]])
    assert torch.equal(row_normalize(dense), expected)
    sparse = row_normalize(CSRGraph.from_torch(dense.to_sparse_csr()))
    assert torch.equal(sparse.to_dense(), expected)
    unweighted = CSRGraph.from_edge_index(torch.tensor([[0, 1, 2], [0, 0, 1]]), 3)
    assert row_normalize(unweighted).to_dense()[0].tolist() == [0.5, 0.5, 0]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # from PyG's transform
def test_from_a_real_pyg_object():
    from torch_geometric.data import Data
    from torch_geometric.transforms import ToSparseTensor

    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    masks = {"train_mask": torch.arange(4) < 1, "val_mask": torch.arange(4) == 1}
    pyg = Data(torch.eye(4), edge_index, y=torch.tensor([0, 1, 0, 1]), **masks)
    pyg.test_mask = torch.arange(4) > 1
    found = GraphData.from_pyg(pyg)
    assert torch.equal(found.edge_index.sort(1).values, edge_index.sort(1).values)
    assert torch.equal(found.graph.to_dense(), CSRGraph.from_pyg(pyg).to_dense())
    assert found.num_classes == 2
    adjacency = ToSparseTensor(layout=torch.sparse_csr)(pyg.clone())
    assert torch.equal(CSRGraph.from_pyg(adjacency).to_dense(), found.graph.to_dense())
