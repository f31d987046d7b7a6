"""Exported students give the checkpoint's scores, on graphs of any size, and say what they take."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import small_data
from study_files import write_data

import abkd_fast
from abkd_fast import CSRGraph, save_model
from abkd_fast.cli import main
from abkd_fast.export import ExportedServer, export_student, load_export, write
from abkd_fast.export.program import Program
from abkd_fast.export.weights import pack
from abkd_fast.model_file import ModelFile
from abkd_fast.nn import GAT, GCN, GCNII, MLP, GraphClassifier, GraphSAGE

# torch itself uses what it deprecates, when it reads programs too.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
MODELS = {
    "gcn": lambda: GCN(8, 4, 3, 3, norm="batch_norm"),
    "gcnii": lambda: GCNII(8, 4, 3, 3, shared=True),
    "sage": lambda: GraphSAGE(8, 4, 2, 3),
    "sage max": lambda: GraphSAGE(8, 4, 2, 3, aggr="max"),
    "gat": lambda: GAT(8, 4, 2, 3, heads=2),
    "mlp": lambda: MLP(8, 4, 2, 3),
}


def build(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().eval()


@torch.no_grad()
def assert_serves(exported, model, sparse=False):
    """Another graph, its single nodes, and nodes of a graph without edges."""
    other = small_data(seed=5, num_nodes=33, sparse=sparse)
    torch.testing.assert_close(exported.predict(other), model(other.x, other.graph))
    server = ExportedServer(exported, other)
    every = torch.cat([server(torch.tensor([node])) for node in range(33)])
    torch.testing.assert_close(every, model(other.x, other.graph))
    none = CSRGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 33)
    alone = replace(other, graph=none)
    scores = ExportedServer(exported, alone)(torch.tensor([32]))
    torch.testing.assert_close(scores, model(other.x, none)[32:])


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


def test_refuses_by_name(tmp_path):
    data = small_data()
    with pytest.raises(ValueError, match="got GraphClassifier"):
        export_student(GraphClassifier(GCN(8, 4, 2, 4), 4, 3, "mean"), data, tmp_path / "s.pt2")
    with pytest.raises(ValueError, match="format must be"):
        export_student(build("gcn"), data, tmp_path / "s.pt2", format="tflite")
    with pytest.raises(ValueError, match="s.pt2.json beside it"):
        load_export(tmp_path / "s.pt2")
    exported = export_student(build("gcn"), data, tmp_path / "s.pt2")
    x, rowptr, col, value = exported.signature.arguments(data)
    with pytest.raises(ValueError, match="rowptr must be int32, got int64"):
        exported(x, rowptr.long(), col, value)
    with pytest.raises(ValueError, match="tensors must be x, rowptr, col, value, got 1"):
        exported(x)
    for wrong, message in (
        ((x[:, :5], rowptr, col, value), r"x must have shape \[N, 8\], got \[60, 5\]"),
        ((x, rowptr[:-1], col, value), r"rowptr must have 61 entries \(rows of x \+ 1\), got 60"),
        ((x, rowptr, col, value[1:]), r"value must have [0-9]+ entries \(as col\)"),
        ((x[0], rowptr, col, value), r"x must have 2 dimension\(s\), got shape \[8\]"),
        ((x.tolist(), rowptr, col, value), "x must be a torch.Tensor, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            exported(*wrong)
    torch.testing.assert_close(
        exported(x.t().contiguous().t(), rowptr, col, value), exported(x, rowptr, col, value)
    )
    with pytest.raises(ValueError, match="8 features, got 5"):
        exported.predict(small_data(num_features=5))


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


def test_a_program_with_other_scores_leaves_the_old_one(tmp_path, monkeypatch):
    path, model, small = tmp_path / "s.pt2", build("gcn"), small_data()
    export_student(model, small, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(write, "predict", lambda model, data: torch.ones(data.num_nodes, 3))
    with pytest.raises(ValueError, match="scores of the program must be the model's.*nothing was"):
        export_student(model, small, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("torch-export", "elf"), "format must be one of torch-export"),
        (lambda text: text.replace("signature", "sign"), "must have s.pt2.json beside it"),
        (None, "s.pt2 must be a program that abkd-fast export wrote"),
    ],
)
def test_damaged_exports_are_refused(change, message, tmp_path):
    path = tmp_path / "s.pt2"
    export_student(build("mlp"), small_data(), path)
    beside = path.with_name("s.pt2.json")
    if change is None:
        path.write_bytes(path.read_bytes()[:500])
    else:
        beside.write_text(change(beside.read_text()))
    with pytest.raises(ValueError, match=message):
        load_export(path)


def test_damaged_onnx_is_refused(tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    path = tmp_path / "s.onnx"
    export_student(build("mlp"), small_data(), path, format="onnx")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="s.onnx must be a program that abkd-fast export wrote"):
        load_export(path)


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
    assert json.loads((tmp_path / "student.pt2.json").read_text())["signature"]["first_hop"]


ALONE = """
import sys, torch
library, package, case = sys.argv[1:]
torch.ops.load_library(library)
arguments, expected = torch.load(case)
program = torch._C._aoti.AOTIModelPackageLoader(package, "model", False, 1, -1)
(scores,) = program.run(list(arguments))
assert torch.equal(scores, expected)
wrong = [part.long() if part.dtype == torch.int32 else part for part in arguments]
try:
    program.run(wrong)
