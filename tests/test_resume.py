"""Stopping and going on: interrupts, damaged files, full disks, kill -9."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import small_data
from test_trainer import QUICK, make, same_result, timeless

from abkd_fast import Callback
from abkd_fast._storage import load_tensors


class Stop(Callback):
    def __init__(self, at):
        self.at = at

    def on_epoch(self, distiller, record):
        if record["epoch"] == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
@pytest.mark.parametrize("at", [3, 9, 17])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, schedule, at):
    config = replace(QUICK, schedule=schedule)
    whole = make(config=config).fit()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, config, callbacks=[Stop(at)]).fit()
    resumed = make(tmp_path, config).fit()
    same_result(resumed, whole)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert timeless(json.loads(line) for line in lines) == timeless(whole.history)


def test_a_finished_run_is_not_repeated(tmp_path):
    first = make(tmp_path).fit()
    seen = []

    class Count(Callback):
        def on_epoch(self, distiller, record):
            seen.append(record)

    same_result(make(tmp_path, callbacks=[Count()]).fit(), first)
    assert seen == []


def test_checkpoint_of_another_run_is_refused(tmp_path):
    make(tmp_path).fit()
    with pytest.raises(ValueError, match="it differs in config"):
        make(tmp_path, replace(QUICK, lr=0.5)).fit()
    with pytest.raises(ValueError, match="it differs in data"):
        make(tmp_path, data=small_data(seed=5)).fit()
    data = small_data()
    swapped = replace(data, train_mask=data.test_mask, test_mask=data.train_mask)
    with pytest.raises(ValueError, match="it differs in data"):
        make(tmp_path, data=swapped).fit()
    with pytest.raises(ValueError, match="differs in teacher: .* objective"):
        make(tmp_path, objective=False).fit()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_is_refused_and_kept(tmp_path, share):
    make(tmp_path).fit()
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors must be a complete"):
        make(tmp_path).fit()
    assert path.read_bytes() == content


def test_two_runs_cannot_share_a_folder(tmp_path):
    class Second(Callback):
        def on_epoch(self, distiller, record):
            if record["epoch"] == 3:
                with pytest.raises(ValueError, match="another run is writing to"):
                    make(tmp_path).fit()

    make(tmp_path, callbacks=[Second()]).fit()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 30


def test_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A real write limit: the process may not write files beyond a size, as on a full disk."""
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[Stop(12)]).fit()
    good = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="could not write .*checkpoint.*unharmed"):
            make(tmp_path).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    same_result(make(tmp_path).fit(), make().fit())


RUN = """
import sys
sys.path.insert(0, {tests!r})
from test_trainer import make, QUICK
from dataclasses import replace
make({out!r}, replace(QUICK, epochs=300, checkpoint_every=7)).fit()
"""


def start(out):
    script = RUN.format(tests=str(Path(__file__).parent), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


def wait_for_change(path, process):
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_equals_uninterrupted(tmp_path):
    """kill -9, ten times, while the run trains or writes; then it may finish."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    rng = random.Random(0)
    kills = 0
    for _ in range(10):
        process = start(killed)
        wait_for_change(killed / "log.jsonl", process)
        time.sleep(rng.uniform(0.0, 0.5))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 3
    assert start(killed).wait() == 0
    assert sorted(p.name for p in killed.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    (a, a_meta), (b, b_meta) = (
        load_tensors(folder / "checkpoint.safetensors", "checkpoint") for folder in (whole, killed)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    histories = [meta["progress"].pop("history") for meta in (a_meta, b_meta)]
    assert timeless(histories[0]) == timeless(histories[1]) and len(histories[0]) == 300
    assert a_meta == b_meta
