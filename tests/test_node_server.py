"""NodeServer: scores of single nodes equal the full pass's, from the neighbourhood alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from abkd_fast import CSRGraph, _neighborhood, data, latency, ops
from abkd_fast.data import GraphData
from abkd_fast.nn import GAT, GCN, GCNII, MLP, GCNConv, GraphSAGE, SAGEConv

MODELS = {
    "gcn": lambda f, c: GCN(f, 8, 2, c),
    "gcn deep, batch norm": lambda f, c: GCN(f, 8, 3, c, norm="batch_norm"),
    "gcnii": lambda f, c: GCNII(f, 8, 4, c),
    "gcnii, one layer": lambda f, c: GCNII(f, 8, 1, c),
    "gcnii, shared": lambda f, c: GCNII(f, 8, 3, c, shared=True),
    "sage": lambda f, c: GraphSAGE(f, 8, 2, c),
    "sage sum": lambda f, c: GraphSAGE(f, 8, 2, c, aggr="sum"),
    "sage max": lambda f, c: GraphSAGE(f, 8, 2, c, aggr="max"),
    "gat": lambda f, c: GAT(f, 8, 2, c, heads=2),
    "mlp": lambda f, c: MLP(f, 8, 2, c),
}
FORMS = {("sage max", False): "flat, all rows", ("sage max", True): "model"}


def hub_data(sparse: bool, weighted: bool = False, seed: int = 0) -> GraphData:
    """80 nodes: a hub, an isolated one, loops, duplicates; edges only one way."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, 70, (2, 150), generator=generator)
    hub = torch.stack([torch.arange(60), torch.full((60,), 3)])
    edge_index = torch.cat([edges, hub, edges[:, :5], torch.tensor([[9], [9]])], 1)
    weight = torch.rand(edge_index.size(1), generator=generator) + 0.1 if weighted else None
    x = torch.randn(80, 12, generator=generator).double()
    x = x * (torch.rand(80, 12, generator=generator) < 0.3)
    graph = CSRGraph.from_edge_index(edge_index, 80, None if weight is None else weight.double())
    masks = [torch.arange(80) % 3 == i for i in range(3)]
    features = CSRGraph.from_torch(x.to_sparse_csr()) if sparse else x
    return GraphData(features, graph, torch.arange(80) % 4, *masks)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_full_pass(name, sparse):
    graph = hub_data(sparse, weighted=name in ("gcn", "sage sum"))
    torch.manual_seed(1)
    model = MODELS[name](12, 4).double().eval()
    with torch.no_grad():
        expected = model(graph.x, graph.graph)
    for flat in (True, False):
        server = latency.NodeServer(model, graph, flat=flat)
        fastest = "model" if name == "gat" else FORMS.get((name, sparse), "flat")
        assert server.form == (fastest if flat else "model"), server.why
        every = torch.cat([server(torch.tensor([node])) for node in range(80)])
        torch.testing.assert_close(every, expected, rtol=1e-12, atol=1e-12)
        batch = torch.tensor([79, 3, 0, 41])
        torch.testing.assert_close(server(batch), expected[batch], rtol=1e-12, atol=1e-12)
        assert torch.equal(server(batch), server(batch))


def test_many_sparse_rows():
    """Their gather is another one than that of a few rows."""
    source = torch.arange(600)
    edge_index = torch.stack([source, (source * 7 + 1) % 600])
    x = torch.randn(600, 9) * (torch.rand(600, 9) < 0.4)
    masks = [source % 3 == i for i in range(3)]
    features = CSRGraph.from_torch(x.to_sparse_csr())
    graph = GraphData(features, CSRGraph.from_edge_index(edge_index, 600), source % 4, *masks)
    model = GCNII(9, 8, 3, 4).eval()
    server = latency.NodeServer(model, graph)
    with torch.no_grad():
        expected = model(graph.x, graph.graph)
    for count in (20, 100, 400):
        nodes = torch.randperm(600)[:count]
        assert server.form == "flat"
        torch.testing.assert_close(server(nodes), expected[nodes])


