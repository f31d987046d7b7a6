"""Entries of the benchmarks' registry: every op is there, ours is right, wrong samples are seen."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("torch_geometric")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from gpu_compare import BOUNDS  # noqa: E402
from registry.cases import OPS, Spec, grid  # noqa: E402
from registry.sampling import wrong_share  # noqa: E402

from abkd_fast import ops  # noqa: E402
from abkd_fast.testing import random_graph  # noqa: E402

ONLY_TORCH_SPARSE = ("neighborhood", "sample_neighbors")  # has what these are compared with
NAMES = {"gat": "edge_attention", "gatv2": "edge_attention_v2", "segment": "segment_csr"}


def test_every_op_has_an_entry():
    first = {name.split("+")[0].split(" ")[0] for name in OPS}
    assert {*ops.OPS} <= {NAMES.get(name, name) for name in first}


def test_grid_has_only_graphs_that_an_op_knows():
    assert {spec.graph for spec in grid(True)} == {"pubmed", "acm-hetero"}
    named = [spec for spec in grid(False, ["acm-hetero", "ogbn-arxiv"])]
    graphs = {spec.op: spec.graph for spec in named}
    assert graphs["relational+gradient"] == "acm-hetero" and graphs["spmm"] == "ogbn-arxiv"
    assert {spec.op for spec in named} == {*OPS}


@pytest.mark.parametrize("name", OPS)
def test_ours_is_right_in_every_case(name):
    dtype = torch.float32
    case = Spec(name, "tiny", OPS[name].quick[0], "float32").make()
    found = case.sides["abkd_fast"]()()
    assert case.truth(found) <= BOUNDS[dtype]
    assert case.cost.moved > 0
    assert "synthetic" in Spec(name, "tiny", 1, "float32").label()
    peers = [side for side in case.sides if not side.startswith("abkd_fast")]
    assert peers or (name in ONLY_TORCH_SPARSE and find_spec("torch_sparse") is None)


def test_time_of_neighborhood_has_the_positions_that_it_sets_up():
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            names.append(function.__name__)
            return function(*arguments, **(options or {}))

    names = []
    step = Spec("neighborhood", "tiny", 1, "float32").make().sides["abkd_fast"]()
    with Calls():
        step()
    assert "full_like.default" in names


def sample(graph, nodes, limit):
    drawn = ops.sample_neighbors(graph, nodes, [limit, limit])
    target = torch.arange(len(drawn.n_id)).repeat_interleave(drawn.graph.rowptr.diff())
    return [drawn.n_id, target, drawn.graph.col.long()]


def test_wrong_samples_are_seen():
    graph, nodes = random_graph(60, mean_degree=7, seed=3), torch.arange(20)
    right = sample(graph, nodes, 3)
    assert wrong_share(graph, nodes, 3, right) == 0
    assert wrong_share(graph, nodes, 4, right) > 0, "a row has fewer edges than the limit allows"
    assert wrong_share(graph, nodes.flip(0), 3, right) == 1
    node, target, source = right
    moved = [node, target, (source + 1) % len(node)]
    assert wrong_share(graph, nodes, 3, moved) > 0, "edges that the graph does not have"
