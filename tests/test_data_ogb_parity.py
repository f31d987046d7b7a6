"""The arrays and scores of the ``ogb`` package (extra "ogb"), on data in its layout."""

import warnings

import numpy as np
import ogb_layout
import pytest
import torch

from abkd_fast.data import read_ogb, read_ogb_typed
from abkd_fast.task import BINARY, MULTICLASS


@pytest.fixture(scope="module")
def ogb():
    """The package, with its deprecated imports and its version check silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("ogb", reason="the ogb package is not installed: extra 'ogb'")
        from ogb import graphproppred, nodeproppred

    class Both:
        node, graph = nodeproppred, graphproppred

    return Both


def quiet(make, *args, **kwargs):
    """Read with ogb for the first time: it parses, and so needs no torch.load.

    From torch 2.6 on ogb 1.3.6 cannot load the cache that it writes (weights_only); every test
    reads a fresh folder once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs, equal_nan=theirs.dtype.kind == "f")
    assert ours.dtype == theirs.dtype


def assert_same_split(ours, theirs):
    for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert_same(ours[part], theirs[name])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products"])
@pytest.mark.parametrize("form", ["csv", "npz", "zip"])
def test_one_graph(ogb, home, name, form):
    products = name == "ogbn-products"
    if products and form == "npz":
        pytest.skip("ogb itself adds no inverse edges to npz files")
    folder = home / name
    (ogb_layout.one_graph_npz if form == "npz" else ogb_layout.one_graph)(folder)
    facts = {"binary": str(form == "npz"), "add_inverse_edge": str(products)}
    if products:
        (folder / "split" / "time").rename(folder / "split" / "sales_ranking")
        facts["split"] = "sales_ranking"
    elif form != "npz":
        facts["additional node files"] = "node_year"
    meta = ogb_layout.meta(folder, **facts)
    theirs = quiet(ogb.node.NodePropPredDataset, name, meta_dict=meta)
    graph, label = theirs[0]
    if form == "zip":
        file = {"ogbn-arxiv": "arxiv", "ogbn-products": "products"}[name]
        ogb_layout.archive(folder, home / f"{file}.zip", file)
        folder.rename(home / "elsewhere")
        theirs.root = str(home / "elsewhere")
    ours = read_ogb(name, home)
    assert_same(ours.edge_index, graph["edge_index"])
    assert_same(ours.node_feat, graph["node_feat"])
    assert_same(ours.label, label)
    assert ours.num_nodes.tolist() == [graph["num_nodes"]]
    if not products:
        assert_same(ours.extra["node_year"], graph["node_year"])
    assert_same_split(ours.split, quiet(theirs.get_idx_split))


def test_molecules(ogb, home):
    folder = ogb_layout.molecules(home / "ogbg-molclintox")
    facts = {"add_inverse_edge": "True", "split": "scaffold", "has_edge_attr": "True"}
    facts |= {"task type": "binary classification", "num tasks": 2, "eval metric": "rocauc"}
    meta = ogb_layout.meta(folder, **facts)
    theirs = quiet(ogb.graph.GraphPropPredDataset, "ogbg-molclintox", meta_dict=meta)
    ours = read_ogb("ogbg-molclintox", home)
    graphs = list(ours.graphs())
    assert len(graphs) == len(theirs) == 9
    for i, mine in enumerate(graphs):
        graph, label = theirs[i]
        assert set(mine) == set(graph)
        for key in ("edge_index", "edge_feat", "node_feat"):
            assert_same(mine[key], graph[key])
        assert mine["num_nodes"] == graph["num_nodes"]
        assert_same(ours.label[i], label)
    assert_same_split(ours.split, quiet(theirs.get_idx_split))


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_typed(ogb, home, form):
    folder = home / "ogbn-mag"
    (ogb_layout.typed if form == "csv" else ogb_layout.typed_npz)(folder)
    facts = {"is hetero": "True", "binary": str(form == "npz")}
    if form == "csv":
        facts |= {"additional node files": "node_year", "additional edge files": "edge_reltype"}
    meta = ogb_layout.meta(folder, **facts)
    theirs = quiet(ogb.node.NodePropPredDataset, "ogbn-mag", meta_dict=meta)
    graph, labels = theirs[0]
    ours = read_ogb_typed("ogbn-mag", home)
    assert list(ours.edge_index) == list(graph["edge_index_dict"])
    assert ours.num_nodes == {k: int(np.sum(n)) for k, n in graph["num_nodes_dict"].items()}
    for triplet, edges in graph["edge_index_dict"].items():
        assert_same(ours.edge_index[triplet], edges)
        if form == "csv":
            reltype = graph["edge_reltype"][triplet]
            assert_same(ours.extra["edge_reltype", triplet], reltype)
    assert_same(ours.x["paper"], graph["node_feat_dict"]["paper"])
    assert_same(ours.y["paper"], labels["paper"])
    split = quiet(theirs.get_idx_split)
    assert_same_split(ours.split["paper"], {part: nodes["paper"] for part, nodes in split.items()})


def test_accuracy_is_their_evaluators(ogb):
    logits, y = torch.randn(50, 40), torch.randint(0, 40, (50,))
    evaluator = quiet(ogb.node.Evaluator, "ogbn-arxiv")
    theirs = evaluator.eval({"y_true": y[:, None], "y_pred": logits.argmax(1)[:, None]})["acc"]
    ours = MULTICLASS.scores(logits, y, torch.ones(50, dtype=torch.bool))["acc"]
    assert ours == pytest.approx(100 * theirs, abs=1e-9)


def test_roc_auc_is_their_evaluators(ogb):
    logits, y = torch.randn(60, 2), torch.randint(0, 2, (60, 2)).float()
    y[torch.rand(60, 2) < 0.2] = float("nan")
    evaluator = quiet(ogb.graph.Evaluator, "ogbg-molclintox")
    theirs = evaluator.eval({"y_true": y.double().numpy(), "y_pred": logits.double().numpy()})
    ours = BINARY.scores(logits, y, torch.ones(60, dtype=torch.bool))["roc_auc"]
    assert ours == pytest.approx(100 * theirs["rocauc"], abs=1e-9)
