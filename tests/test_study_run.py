"""Studies as they run: real processes, killed and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from study_files import TINY, write_data, write_study

from abkd_fast import data as datasets
from abkd_fast.study.records import Records
from abkd_fast.study.runner import run_study
from abkd_fast.study.spec import load_study
from abkd_fast.study.worker import hide_test

FILES = {
    *("teachers.jsonl", "trials.jsonl", "runs.jsonl", "traces.jsonl", "recipes.json"),
    *("runs.csv", "results.json", "tables.md", "tables.tex"),
}
TRIAL = {
    *("key", "dataset", "teacher", "student", "method", "seed", "search", "trial", "settings"),
    *("error", "val", "parameters", "epochs", "best_epoch", "step_ms", "peak_bytes", "seconds"),
    "processor",
}
COSTS = {"seconds", "processor", "step_ms", "peak_bytes", "latency_ms"}
COSTS |= {"train_seconds", "train_processor"}


def read(folder, name):
    return {r["key"]: r for r in Records(folder / "study" / f"{name}.jsonl").all()}


def figures(records):
    return {k: {n: v for n, v in r.items() if n not in COSTS} for k, r in records.items()}


def command(*args):
    return [sys.executable, "-m", "abkd_fast", "study", "study.toml", *args]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole study, run in this process."""
    folder = tmp_path_factory.mktemp("study")
    before = os.getcwd()
    os.chdir(folder)
    try:
        failed = run_study(load_study(write_study(folder)))
    finally:
        os.chdir(before)
    assert failed == []
    return folder


def test_everything_is_written(done):
    assert {path.name for path in (done / "study").iterdir()} >= FILES
    trials, runs = read(done, "trials"), read(done, "runs")
    assert len(trials) == 16 and len(runs) == 12
    assert all(set(record) == TRIAL for record in trials.values())  # no figure of the test nodes
    assert set(read(done, "traces")) == set(runs)
    rows = (done / "study" / "runs.csv").read_text().splitlines()
    assert len(rows) == 13 and rows[0].startswith("dataset,teacher,student,method,recipe,seed,val")
    results = json.loads((done / "study" / "results.json").read_text())
    summaries = results["tasks"][0]["summaries"]
    assert [s["method"] for s in summaries] == ["none", "KD", "ABKD", "KD + ABKD"]
    assert all(s["test"]["n"] == 3 and s["current"] for s in summaries)
    assert len(results["tasks"][0]["comparisons"]) == 3 and results["tasks"][0]["pending"] == 0


def test_again_runs_nothing(done, monkeypatch):
    monkeypatch.chdir(done)
    before = {p.name: p.read_bytes() for p in (done / "study").iterdir() if p.suffix != ".png"}
    assert run_study(load_study("study.toml")) == []
    after = {p.name: p.read_bytes() for p in (done / "study").iterdir() if p.suffix != ".png"}
    assert after == before


def test_runs_are_those_of_distill(done, monkeypatch):
    """A row can be had by hand, from its settings."""
    from abkd_fast.config import DistillConfig
    from abkd_fast.runs import distill
    from abkd_fast.study.flags import with_flags

    monkeypatch.chdir(done)
    row = next(r for r in read(done, "runs").values() if r["method"] == "KD" and r["seed"] == 0)
    (teacher,) = (done / "runs" / "study" / "teachers").iterdir()
    flags = {"data": "tiny.npz", "train.epochs": 4, "student": "gcnii-2x2", **row["settings"]}
    config = replace(with_flags(DistillConfig(), flags), teacher=str(teacher))
    metrics = distill(config)
    assert metrics["student"]["test"]["values"] == [row["test"]]
    assert metrics["student"]["val"]["values"] == [row["val"]]


@pytest.mark.slow
def test_kill_loses_no_finished_run(done, tmp_path):
    write_study(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "study"
    for name, wanted in (("trials", 3), ("runs", 2)):
        process = subprocess.Popen(
            command(),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        path, deadline = folder / f"{name}.jsonl", time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") >= wanted):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept = {p.name: p.read_bytes() for p in folder.glob("*.jsonl")}
        assert kept[path.name].count(b"\n") >= wanted
    ended = subprocess.run(
        command(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for name, before in kept.items():
        after = (folder / name).read_bytes()
        assert after.startswith(before[: before.rfind(b"\n") + 1])  # what was there still is
        lines = [json.loads(line)["key"] for line in after.splitlines()]
        assert name == "traces.jsonl" or len(set(lines)) == len(lines)  # and was not run again
    for name in ("teachers", "trials", "runs"):
        assert figures(read(tmp_path, name)) == figures(read(done, name))


@pytest.mark.slow
def test_choices_do_not_see_test_labels(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path)
    write_data(tmp_path, shuffle_test=True)
    assert run_study(load_study(path)) == []
    assert figures(read(tmp_path, "trials")) == figures(read(done, "trials"))
    recipes = [json.loads((f / "study" / "recipes.json").read_text()) for f in (tmp_path, done)]
    for frozen in recipes:
        for entry in frozen["recipes"]:
            del entry["frozen"]
    assert recipes[0] == recipes[1]
    tests = [[r["test"] for r in read(folder, "runs").values()] for folder in (tmp_path, done)]
    assert tests[0] != tests[1]


def test_trials_run_on_shuffled_test_labels():
    digits = datasets.load("synthetic-dcsbm")
    hidden = hide_test(digits)
    changed = (hidden.y != digits.y).nonzero().flatten()
    assert len(changed) > 0.3 * int(digits.test_mask.sum())
    assert bool(digits.test_mask[changed].all())
    assert torch.equal(hidden.y.sort().values, digits.y.sort().values)
    for name in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(hidden, name), getattr(digits, name))


def test_failed_runs_stop_nothing_else(tmp_path):
    text = TINY.split("[best_with]")[0].replace("trials = 2", "trials = 1")
    text = text.replace('objective = "abkd"', 'objective = "abkd"\nsettings.train.lr = 1e30')
    text = text.replace("final_seeds = 3", "final_seeds = 1")
    text = text.replace(
        "[methods.none]", '[datasets.other]\nteachers = ["dies:make"]\n[methods.none]'
    )
    (tmp_path / "dies.py").write_text(
        "import os, signal\ndef make(data):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    write_study(tmp_path, text)
    ended = subprocess.run(command(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "error: 3 runs failed:" in ended.stderr
    assert "other: teacher dies:make: the process ended with signal SIGKILL" in ended.stderr
    assert re.search("ABKD, trial 0, seed 1000: .*Error: .* finite", ended.stderr)
    runs = read(tmp_path, "runs")
    assert {record["method"] for record in runs.values()} == {"none", "KD"}
    page = (tmp_path / "study" / "tables.md").read_text()
    assert "ABKD: no recipe yet, or every trial of it failed." in page


def test_folder_in_use_and_wrong_file(done, tmp_path, monkeypatch):
    from abkd_fast._storage import exclusive

    monkeypatch.chdir(done)
    with (
        exclusive(done / "study" / "trials.jsonl"),
        pytest.raises(ValueError, match="must be free"),
    ):
        run_study(load_study("study.toml"))
    (tmp_path / "study.toml").write_text("trials = 3\n")
    ended = subprocess.run(
        command("--predict"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "error: study.toml: the file must have known keys only, got 'trials'" in ended.stderr