except RuntimeError:
    print("refused")
print([name for name in sys.modules if name.startswith("abkd_fast")])
"""


@pytest.mark.slow
def test_aoti_needs_the_ops_library_alone(tmp_path):
    """In a fresh process; the compiler is given as long as it takes."""
    extension = pytest.importorskip("abkd_fast._C", reason="the extension is not built")
    torch.manual_seed(0)
    model, data = GCNII(8, 4, 4, 3).eval(), small_data()
    path = tmp_path / "s.aoti.pt2"
    exported = export_student(model, data, path, format="aoti")
    assert exported.about["max_difference"] < 1e-5
    metrics = exported.about["metrics"]
    assert metrics["program"] == metrics["checkpoint"]
    assert_serves(exported, model)
    arguments = exported.signature.arguments(data)
    expected = exported(*arguments)
    assert torch.equal(exported(arguments[0].t().contiguous().t(), *arguments[1:]), expected)
    with pytest.raises(ValueError, match="value must have [0-9]+ entries"):
        exported(*arguments[:-1], arguments[-1][1:])
    torch.save((arguments, expected), tmp_path / "case.pt")
    files = [extension.__file__, str(path), str(tmp_path / "case.pt")]
    command = [sys.executable, "-c", ALONE, *files]
    checks = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=checks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused", "[]"]


def test_aoti_refuses(tmp_path):
    model, data = build("mlp"), small_data()
    with pytest.raises(ValueError, match=r"path must end in .pt2 for format aoti, got .*s.so"):
        export_student(model, data, tmp_path / "s.so", format="aoti")
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ValueError, match="needs a C.. compiler"),
    ):
        export_student(model, data, tmp_path / "s.pt2", format="aoti")
    assert not list(tmp_path.iterdir())


def test_aoti_names_a_broken_package(tmp_path):
    exported = export_student(build("mlp"), small_data(), tmp_path / "s.pt2")
    about = json.loads((tmp_path / "s.pt2.json").read_text()) | {"format": "aoti"}
    assert exported.about["format"] == "torch-export"
    (tmp_path / "s.pt2.json").write_text(json.dumps(about))
    for content in ((tmp_path / "s.pt2").read_bytes(), b"PK", b""):
        (tmp_path / "s.pt2").write_bytes(content)
        with pytest.raises(ValueError, match="must be a package that abkd-fast export"):
            load_export(tmp_path / "s.pt2")
