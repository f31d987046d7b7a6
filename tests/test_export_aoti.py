"""Programs that AOTInductor compiled: the checkpoint's scores, with the ops library alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from export_cases import assert_serves, build
from helpers import small_data

from abkd_fast.export import export_student, load_export
from abkd_fast.nn import GCNII

# torch itself uses what it deprecates, when it reads programs too.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sparse"), [("gat", False), ("sage max", False), ("gcn", True)])
def test_aoti_of_other_ops(name, sparse, tmp_path):
    model, path = build(name), tmp_path / "s.pt2"
    exported = export_student(model, small_data(sparse=sparse), path, format="aoti")
    assert exported.about["max_difference"] < 1e-5 and exported.about["same_argmax"] == 1.0
    assert_serves(load_export(path), model, sparse)


@pytest.mark.slow
def test_aoti_with_the_graph_baked_in(tmp_path):
    model, data, path = build("gcnii"), small_data(), tmp_path / "s.pt2"
    export_student(model, data, path, format="aoti", bake_graph=True)
    exported = load_export(path)
    assert exported.signature.inputs == ("x",)
    with torch.no_grad():
        torch.testing.assert_close(exported(data.x * 2), model(data.x * 2, data.graph))


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
