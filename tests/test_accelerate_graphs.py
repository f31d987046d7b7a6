"""The graphs that accelerated layers keep: found again, changed, given up."""

import pytest
import torch
from pyg_cases import N, edge_index, edge_weight, matrix

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")

from abkd_fast import CSRGraph, _pyg_graphs, accelerate, decelerate  # noqa: E402
from abkd_fast._pyg_features import sparse_form  # noqa: E402
from abkd_fast._pyg_graphs import KEPT, Kept, adjacency, normalised  # noqa: E402

RULES = (False, True, "source_to_target", torch.float32)


@pytest.fixture(autouse=True)
def empty():
    KEPT._found.clear()


@pytest.fixture
def sorts(monkeypatch):
    """How often edges were sorted."""
    found = []
    sort = _pyg_graphs._sort

    def counted(*args):
        found.append(args)
        return sort(*args)

    monkeypatch.setattr(_pyg_graphs, "_sort", counted)
    return found


def assert_current(model, x, *edges):
    """The accelerated layer sees the edges as they are now."""
    out = model(x, *edges)
    torch.testing.assert_close(out, decelerate(model)(x, *edges))
    accelerate(model)


def test_all_layers_share_one_graph_from_step_to_step(sorts):
    model, edges = accelerate(pyg.GCN(6, 8, num_layers=4)), edge_index()
    for _ in range(3):
        model(torch.randn(N, 6), edges).sum().backward()
    assert len(sorts) == 1 and len(KEPT) == 1


def test_weights_in_training_do_not_sort_the_edges_again(sorts):
    model, edges = accelerate(pyg.GCNConv(6, 8)), edge_index()
    weight = torch.nn.Parameter(edge_weight(edges))
    for _ in range(3):
        model(torch.randn(N, 6), edges, weight).sum().backward()
        with torch.no_grad():
            weight.add_(0.1)
    assert len(sorts) == 1


@pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR:UserWarning")
@pytest.mark.parametrize("layout", ["edge_index", "csr", "coo", "torch_sparse"])
@pytest.mark.parametrize("options", [{}, {"normalize": False}], ids=str)
def test_changes_in_place_are_noticed(layout, options):
    model, x = accelerate(pyg.GCNConv(6, 3, **options)), torch.randn(N, 6)
    edges = edge_index().unique(dim=1)
    weight = edge_weight(edges)
    if layout == "edge_index":
        assert_current(model, x, edges, weight)
        weight.mul_(torch.rand_like(weight))
        assert_current(model, x, edges, weight)
        edges[0, 0] = N - 1
        assert_current(model, x, edges, weight)
        edges.data = edge_index("self loops")
        weight.data = edge_weight(edges)
        assert_current(model, x, edges, weight)
        return
    adjacency = matrix(layout, edges, weight)
    value = adjacency.storage.value() if layout == "torch_sparse" else adjacency.values()
    with torch.sparse.check_sparse_tensor_invariants():  # torch_sparse does not say
        assert_current(model, x, adjacency)
        value.mul_(torch.rand_like(value))
        assert_current(model, x, adjacency)


def test_an_index_with_the_same_memory_is_another_graph():
    """Python and the allocator hand the same places out again."""
    model, x = accelerate(pyg.GCNConv(6, 3)), torch.randn(N, 6)
    for seed in range(20):
        torch.manual_seed(seed)
        assert_current(model, x, torch.randint(N, (2, 30)))


def test_other_sizes_rules_and_dtypes_of_the_same_edges_are_other_graphs():
    edges = edge_index()
    graphs = [
        normalised(edges, N, None, *RULES),
        normalised(edges, N + 1, None, *RULES),
        normalised(edges, N, None, False, False, *RULES[2:]),
        normalised(edges, N, None, *RULES[:3], torch.float64),
        normalised(edges, N, None, False, True, "target_to_source", torch.float32),
        adjacency(edges, (N, N)),
        adjacency(edges, (N, N + 2)),
        adjacency(edges, (N, N), edge_weight(edges)),
    ]
    assert len({id(graph) for graph in graphs}) == len(graphs)
    assert normalised(edges, N, None, *RULES) is graphs[0]


