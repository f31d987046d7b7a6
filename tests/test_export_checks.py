"""What exports and their servers refuse: models, data, indices, nodes and damaged files."""

from dataclasses import replace

import pytest
import torch
from export_cases import build
from helpers import small_data

from abkd_fast.export import ExportedServer, export_student, load_export, write
from abkd_fast.nn import GCN, GCNConv, GraphClassifier, GraphSAGE

# torch itself uses what it deprecates, when it reads programs too.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Twice(torch.nn.Module):
    """One layer called twice: two hops, which its modules do not show."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = GCNConv(8, 8), torch.nn.Linear(8, 3)

    def forward(self, x, graph):
        return self.out(self.conv(self.conv(x, graph).relu(), graph))


class Centred(torch.nn.Module):
    """Reads all nodes, between two layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = GCNConv(8, 4), GCNConv(4, 3)

    def forward(self, x, graph):
        h = self.conv(x, graph)
        return self.out((h - h.mean(0)).relu(), graph)


@pytest.mark.parametrize("model", [Twice, Centred])
def test_models_that_read_further_than_their_layers_are_refused(model, tmp_path):
    torch.manual_seed(0)
    model, data = model().eval(), small_data()
    with pytest.raises(ValueError, match=r"model must score nodes by what lies within [12] hops"):
        export_student(model, data, tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())
    exported = export_student(model, data, tmp_path / "s.pt2", bake_graph=True)
    with torch.no_grad():
        torch.testing.assert_close(exported(data.x), model(data.x, data.graph))


def test_indices_are_checked(tmp_path):
    data = small_data(sparse=True)
    exported = export_student(build("gcn"), data, tmp_path / "s.pt2")
    given = dict(zip(exported.signature.inputs, exported.signature.arguments(data), strict=True))
    for name, place, value, message in (
        ("col", 5, 10**8, r"col must lie in \[0, rows of x=60\), got values from 0 to 100000000"),
        ("col", 5, 60, r"col must lie in \[0, rows of x=60\), got values from 0 to 60"),
        ("col", 5, -7, r"col must lie in \[0, rows of x=60\), got values from -7 to 59"),
        ("x_col", 0, 8, r"x_col must lie in \[0, num_features=8\), got values from 0 to 8"),
        ("rowptr", -1, 10**8, "rowptr must end at E=[0-9]+ .the length of col., got 100000000"),
        ("rowptr", 0, 5, r"rowptr must start at 0, got rowptr\[0\]=5"),
        ("x_rowptr", 3, 10**6, r"x_rowptr must not decrease, got x_rowptr\[3\]=1000000 > "),
    ):
        wrong = given[name].clone()
        wrong[place] = value
        with pytest.raises(ValueError, match=message):
            exported(*(given | {name: wrong}).values())
    empty = given | {"x_rowptr": given["x_rowptr"][:0]}
    with pytest.raises(ValueError, match="x_rowptr must have at least 1 entry"):
        exported(*empty.values())


def test_servers_refuse_what_they_document(tmp_path):
    data = small_data()
    for name in ("mlp", "gcn"):
        exported = export_student(build(name), data, tmp_path / "s.pt2")
        server = ExportedServer(exported, data)
        assert server(torch.zeros(0, dtype=torch.int64)).shape == (0, 3)
        for nodes, message in (
            ([60], r"^nodes must lie in \[0, 60\), got 60"),
            ([0, -1], r"^nodes must lie in \[0, 60\), got -1"),
            ([2, 1, 2], "^nodes must be distinct, got 2 more than once"),
        ):
            with pytest.raises(RuntimeError, match=message):
                server(torch.tensor(nodes))
        with pytest.raises(ValueError, match="nodes must be int64, got int32"):
            server(torch.tensor([1], dtype=torch.int32))


def test_servers_refuse_data_of_another_kind(tmp_path):
    data = small_data()
    exported = export_student(GraphSAGE(8, 4, 2, 3, aggr="sum").eval(), data, tmp_path / "s.pt2")
    weighted = replace(data, graph=data.graph.with_value(torch.ones(data.graph.num_edges)))
    with pytest.raises(
        ValueError, match="must have no edge weights as the program takes, got edge"
    ):
        ExportedServer(exported, weighted)
    with pytest.raises(ValueError, match="x must be float32, got float64"):
        ExportedServer(exported, replace(data, x=data.x.double()))


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


def test_a_program_with_other_scores_leaves_the_old_one(tmp_path, monkeypatch):
    path, model, small = tmp_path / "s.pt2", build("gcn"), small_data()
    export_student(model, small, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(write, "predict", lambda model, data, _: torch.ones(data.num_nodes, 3))
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
