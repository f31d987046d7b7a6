"""What the command refuses, and how it says so."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from cli_process import run


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "usage: abkd-fast COMMAND"),
        (["destill"], 2, "unknown command 'destill'"),
        (["distill", "--dataset", "corra"], 2, "did you mean 'cora'?"),
        (["distill", "--preset", "paper-reddit"], 2, "invalid choice 'paper-reddit' for"),
        (["train-teacher", "--preset=paper"], 2, "invalid choice 'paper' for argument '--preset'"),
        (["distill", "--objective", "magic"], 2, "objective must be one of none, kd, abkd"),
        (["distill", "--abkd.normalize", "l2"], 2, "normalize must be one of none, standardize"),
        (["distill", "--abkd.nodes", "val"], 2, "nodes must be one of all, train"),
        (["distill", "--kd.alpha", "2"], 2, "alpha must be in [0, 1], got 2.0"),
        (["distill", "--read.split-seed", "-1"], 2, "split_seed must be >= 0, got -1"),
        (["distill", "--student", "gin-2x2"], 2, "student: model must be FAMILY-LAYERSxWIDTH"),
        (["distill", "--student", "gcn-1x2"], 2, "student must have a hidden layer to be"),
        (["distill", "--teacher", "mlp-1x2"], 2, "teacher must have a hidden layer to be"),
        (["distill", "--student-options.alpha", "-1"], 2, "alpha must be in [0, 1], got -1.0"),
        (["distill", "--teacher", "gcni-1x8"], 2, "teacher must be FAMILY-LAYERSxWIDTH"),
        (["distill", "--teacher-layers", "x"], 2, "teacher must have layers that match --teacher"),
        (["distill", "--objective=kd", "--teacher-layers=x"], 2, "teacher_layers must be left out"),
        (["distill", "--teacher", "absent.safetensors"], 1, "no model file at absent.safetensors"),
        (["distill", "--teacher", "nomodule:f"], 2, "must be importable as module:function"),
        (["distill", "--data", "absent.npz"], 1, "absent.npz"),
        (["distill", "--seeds", "0"], 2, "seeds must be >= 1, got 0"),
        (["distill", "--train.lr", "fast"], 2, "lr"),
        (["distill", "--no-such-flag"], 2, "no-such-flag"),
        (["train-teacher", "--train.monitor", "test_acc"], 2, "monitor must be one of"),
    ],
)
def test_errors_are_one_readable_message(args, code, message, tmp_path):
    result = run(*args, cwd=tmp_path)
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    assert message in re.sub(r"[│\s]+", " ", output)  # without the box that wraps lines
    assert "Traceback" not in output


def test_malicious_files_do_not_run(tmp_path):
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    (tmp_path / "cora").mkdir()
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph"):
        (tmp_path / "cora" / f"ind.cora.{part}").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cora" / "ind.cora.test.index").write_text("0\n")
    result = run("distill", "--dataset", "cora", "--root", ".", cwd=tmp_path)
    assert result.returncode in (1, 2)
    assert "ind.cora." in result.stderr and "Traceback" not in result.stderr
    payload = np.lib.format.magic(1, 0) + b"v\x00"
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("adj_matrix.npy", payload + header + pickle.dumps(Evil()))
        for name, array in (("x", np.ones((6, 2), np.float32)), ("y", np.arange(6))):
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())
    result = run("distill", "--data", "evil.npz", cwd=tmp_path)
    assert result.returncode in (1, 2)
    assert "evil.npz" in result.stderr and "refused" in result.stderr
    assert not (tmp_path / "owned").exists()
