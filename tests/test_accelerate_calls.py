"""Accelerated layers: calls that run PyG's code, hooks, explanations."""

import pytest
import torch
from pyg_cases import N, assert_parity, edge_weight
from pyg_models import EDGES, features
from torch import nn

from abkd_fast import accelerate, decelerate

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")


def test_hooks_and_parametrisations_of_the_inner_linear_are_honoured():
    x = features()
    conv = pyg.GCNConv(6, 3)
    nn.utils.parametrizations.weight_norm(conv.lin)
    assert_parity(conv, x, EDGES)
    for model, lin in ((pyg.GCNConv(6, 3), "lin"), (pyg.SAGEConv(6, 3), "lin_l")):
        getattr(model, lin).register_forward_hook(lambda module, args, out: 2 * out)
        assert_parity(model, x, EDGES)
    conv = pyg.SAGEConv(6, 3, bias=False)
    conv.lin_r = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
    assert_parity(conv, x, EDGES)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda conv, x: conv(x.expand(2, N, 6), EDGES), r"x is not a dense tensor \[N, F\]"),
        (lambda conv, x: conv(x, EDGES, edge_weight(EDGES, torch.float64)), "edge_weight is torch"),
        (lambda conv, x: conv(x, EDGES.to(torch.int16)), r"edge_index is torch.int16 \[2, \d+\]"),
    ],
    ids=["3-d", "weights in float64", "int16"],
)
def test_calls_that_we_cannot_serve_run_pygs_code_and_say_so(call, why):
    conv, x = pyg.GCNConv(6, 3), features()
    try:
        expected = call(conv, x)
    except (IndexError, RuntimeError) as error:
        with (
            pytest.warns(UserWarning, match=f"PyG's own GCNConv serves a call: {why}"),
            pytest.raises(type(error)),
        ):
            call(accelerate(conv), x)
        return
    with pytest.warns(UserWarning, match=f"PyG's own GCNConv serves a call: {why}"):
        out = call(accelerate(conv), x)
    assert torch.equal(out, expected)


def test_autocast_runs_pygs_code():
    conv, x = pyg.SAGEConv(6, 3), features()
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x, EDGES)
        with pytest.warns(UserWarning, match="autocast is on"):
            out = accelerate(conv)(x, EDGES)
    assert torch.equal(out, expected) and out.dtype == expected.dtype


def test_explanations_see_single_messages():
    from torch_geometric.explain import Explainer, GNNExplainer

    model = pyg.GCN(6, 8, num_layers=2, out_channels=3)
    config = dict(mode="multiclass_classification", task_level="node", return_type="raw")
    masks = []
    for change in (decelerate, accelerate):
        torch.manual_seed(0)
        explainer = Explainer(
            change(model),
            GNNExplainer(epochs=3),
            explanation_type="model",
            edge_mask_type="object",
            model_config=config,
        )
        if change is accelerate:
            with pytest.warns(UserWarning, match="explain mode is on"):
                masks.append(explainer(features().detach(), EDGES, index=1).edge_mask)
        else:
            masks.append(explainer(features().detach(), EDGES, index=1).edge_mask)
    torch.testing.assert_close(*masks)