def test_nothing_is_kept_longer_than_its_edges():
    for layout in ("csr graph", "csr", "coo"):
        edges = matrix(layout, edge_index())
        normalised(edges, N, None, *RULES)
        adjacency(edges, (N, N))
        assert len(KEPT) or layout == "csr graph"
        del edges
        assert len(KEPT) == 0
    edges, weight = edge_index(), edge_weight(edge_index())
    normalised(edges, N, weight, *RULES)
    adjacency(edges, (N, N), weight)
    assert len(KEPT) == 3
    del weight
    assert len(KEPT) == 1
    del edges
    assert len(KEPT) == 0


def test_the_number_of_graphs_is_bounded_and_the_oldest_goes_first():
    kept, sources, made = Kept(3), [torch.zeros(1) for _ in range(4)], []

    def get(i):
        kept.get((sources[i],), (), lambda: made.append(i))

    for i in (0, 1, 2, 0, 3, 0, 1):
        get(i)
    assert len(kept) == 3
    assert made == [0, 1, 2, 3, 1]


def test_graphs_made_in_inference_mode_serve_training():
    model, x, edges = accelerate(pyg.GCN(6, 8, num_layers=2)), torch.randn(N, 6), edge_index()
    with torch.inference_mode():
        model(x, edges)
    model(x, edges).sum().backward()
    with torch.inference_mode():
        made_here = edges.clone()
        first = model(x, made_here)
        made_here[0, :5] = 0  # inference tensors do not count their changes
        assert not torch.equal(model(x, made_here), first)


def test_a_graph_of_ours_is_taken_as_it_is():
    graph = CSRGraph.from_edge_index(edge_index(), N)
    assert adjacency(graph, (N, N)) is graph
    conv = accelerate(pyg.SAGEConv(6, 3))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="takes a CSRGraph only where our ops serve it, and auto"),
    ):
        conv(torch.randn(N, 6), graph)


def test_edges_outside_the_graph_are_named():
    conv = accelerate(pyg.GCNConv(6, 3))
    with pytest.raises(ValueError, match=r"edge_index must lie in \[0, num_nodes=5\)"):
        conv(torch.randn(5, 6), torch.tensor([[0, 7], [1, 2]]))


@pytest.mark.parametrize("make", [pyg.GCNConv, pyg.SAGEConv, pyg.GraphSAGE])
@pytest.mark.parametrize("density", [0.05, 0.5, "nan"])
def test_features_that_stay_are_kept_sparse(make, density):
    """From the second call on, where they are mostly zeros and finite."""
    nodes, width = 300, 400
    kept = torch.rand(nodes, width) < (0.05 if density == "nan" else density)
    x = torch.rand(nodes, width, dtype=torch.float64) * kept
    edges = torch.randint(nodes, (2, 900))
    if density == "nan":
        x[3, 4] = torch.nan
    model = make(width, 8, **({"num_layers": 2} if make is pyg.GraphSAGE else {})).double()
    expected = model(x, edges)
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    wanted = torch.autograd.grad((expected.nan_to_num() * weight).sum(), [*model.parameters()])
    accelerate(model)
    for call in range(3):
        out = model(x, edges)
        found = torch.autograd.grad((out.nan_to_num() * weight).sum(), [*model.parameters()])
        for a, b in zip([out, *found], [expected, *wanted], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)
        form = sparse_form(x)
        assert isinstance(form, CSRGraph) == (density == 0.05)
        if call == 0:
            assert sparse_form(x.clone()) is not form
    x[0, :5] = 2.0
    torch.testing.assert_close(model(x, edges), decelerate(model)(x, edges), equal_nan=True)


def test_features_made_anew_or_with_gradients_stay_dense():
    x = torch.zeros(300, 400)
    for features in (x, x.clone(), x.clone().requires_grad_(), x[:20], x + 0):
        assert sparse_form(features) is features
    assert sparse_form(x) is not x
