"""A study of seconds: a small graph of the tests' own and a study file for it."""

import numpy as np

TINY = """
[study]
trials = 2
trial_seeds = 2
final_seeds = 3
workers = 2
against = ["none"]

[settings]
data = "tiny.npz"
train.epochs = 4
teacher_train.epochs = 5

[search]
train.lr = {low = 0.01, high = 0.1, log = true}

[[start]]
train.lr = 0.05

[datasets.tiny]
teachers = ["gcnii-2x8"]
students = ["gcnii-2x2"]
teacher_seeds = 2

[methods.none]
objective = "none"

[methods.KD]
objective = "kd"
search.kd.temperature = [1.0, 2.0]

[methods.ABKD]
objective = "abkd"

[best_with]
method = "KD"
count = 1
among = ["ABKD"]
"""


def write_data(folder, shuffle_test=False):
    """A ring of 90 nodes in three classes, with a split; its test labels shuffled or not."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (np.eye(3)[y] + rng.normal(0, 0.8, (90, 3))).astype(np.float32)
    source = np.arange(90)
    edges = np.stack([source, (source + 3) % 90])
    masks = {name: np.zeros(90, bool) for name in ("train_mask", "val_mask", "test_mask")}
    masks["train_mask"][:30] = masks["val_mask"][30:60] = masks["test_mask"][60:] = True
    if shuffle_test:
        y[60:] = rng.permutation(y[60:])
    np.savez(folder / "tiny.npz", edge_index=edges, x=x, y=y, **masks)


def write_study(folder, text=TINY):
    write_data(folder)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def fake_record(cell):
    """A record as a run would send it, with figures that follow from the settings."""
    if cell.kind == "teacher":
        return {**cell.about(), "error": None, "used": {"val": 1.0, "test": 1.0}, "parameters": 99,
                "latency_ms": 2.0}  # fmt: skip
    rate = cell.settings.get("train.lr", 0.05)
    val = 90 - 100 * abs(rate - 0.04) + cell.seed + len(cell.settings["objective"])
    record = {**cell.about(), "error": None, "val": val, "seconds": 2.0, "processor": 1.0}
    if cell.kind == "final":
        costs = {"parameters": 20, "compression": 4.95, "latency_ms": 0.5, "peak_bytes": 2**28}
        record |= {
            "test": 2 * val - 90,
            "train_seconds": 3.0,
            "train_processor": 2.5,
            "teacher_sha256": "abc",
            **costs,
        }
    return record


def run_fake(schedule, keep=lambda cell: None):
    """Feed records to a schedule until it asks for nothing; what it asked for, in order."""
    asked = []
    while cells := list(schedule.pending()):
        cell = cells[0]
        asked.append(cell)
        keep(cell)
        schedule.records(cell.kind).append(fake_record(cell))
    return asked