def test_first_hop_is_read_not_computed():
    graph = hub_data(sparse=False)
    model = GCN(12, 8, 2, 4).double().eval()
    with torch.no_grad():
        expected = model(graph.x, graph.graph)
    server = latency.NodeServer(model, graph, first_hop=True)
    assert server.hops == 1 and server.form == "flat"
    every = torch.cat([server(torch.tensor([node])) for node in range(80)])
    torch.testing.assert_close(every, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="first_hop needs a GCN"):
        latency.NodeServer(GCNII(12, 4, 2, 4).double(), graph, first_hop=True)


@pytest.mark.parametrize("first_hop", [False, True])
def test_wide_layers(first_hop):
    """Their products are torch's, into memory of a size that the example must not decide."""
    graph = hub_data(sparse=False)
    model = GCN(12, 1024, 2, 4).double().eval()
    with torch.no_grad():
        expected = model(graph.x, graph.graph)
    server = latency.NodeServer(model, graph, first_hop=first_hop)
    assert server.form == "flat", server.why
    for nodes in (torch.arange(80), torch.arange(70, 80), torch.tensor([3])):
        torch.testing.assert_close(server(nodes), expected[nodes], rtol=1e-12, atol=1e-12)


def test_neighbourhood_is_the_rows_within_the_hops():
    graph = hub_data(sparse=False)
    server = latency.NodeServer(GCNII(12, 4, 2, 4).double(), graph)
    dense = graph.graph.gcn_norm().to_dense()
    within = {5}
    for _ in range(2):
        within |= {int(j) for i in within for j in dense[i].nonzero().flatten()}
    n_id, part = server.neighbourhood(torch.tensor([5]))
    assert set(n_id.tolist()) == within and n_id[0] == 5
    inner = int((part.rowptr.diff() > 0).sum())
    rows = n_id[:inner, None]
    assert torch.equal(part.to_dense()[:inner], dense[rows, n_id[None]])


def test_a_query_reads_the_neighbourhood_only():
    """What is not in it may be anything: not even a NaN gets into the scores."""
    graph = hub_data(sparse=False)
    model = GCN(12, 8, 2, 4).double().eval()
    server = latency.NodeServer(model, graph)
    nodes = torch.tensor([5])
    expected = server(nodes)
    n_id, _ = server.neighbourhood(nodes)
    others = torch.ones(80, dtype=torch.bool)
    others[n_id] = False
    assert others.sum() > 10
    graph.x[others] = float("nan")
    pointers = graph.graph.gcn_norm().rowptr
    outside = others.nonzero().flatten()
    kept = pointers.clone()
    inner = outside[(outside > 0) & (outside < 79)]  # every op checks where pointers begin
    pointers[inner] = -(10**6)  # a read of such a row would be out of bounds
    around = torch.cat([n_id, n_id + 1])
    pointers[around] = kept[around]
    assert torch.equal(server(nodes), expected)


def test_several_clients_at_once():
    graph = hub_data(sparse=True)
    server = latency.NodeServer(GCNII(12, 8, 3, 4).double(), graph)
    nodes = [torch.tensor([node]) for node in range(80)]
    expected = [server(node) for node in nodes]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for scores, want in zip(pool.map(server, nodes), expected, strict=True):
                assert torch.equal(scores, want)


def test_real_graph_in_float32():
    digits = data.load("digits")
    torch.manual_seed(0)
    model = GCNII(64, 4, 4, 10).eval()
    server = latency.NodeServer(model, digits)
    with torch.no_grad():
        expected = model(digits.x, digits.graph)
    nodes = torch.randperm(digits.num_nodes)[:50]
    torch.testing.assert_close(server(nodes), expected[nodes])


class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = GCNConv(12, 4), SAGEConv(4, 4)

    def forward(self, x, graph):
        return self.b(self.a(x, graph), graph)


