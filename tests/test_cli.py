"""The command as a user meets it: in its own process, with its own exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_process import run, run_process

SMALL = ["--train.epochs", "20", "--teacher-train.epochs", "10", "--teacher", "gcnii-3x8"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    result = run_process("distill", *SMALL, "--seeds", 2, "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_distill_writes_everything(done):
    folder, result = done
    assert "gcnii-3x8" in result.stdout and "gcnii-4x4" in result.stdout
    out = folder / "out"
    assert {p.name for p in out.iterdir()} == {
        *("seed0", "seed1", "metrics.json", "report"),
        *("attention.png", "dissimilarity.png", "curves.png"),
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["student"]["test"]["n"] == 2
    assert metrics["student"]["parameters"] < metrics["teacher"]["parameters"]
    assert metrics["compression_ratio"] == pytest.approx(
        metrics["teacher"]["parameters"] / metrics["student"]["parameters"]
    )
    assert metrics["command"].startswith("abkd-fast distill --train.epochs 20")
    assert metrics["config"]["train"]["epochs"] == 20
    assert metrics["step_ms"]["p50"] > 0 and metrics["peak_bytes"] > 0
    html = (out / "report" / "index.html").read_text()
    assert "gcnii-4x4" in html and "data:image/png;base64" in html


def test_students_can_be_loaded_again(done):
    from abkd_fast import data, load_model

    folder, _ = done
    digits = data.load("digits")
    student, about = load_model(folder / "out" / "seed1" / "student.safetensors")
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    right = student(digits.x, digits.graph).argmax(1) == digits.y
    accuracy = 100 * right[digits.test_mask].double().mean().item()
    assert accuracy == pytest.approx(metrics["student"]["test"]["values"][1], abs=1e-9)
    assert about.dataset == "digits"


def test_same_command_again_repeats_nothing(done):
    folder, _ = done
    before = json.loads((folder / "out" / "metrics.json").read_text())
    result = run("distill", *SMALL, "--seeds", 2, "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr
    after = json.loads((folder / "out" / "metrics.json").read_text())
    assert after["student"] == before["student"] and after["step_ms"] == before["step_ms"]


def test_teacher_folder_of_train_teacher(tmp_path):
    trained = run(
        *("train-teacher", "--model", "gcn-3x16", "--train.epochs", 15, "--out", "teacher"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    metrics = json.loads((tmp_path / "teacher" / "metrics.json").read_text())
    assert metrics["teacher"] is None and metrics["student"]["model"] == "gcn-3x16"
    result = run(
        *("distill", "--teacher", "teacher", "--train.epochs", 10, "--objective", "kd"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "runs" / "distill" / "metrics.json").read_text())
    assert metrics["teacher"]["model"] == "gcn-3x16"
    assert not (tmp_path / "runs" / "distill" / "attention.png").exists()


def test_own_data_and_own_teacher(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    np.savez(
        tmp_path / "mine.npz",
        edge_index=rng.integers(0, 90, (2, 300)),
        x=(rng.normal(size=(90, 5)) + np.eye(3, 5)[y]).astype(np.float32),
        y=y,
        train_mask=np.arange(90) < 30,
        val_mask=(np.arange(90) >= 30) & (np.arange(90) < 60),
        test_mask=np.arange(90) >= 60,
    )
    (tmp_path / "mymodels.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)\n"
        "    def forward(self, x):\n"
        "        return self.last(self.first(x).relu())\n"
        "def teacher(data):\n"
        "    return Net()\n"
    )
    result = run(
        *("distill", "--data", "mine.npz", "--teacher", "mymodels:teacher"),
        *("--teacher-layers", "first", "--student", "gcn-2x4", "--train.epochs", 5),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "runs" / "distill" / "metrics.json").read_text())
    assert metrics["dataset"]["num_nodes"] == 90
    assert metrics["teacher"]["model"] == "mymodels:teacher"


def test_datasets_and_doctor(tmp_path):
    result = run("datasets", cwd=tmp_path)
    assert result.returncode == 0 and "cora" in result.stdout and "digits" in result.stdout
    places = ["--root DIR", "$ABKD_DATA", "abkd_fast/<name>/, downloaded"]
    at = [result.stdout.index(place) for place in places]
    assert at == sorted(at)
    result = run("doctor", cwd=tmp_path)
    assert result.returncode == 0
    for text in ("spmm", "layer_pair", "cpu", "triton", "cuda", "reference", "serves CUDA"):
        assert text in result.stdout


@pytest.mark.parametrize("command", ["distill", "train-teacher", "datasets", "doctor"])
def test_help(command, tmp_path):
    result = run(command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    if command == "distill":
        for word in (
            "--dataset",
            "--teacher",
            "--student",
            "--preset",
            "--objective",
            "--seeds",
            "--abkd.beta",
        ):
            assert word in result.stdout


def test_teacher_of_other_data_is_refused(done, tmp_path):
    folder, _ = done
    (teacher,) = (folder / "runs" / "teachers").glob("digits-gcnii-3x8-*")
    result = run("distill", "--dataset", "synthetic-dcsbm", "--teacher", teacher, cwd=tmp_path)
    assert result.returncode == 1 and "must be a teacher of 'synthetic-dcsbm'" in result.stderr


@pytest.mark.parametrize(
    ("flag", "value", "differs"),
    [
        ("--train.lr", "0.5", "config.lr: 0.02 there, 0.5 now"),
        ("--student-options.dropout", "0.7", "student: "),
        ("--student-options.theta", "3", "student: "),
        ("--abkd.beta", "7", "objective: "),
    ],
)
def test_out_folder_of_another_run_is_refused(done, flag, value, differs):
    folder, _ = done
    result = run("distill", *SMALL, flag, value, "--out", "out", cwd=folder)
    assert result.returncode == 1 and f"it differs in {differs}" in result.stderr


def test_other_teacher_settings_are_another_teacher(done):
    folder, _ = done
    settings = (*SMALL, "--teacher-options.dropout", "0.1", "--out", "other")
    assert run("distill", *settings, cwd=folder).returncode == 0
    assert len(list((folder / "runs" / "teachers").glob("digits-gcnii-3x8-*"))) == 2


def test_scores_alone_need_no_hidden_layers_of_the_teacher(tmp_path):
    settings = ("--objective", "kd", "--teacher", "gcn-1x8", "--student", "gcn-1x4")
    epochs = ("--train.epochs", 3, "--teacher-train.epochs", 3)
    result = run("distill", *settings, *epochs, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_damaged_model_file_is_named(done, tmp_path):
    from abkd_fast._storage import load_tensors, save_tensors

    folder, _ = done
    student = folder / "out" / "seed0" / "student.safetensors"
    tensors, meta = load_tensors(student, "model")
    name = tmp_path / "m.safetensors"
    for change in ({"spec": "gcnii-9999x9999"}, {"extra": 1}, {"options": {"theta": "x"}}):
        save_tensors(name, tensors, meta | change, "model")
        result = run("distill", "--teacher", name, cwd=tmp_path)
        assert result.returncode == 1 and "must hold a model" in result.stderr, change
    name.write_bytes(student.read_bytes()[:-50])
    result = run("distill", "--teacher", name, cwd=tmp_path)
    assert result.returncode == 1 and "must be a complete safetensors file" in result.stderr


def test_interrupt_says_how_to_go_on(tmp_path):
    import signal
    import time

    command = [str(Path(sys.executable).parent / "abkd-fast"), "distill", "--train.epochs", "99999"]
    command += ["--teacher", "gcnii-3x8", "--teacher-train.epochs", "5", "--out", "out"]
    # A shell's background jobs, and so these tests perhaps, ignore the signal.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    launcher = [sys.executable, "-c", heed + "os.execv(sys.argv[1], sys.argv[1:])", *command]
    process = subprocess.Popen(
        launcher, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "out" / "seed0" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from the last checkpoint" in stderr and "Traceback" not in stderr
