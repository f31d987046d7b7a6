"""A worker that dies: the job stops with an error that says what to do, and goes on from there."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torchrun

from abkd_fast._storage import load_tensors

FLAGS = [
    "--teacher",
    "gcnii-3x8",
    "--teacher-train.epochs",
    "5",
    "--student-options.dropout",
    "0.2",
]
FLAGS += ["--train.epochs", "120", "--train.checkpoint-every", "10"]


def start(out, *more, size=2):
    flags = ["-m", "abkd_fast", "distill", *FLAGS, *more, "--out", out, "--teachers", out.parent]
    return torchrun.start(size, *flags, monitor_interval=3)  # the others have time to say why


def worker(parent, rank):
    """Process id of a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def kill_when(process, log, lines, sent, rank=1):
    """Send a signal to a rank as soon as the log has so many lines."""
    while process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            os.kill(worker(process.pid, rank), sent)
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_worker_stops_the_job_which_goes_on_from_the_checkpoint(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(whole)
    printed, _ = first.communicate(timeout=240)
    assert first.returncode == 0, printed
    second = start(killed)
    kill_when(second, killed / "seed0" / "log.jsonl", 25, signal.SIGKILL)
    printed, _ = second.communicate(timeout=120)
    assert second.returncode != 0
    assert "rank 1 is gone" in printed and "goes on from the last checkpoint" in printed
    assert "exitcode  : -9" in printed  # torchrun's own summary
    _, meta = load_tensors(killed / "seed0" / "checkpoint.safetensors", "checkpoint")
    assert 20 <= meta["progress"]["epoch"] < 120
    third = start(killed)
    printed, _ = third.communicate(timeout=240)
    assert third.returncode == 0, printed
    a, b = (load_tensors(f / "seed0" / "checkpoint.safetensors", "checkpoint")[0]
            for f in (whole, killed))  # fmt: skip
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    lines = (killed / "seed0" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(120))


@pytest.mark.slow
def test_a_run_in_parts_goes_on_with_another_number_of_processes(tmp_path):
    out = tmp_path / "parts"
    first = start(out)
    kill_when(first, out / "seed0" / "log.jsonl", 25, signal.SIGKILL, rank=0)
    printed, _ = first.communicate(timeout=120)
    assert first.returncode != 0 and "exitcode  : -9" in printed
    log = out / "seed0" / "log.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines()]
    second = start(out, size=3)
    printed, _ = second.communicate(timeout=240)
    assert second.returncode == 0, printed
    after = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["epoch"] for record in after] == list(range(120))
    assert after[:20] == before[:20]  # of the checkpoint


@pytest.mark.slow
def test_a_worker_that_hangs_stops_the_job_after_the_timeout(tmp_path):
    out = tmp_path / "hangs"
    process = start(out, "--distributed.timeout", "8")
    kill_when(process, out / "seed0" / "log.jsonl", 15, signal.SIGSTOP)
    stopped = worker(process.pid, 1)
    while process.poll() is None and _waits_for(process.pid, 0):
        time.sleep(0.1)
    os.kill(stopped, signal.SIGCONT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "broke off or did not answer within 8 s" in printed


@pytest.mark.slow
def test_batches_from_the_shell(tmp_path):
    out = tmp_path / "batches"
    process = start(
        out, "--batches.size", "400",
        "--batches.num-neighbors", "4", "4", "4", "4", "--train.epochs", "3",
    )  # fmt: skip
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["command"].startswith("torchrun --nproc-per-node=2 -m abkd_fast distill")
    assert metrics["epochs"] == [3] and printed.count("report: ") == 1


def _waits_for(parent, rank):
    try:
        worker(parent, rank)
    except AssertionError:
        return False
    return True
