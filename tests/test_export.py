"""Exported students give the checkpoint's scores, on graphs of any size, and say what they take."""

import json

import pytest
import torch
from export_cases import MODELS, assert_serves, build
from helpers import small_data
from study_files import write_data

import abkd_fast
from abkd_fast import save_model
from abkd_fast.cli import main
from abkd_fast.export import ExportedServer, export_student, load_export, write
from abkd_fast.export.program import Program
from abkd_fast.export.weights import pack
from abkd_fast.model_file import ModelFile
from abkd_fast.nn import GCN, GraphClassifier

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


def test_a_program_with_other_narrow_weights_is_refused(tmp_path, monkeypatch):
    loaded = write.load_export

    def wrong(path):
        exported = loaded(path)
        run = exported._run
        exported._run = lambda *tensors: run(*tensors) * 1.01
        return exported

    monkeypatch.setattr(write, "load_export", wrong)
    with pytest.raises(ValueError, match="must be those of the int8 weights, got a difference"):
        export_student(build("gcn"), small_data(), tmp_path / "s.pt2", weights="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("torch-export", "elf"), "format must be one of torch-export"),
        (lambda text: text.replace("signature", "sign"), "must have s.pt2.json beside it"),
        (lambda text: text.replace('"hops"', '"hop"'), "must have s.pt2.json beside it"),
        (lambda text: text.replace('"dtypes"', '"types"'), "must have s.pt2.json beside it"),
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