class Twice(torch.nn.Module):
    """One layer called twice: two hops, which its modules do not show."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(12, 12)

    def forward(self, x, graph):
        return self.conv(self.conv(x, graph).relu(), graph)


class Outside(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 4)

    def forward(self, x, graph):
        return ops.spmm(graph, self.linear(x))


@pytest.mark.parametrize("model", [Twice, Outside])
def test_models_that_read_further_than_their_layers_are_refused(model):
    with pytest.raises(ValueError, match="model must score nodes by what lies within [01] hops"):
        latency.NodeServer(model().double(), hub_data(sparse=False))


class Turned(torch.nn.Module):
    """The graph first, and an option."""

    def __init__(self):
        super().__init__()
        self.model = GCN(12, 8, 2, 4)

    def forward(self, edge_index, x, scale=2.0):
        return scale * self.model(x, edge_index)


class Pair(torch.nn.Module):
    def forward(self, x):
        return x, x


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(0)


def test_arguments_are_found_by_name():
    graph, model = hub_data(sparse=False), Turned().double().eval()
    server = latency.NodeServer(model, graph)
    with torch.no_grad():
        expected = model(graph.graph, graph.x)
    nodes = torch.tensor([3, 60])
    torch.testing.assert_close(server(nodes), expected[nodes])


@pytest.mark.parametrize("model", [Pair, Mean])
def test_what_returns_no_row_a_node_is_refused(model):
    with pytest.raises(ValueError, match=r"model must return scores \[1, C\] of 1 nodes, got"):
        latency.NodeServer(model(), hub_data(sparse=False))


def test_a_model_that_fails_is_refused_with_its_error():
    wide = GCN(13, 8, 2, 4).double()
    with pytest.raises(ValueError, match="model must run on the features and the graph of a nei"):
        latency.NodeServer(wide, hub_data(sparse=False))


def test_rejects():
    graph = hub_data(sparse=False)
    with pytest.raises(ValueError, match="layers that read the same matrix, got gcn_norm, mean"):
        latency.NodeServer(Mixed().double(), graph)
    server = latency.NodeServer(GCN(12, 4, 2, 4).double(), graph)
    with pytest.raises(ValueError, match="nodes must be int64"):
        server(torch.tensor([1], dtype=torch.int32))
    for bad in (torch.tensor([80]), torch.tensor([-1]), torch.tensor([2, 2])):
        with pytest.raises(RuntimeError, match="nodes must"):
            server(bad)


def test_threads_share_work_tensors(monkeypatch):
    """A search a time needs one tensor of the graph's size, whatever thread asks."""
    made, real = [], _neighborhood.unvisited
    monkeypatch.setattr(_neighborhood, "unvisited", lambda graph: made.append(1) or real(graph))
    serve = latency.NodeServer(GCN(12, 4, 2, 4).double().eval(), hub_data(sparse=False))
    expected = serve(torch.tensor([3]))
    for _ in range(5):
        with ThreadPoolExecutor(1) as thread:
            assert torch.equal(thread.submit(serve, torch.tensor([3])).result(), expected)
    with pytest.raises(RuntimeError):
        serve(torch.tensor([3, 3]))
    assert torch.equal(serve(torch.tensor([3])), expected)
    assert len(made) == 1


@pytest.mark.parametrize("name", ["gat", "sage, normalized"])
def test_neighbourhoods_of_one_size_do_not_stand_for_all(name):
    """Cliques of four: any node has three neighbours, two nodes have three or six."""
    clique = torch.combinations(torch.arange(4)).t()
    edges = torch.cat([clique + 4 * k for k in range(6)], 1)
    graph = CSRGraph.from_edge_index(torch.cat([edges, edges.flip(0)], 1), 24)
    torch.manual_seed(0)
    x, masks = torch.randn(24, 8), [torch.arange(24) % 3 == i for i in range(3)]
    nodes_data = GraphData(x, graph, torch.arange(24) % 3, *masks)
    build = GAT if name == "gat" else GraphSAGE
    model = build(8, 4, 2, 3, **({} if name == "gat" else {"normalize": True})).eval()
    server = latency.NodeServer(model, nodes_data)
    with torch.no_grad():
        expected = model(nodes_data.x, nodes_data.graph)
    for nodes in ([0], [0, 5], [1, 9, 22], list(range(24))):
        torch.testing.assert_close(server(torch.tensor(nodes)), expected[nodes])
