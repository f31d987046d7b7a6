"""Exported students give the checkpoint's scores, on graphs of any size, and say what they take."""

import json
from dataclasses import replace

import pytest
import torch
from export_cases import MODELS, assert_serves, build
from helpers import small_data
from study_files import write_data

import abkd_fast
from abkd_fast import CSRGraph, save_model
from abkd_fast.cli import main
from abkd_fast.data import GraphData
from abkd_fast.export import ExportedServer, export_student, load_export
from abkd_fast.export.program import Program
from abkd_fast.export.weights import pack
from abkd_fast.model_file import ModelFile
from abkd_fast.nn import GCN, GraphSAGE
from abkd_fast.testing import random_graph

# torch itself uses what it deprecates, when it reads programs too.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_torch_export(name, sparse, tmp_path):
    model = build(name)
    exported = export_student(model, small_data(sparse=sparse), tmp_path / "s.pt2")
    assert exported.about["max_difference"] < 1e-5 and exported.about["same_argmax"] == 1.0
    metrics = exported.about["metrics"]
    assert metrics["program"] == metrics["checkpoint"]
    assert_serves(exported, model, sparse)


def test_our_ops_are_in_the_graph(tmp_path):
    export_student(build("gcn"), small_data(), tmp_path / "s.pt2")
    program = torch.export.load(tmp_path / "s.pt2")
    assert program.example_inputs is None  # the data it was traced with
    nodes = program.graph.nodes
    ours = [node for node in nodes if node.target is torch.ops.abkd_fast.conv.default]
    assert len(ours) == 3


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_weights_are_stored_as_layers_read_them(weights, tmp_path):
    """Sparse features take W^T: no program transposes it at a call."""
    model, data = build("gcn"), small_data(sparse=True)
    exported = export_student(model, data, tmp_path / "s.pt2", weights=weights)
    program = torch.export.load(tmp_path / "s.pt2")
    called = {node.target for node in program.graph.nodes}
    assert torch.ops.abkd_fast.transposed.default not in called
    kept = {tuple(value.shape): value.dtype for value in program.state_dict.values()}
    assert kept[8, 4] == (torch.float32 if weights is None else getattr(torch, weights))
    whole = Program(model, data, weights=weights)
    arguments = whole.signature.arguments(data)
    assert torch.equal(exported.predict(data), whole(*arguments))


