import pickle

import pytest
import torch
from relational_cases import CASES, relational_graph

from abkd_fast import CSRGraph, RelationalGraph

SIZES = {"paper": 4, "author": 3}
WRITES = ("author", "writes", "paper")
CITES = ("paper", "cites", "paper")
EDGES = torch.tensor([[0, 2, 2, 1], [3, 0, 3, 3]])


def small():
    cites = torch.tensor([[0, 1], [1, 0]])
    return RelationalGraph.from_relations(SIZES, {WRITES: EDGES, CITES: cites})


@pytest.mark.parametrize("case", CASES)
def test_both_directions_hold_the_edges(case):
    graph = relational_graph(case)
    for stack, other in ((graph.stack, graph.stack_t), (graph.stack_t, graph.stack)):
        pair = stack.edge_pair()
        relation = torch.bucketize(pair, torch.tensor(stack.pairs[1:]), right=True)
        first = torch.tensor(other.pairs)[relation]
        assert torch.equal(other.row[first + stack.local], stack.col)
        keys = relation.new_tensor(range(graph.num_relations)).repeat_interleave(
            relation.new_tensor(stack.counts())
        )
        order = keys * (graph.num_dst + graph.num_src) + stack.row
        assert bool((order.diff() > 0).all())
    index, kinds = graph.homogeneous()
    assert index.shape == (2, graph.num_edges) and kinds.numel() == graph.num_edges


def test_relations_are_rectangular_graphs():
    graph = small()
    writes = graph.relation(WRITES)
    assert writes.shape == (4, 3)
    expected = CSRGraph.from_edge_index(EDGES, (3, 4))
    assert torch.equal(writes.to_dense(), expected.to_dense())
    again = RelationalGraph.from_relations(SIZES, {WRITES: writes, CITES: graph.relation(CITES)})
    assert again.fingerprint() == graph.fingerprint()
    assert graph.start("author") == 4 and graph.node_types == ("paper", "author")


def test_reverse_relations():
    graph = small().with_reverse()
    assert graph.relations[2:] == (
        ("paper", "rev_writes", "author"),
        ("paper", "rev_cites", "paper"),
    )
    forward, reverse = graph.relation(WRITES), graph.relation(("paper", "rev_writes", "author"))
    assert torch.equal(forward.to_dense().t(), reverse.to_dense())
    with pytest.raises(ValueError, match="relations must not have reverses yet"):
        graph.with_reverse()


def test_edge_types_and_back():
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(9, (2, 50), generator=generator)
    kinds = torch.randint(4, (50,), generator=generator)
    graph = RelationalGraph.from_edge_type(index, kinds, 9)
    found, found_kinds = graph.homogeneous()

    def keys(index, kinds):
        return ((kinds * 9 + index[1]) * 9 + index[0]).sort().values

    assert torch.equal(keys(found, found_kinds), keys(index, kinds))


def test_hetero_data():
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["author"].num_nodes, data["paper"].num_nodes = 3, 4
    data[WRITES].edge_index = EDGES
    graph = RelationalGraph.from_hetero_data(data, "paper")
    assert graph.node_types == ("paper", "author")
    assert torch.equal(graph.relation(WRITES).to_edge_index()[0].sort().values, EDGES.sort().values)
    with pytest.raises(ValueError, match="target must be one of author, paper, got 'field'"):
        RelationalGraph.from_hetero_data(data, "field")


def test_pickles_and_says_what_it_is():
    graph = small()
    copy = pickle.loads(pickle.dumps(graph))
    assert copy.fingerprint() == graph.fingerprint()
    assert repr(graph) == "RelationalGraph(paper=4, author=3, num_relations=2, num_edges=6, cpu)"
    assert graph.to("cpu") is graph


@pytest.mark.parametrize(
    ("sizes", "edges", "message"),
    [
        ({}, {}, "num_nodes must hold at least one node type"),
        ({"paper": -1}, {}, r"num_nodes\['paper'\] must be >= 0, got -1"),
        (SIZES, {"cites": EDGES}, "keys of edges must be"),
        (SIZES, {("field", "of", "paper"): EDGES}, "must join types of num_nodes .*got 'field'"),
        (SIZES, {WRITES: EDGES.t()}, r"must be \[2, E\], got \[4, 2\]"),
        (SIZES, {WRITES: EDGES + 1}, r"must lie in \[0, author nodes=3\), got values from 1 to 3"),
        (SIZES, {WRITES: EDGES.float()}, "must be int32 or int64, got float32"),
        (SIZES, {CITES: CSRGraph.from_edge_index(EDGES, 4, torch.ones(4))}, "must be unweighted"),
    ],
)
def test_rejects(sizes, edges, message):
    with pytest.raises(ValueError, match=message):
        RelationalGraph.from_relations(sizes, edges)


@pytest.mark.parametrize(
    ("kinds", "rest", "message"),
    [
        (torch.zeros(3).long(), (4,), r"edge_type must be \[E=4\], got \[3\]"),
        (torch.full((4,), 7), (4, 3), r"edge_type must lie in \[0, R=3\), got values from 7 to 7"),
        (torch.zeros(4).long(), (2,), r"edge_index\[0\] must lie in \[0, num_nodes=2\)"),
        (torch.zeros(4), (4,), "edge_type must be int32 or int64"),
    ],
)
def test_rejects_edge_types(kinds, rest, message):
    with pytest.raises(ValueError, match=message):
        RelationalGraph.from_edge_type(EDGES, kinds, *rest)


def test_unknown_names():
    with pytest.raises(ValueError, match="node_type must be one of paper, author, got 'field'"):
        small().start("field")
    with pytest.raises(ValueError, match="relation must be one of"):
        small().relation(("paper", "writes", "author"))
    graph = relational_graph("bipartite")
    with pytest.raises(ValueError, match="one numbering of the nodes, got 17 sources and 6"):
        graph.with_reverse()
    assert graph.relation(("node", "0", "node")).shape == (6, 17)
