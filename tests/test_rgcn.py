import pytest
import torch
from relational_cases import relational_graph
from torch_geometric import nn as pyg

from abkd_fast.metrics import count_parameters
from abkd_fast.nn import RGCN, RGCNConv

MAG = {"paper": 736_389, "author": 1_134_649, "field_of_study": 59_965, "institution": 8_740}


def pair(*arguments, **options):
    theirs = pyg.RGCNConv(*arguments, **options)
    ours = RGCNConv(*arguments, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    return ours, theirs


def assert_same_step(ours, theirs, graph, x):
    index, kinds = graph.homogeneous()
    found, expected = ours(x, graph), theirs(x, index, kinds)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    slope = torch.randn_like(expected)
    parts = x if isinstance(x, tuple) else (x,)
    inputs = [t for t in parts if t is not None and t.requires_grad]
    gradients = [
        torch.autograd.grad(out, [*inputs, *layer.parameters()], slope)
        for out, layer in ((found, ours), (expected, theirs))
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggr", ["mean", "add"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_bases": 3}, {"num_blocks": 2}, {"root_weight": False}, {"bias": False}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_pyg_layers_load_and_agree(options, aggr):
    graph = relational_graph("one-type")
    ours, theirs = pair(6, 4, 7, aggr=aggr, **options)
    assert_same_step(ours, theirs, graph, torch.randn(50, 6, requires_grad=True))


@pytest.mark.parametrize("options", [{}, {"num_bases": 3}], ids=["plain", "bases"])
def test_without_features(options):
    graph = relational_graph("one-type")
    ours, theirs = pair(50, 4, 7, **options)
    assert_same_step(ours, theirs, graph, None)


def test_sources_and_destinations_apart():
    graph = relational_graph("bipartite")
    ours, theirs = pair((6, 5), 4, 3)
    x = (torch.randn(17, 6, requires_grad=True), torch.randn(6, 5, requires_grad=True))
    assert_same_step(ours, theirs, graph, x)


def test_initialisation_is_pygs():
    torch.manual_seed(3)
    theirs = pyg.RGCNConv(6, 4, 7, num_bases=2)
    torch.manual_seed(3)
    ours = RGCNConv(6, 4, 7, num_bases=2)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.abs().max() <= b.abs().max() * 1.5 and (b.abs().sum() > 0) == (a.abs().sum() > 0)
    assert "6, 4, num_relations=7" in repr(ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggr": "max"}, "aggr must be one of mean, add, sum, got 'max'"),
        ({"flow": "target_to_source"}, "options of RGCNConv .* got flow"),
        ({"num_bases": 2, "num_blocks": 2}, "must not both be given"),
        ({"num_blocks": 4}, "num_blocks must divide in_channels=6 and out_channels=4, got 4"),
        ({"num_bases": 0}, "num_bases must be >= 1 or None, got 0"),
    ],
)
def test_unsupported_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        RGCNConv(6, 4, 3, **options)


def test_node_indices_are_refused():
    with pytest.raises(ValueError, match="x must hold float features or be None, got torch.int64"):
        RGCNConv(6, 4, 7)(torch.arange(50), relational_graph("one-type"))


@pytest.mark.parametrize(("layers", "hidden", "expected"), [(3, 512, 5_575_540), (2, 32, 169_428)])
def test_mag_models_have_the_papers_parameters(layers, hidden, expected):
    with torch.device("meta"):
        model = RGCN(
            128, hidden, layers, 349, MAG, num_relations=7, embedded=[*MAG][1:], dropout=0.5
        )
    embeddings = sum(p.numel() for p in model.embeddings.parameters())
    assert embeddings == 154_029_312
    assert count_parameters(model) - embeddings == expected


def assert_layer_by_layer(model, graph, x):
    """The model against PyG's layers, one a node type for the root and the bias."""
    index, kinds = graph.homogeneous()
    types = torch.arange(len(graph.num_nodes)).repeat_interleave(
        torch.tensor([*graph.num_nodes.values()])
    )
    h = x
    for layer, conv in enumerate(model.convs):
        width, width_out = conv.weight.shape[1:]
        theirs = pyg.RGCNConv(width, width_out, graph.num_relations, root_weight=False, bias=False)
        theirs.load_state_dict({"weight": conv.weight.detach()})
        out = theirs(h, index, kinds)
        out = out + torch.einsum("ni,nio->no", h, conv.root[types]) + conv.bias[types]
        h = out.relu() if layer + 1 < len(model.convs) else out
    torch.testing.assert_close(
        model(x[:13], graph, {"author": x[13:22]}), h[:13], rtol=1e-5, atol=1e-5
    )


def test_typed_model_is_pygs_layers_with_a_root_a_type():
    graph = relational_graph("types")
    model = RGCN(6, 8, 3, 5, graph.num_nodes, graph.num_relations, ["field", "empty"]).eval()
    for conv in model.convs:
        torch.nn.init.normal_(conv.bias)
    x = torch.cat([torch.randn(22, 6), model.embeddings["field"].detach()])
    assert_layer_by_layer(model, graph, x)


def test_model_refuses_what_does_not_fit():
    graph = relational_graph("types")
    with pytest.raises(ValueError, match="in_channels must be the number of nodes, of one type"):
        RGCN(6, 8, 2, 5, graph.num_nodes, 7, featureless=True)
    with pytest.raises(ValueError, match="embedded must be types of num_nodes, got venue"):
        RGCN(6, 8, 2, 5, graph.num_nodes, 7, ["venue"])
    model = RGCN(6, 8, 2, 5, graph.num_nodes, graph.num_relations, ["field", "empty"])
    with pytest.raises(ValueError, match="features must be given for author"):
        model(torch.randn(13, 6), graph)
    with pytest.raises(ValueError, match="relations must have"):
        model(torch.randn(13, 6), relational_graph("one-type"))