@pytest.mark.parametrize(("name", "sparse"), [("gcn", True), ("gcnii", False), ("sage", False)])
def test_onnx_has_standard_ops_alone(name, sparse, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = build(name)
    exported = export_student(model, small_data(sparse=sparse), tmp_path / "s.onnx", format="onnx")
    assert exported.about["max_difference"] < 1e-5
    written = onnx.load(tmp_path / "s.onnx")
    onnx.checker.check_model(written)
    assert {node.domain for node in written.graph.node} == {""} and not written.functions
    assert [part.name for part in written.graph.input] == list(exported.signature.inputs)
    assert_serves(exported, model, sparse)


def test_onnx_keeps_int8(tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    model, data = build("mlp"), small_data()
    exported = export_student(model, data, tmp_path / "s.onnx", format="onnx", weights="int8")
    program = Program(model, data, weights="int8")
    torch.testing.assert_close(exported.predict(data), program(data.x))
    written = pytest.importorskip("onnx").load(tmp_path / "s.onnx").graph
    kept = {part.data_type for part in written.initializer if len(part.dims) == 2}
    assert kept == {3, 1}  # INT8, and FLOAT for the scales


def test_onnx_refuses_ops_by_name(tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    with pytest.raises(ValueError, match="spmm_extremum"):
        export_student(build("sage max"), small_data(), tmp_path / "s.onnx", format="onnx")


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_narrow_weights(weights, bound, tmp_path):
    model, data = build("gcnii"), small_data()
    exported = export_student(model, data, tmp_path / "s.pt2", weights=weights)
    program = Program(model, data, weights=weights)
    for name, number in program.packed.items():
        weight = model.get_parameter(name)
        stored = program.get_buffer(f"packed_{number}")
        assert stored.dtype == getattr(torch, weights)
        assert not program.model.get_parameter(name).numel()
        error = stored.float() * program.get_buffer(f"scale_{number}") - weight
        assert bool((error.abs() <= bound * weight.abs().amax(1, keepdim=True) * 1.001).all())
    assert len(program.packed) == 3
    torch.testing.assert_close(exported.predict(data), program(*program.signature.arguments(data)))
    assert 0 < exported.about["max_difference"] < 0.2
    assert set(exported.about["metrics"]["program"]) == {"train", "val", "test"}


def test_a_row_of_zeros_packs_to_zeros():
    lin = torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.zeros_(lin.weight)
    holder = torch.nn.Module()
    assert pack(holder, lin, "int8") == {"weight": "0"}
    assert torch.equal(holder.packed_0 * holder.scale_0, torch.zeros(2, 3))


def test_graph_baked_in(tmp_path):
    model, data = build("gcn"), small_data()
    exported = export_student(model, data, tmp_path / "s.pt2", bake_graph=True)
    assert exported.signature.inputs == ("x",)
    with torch.no_grad():
        torch.testing.assert_close(exported(data.x * 2), model(data.x * 2, data.graph))
    with pytest.raises(ValueError, match="x must have 60 rows, the nodes of the graph in the prog"):
        exported(data.x[:-1])
    with pytest.raises(ValueError, match="must take the graph as input"):
        ExportedServer(exported, data)


def test_first_hop_saves_one(tmp_path):
    model, data = build("gcn"), small_data()
    exported = export_student(model, data, tmp_path / "s.pt2", first_hop=True)
    assert exported.signature.hops == 2
    assert_serves(exported, model)
    with pytest.raises(ValueError, match="first_hop needs a GCN"):
        export_student(build("gcnii"), data, tmp_path / "t.pt2", first_hop=True)


def test_an_explicit_first_hop_is_not_weighed_against_training(tmp_path):
    torch.manual_seed(0)
    bag = random_graph(60, 500, mean_degree=20, dtype=torch.float32)
    model, data = GCN(500, 4, 2, 3).eval(), replace(small_data(), x=bag)
    assert data.aggregated_x is None
    exported = export_student(model, data, tmp_path / "s.pt2", first_hop=True)
    assert exported.signature.hops == 1 and exported.signature.sparse
    with torch.no_grad():
        expected = model(bag, data.graph)
    torch.testing.assert_close(ExportedServer(exported, data)(torch.arange(60)), expected)
    with pytest.raises(
        ValueError, match="first_hop needs a GCN, .* got GraphSAGE; leave first_hop"
    ):
        export_student(GraphSAGE(500, 4, 2, 3), data, tmp_path / "t.pt2", first_hop=True)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_without_normalisation(weights, tmp_path):
    torch.manual_seed(0)
    model, data = GCN(8, 4, 2, 3, normalize=False).eval(), small_data()
    exported = export_student(model, data, tmp_path / "s.pt2", weights=weights)
    with torch.no_grad():
        expected = model(data.x, data.graph)
    assert exported.about["max_difference"] == float(
        (exported.predict(data) - expected).abs().max()
    )
    assert exported.about["max_difference"] < (1e-5 if weights is None else 0.5)
    with pytest.raises(ValueError, match="needs a GCN with normalize=True, .* normalize=False"):
        export_student(model, data, tmp_path / "t.pt2", first_hop=True)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", ["sage", "sage max"])
def test_a_graph_without_edges_traces(name, sparse, tmp_path):
    data = small_data(sparse=sparse)
    none = CSRGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), data.num_nodes)
    model = build(name)
    exported = export_student(model, replace(data, graph=none), tmp_path / "s.pt2")
    assert_serves(exported, model, sparse)
    path = tmp_path / "baked.pt2"
    exported = export_student(model, replace(data, graph=none), path, bake_graph=True)
    assert exported.signature.num_nodes == 60


def test_three_nodes_trace(tmp_path):
    x = torch.eye(3, 8)
    graph = CSRGraph.from_edge_index(torch.tensor([[0], [1]]), 3)
    masks = [torch.arange(3) == i for i in range(3)]
    for features in (x, CSRGraph.from_torch(x.to_sparse_csr())):
        sparse = isinstance(features, CSRGraph)
        data = GraphData(features, graph, torch.arange(3), *masks)
        for name in ("gcnii", "sage"):
            model = build(name)
            assert_serves(export_student(model, data, tmp_path / "s.pt2"), model, sparse)


def test_decisions_of_other_tasks(tmp_path):
    """Scores of one column have the same largest one whatever they are: their signs count."""
    torch.manual_seed(0)
    data = small_data()
    odd = replace(data, y=(data.y[:, None] % 2).float(), task="binary")
    model = GraphSAGE(8, 4, 2, 1).eval()
    exported = export_student(model, odd, tmp_path / "s.pt2", weights="int8")
    with torch.no_grad():
        expected = model(odd.x, odd.graph) > 0
    scores = exported.predict(odd)
    share = float(((scores > 0) == expected).double().mean())
    assert exported.about["same_sign"] == share and "same_argmax" not in exported.about
    assert exported.about["task"] == "binary"
    rows = torch.tensor([[1.0], [-1.0]])
    assert load_export(tmp_path / "s.pt2").classes(rows) == [[0], []]


def test_command(tmp_path, capsys):
    digits = abkd_fast.data.load("digits")
    about = ModelFile("mlp-2x4", 64, 10, {}, "digits", digits.fingerprint())
    save_model(tmp_path / "student.safetensors", about.build(), about)
    main(["export", str(tmp_path), "--weights", "int8"])
    shown = capsys.readouterr().out
    assert "inputs: x float32" in shown and "int8" in shown and "test acc (%)" in shown
    said = json.loads((tmp_path / "student.pt2.json").read_text())
    assert said["dataset"] == "digits" and said["signature"]["inputs"] == ["x"]
    accuracies = [said["metrics"][who]["test"]["acc"] for who in ("checkpoint", "program")]
    for accuracy in accuracies:
        assert f"{accuracy:.2f}" in shown
    assert load_export(tmp_path / "student.pt2").predict(digits).shape == (digits.num_nodes, 10)


def test_command_on_own_data(tmp_path, capsys):
    """Files are read as they were for training; other data are allowed, and said to be other."""
    write_data(tmp_path)
    file = str(tmp_path / "tiny.npz")
    trained = abkd_fast.data.load_path(file, undirected=True)
    about = ModelFile("gcn-2x4", 3, 3, {}, "tiny", trained.fingerprint())
    model = about.build().eval()
    save_model(tmp_path / "student.safetensors", model, about)
    main(["export", str(tmp_path), "--data", file, "--read.undirected", "True", "--bake-graph"])
    assert "other data" not in capsys.readouterr().err
    with torch.no_grad():
        scores = load_export(tmp_path / "student.pt2")(trained.x)
        torch.testing.assert_close(scores, model(trained.x, trained.graph))
    main(["export", str(tmp_path), "--data", file])
    assert "the student was trained on other data than tiny" in capsys.readouterr().err
    main(["export", str(tmp_path), "--data", file, "--read.undirected", "True", "--first-hop"])
    said = json.loads((tmp_path / "student.pt2.json").read_text())
    assert said["signature"]["first_hop"] and said["read"]["undirected"]
    assert said["fingerprint"] == trained.fingerprint()
