"""Scores, their statistics over seeds, and the facts that belong beside a number."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from abkd_fast._backend import backend_of
from abkd_fast._version import __version__
from abkd_fast.data import GraphData

SPLITS = ("train", "val", "test")


def split_scores(logits: Tensor, data: GraphData) -> dict[str, Any]:
    """The task's metric in percent on train, val and test; all its metrics under ``scores``."""
    masks = zip(SPLITS, (data.train_mask, data.val_mask, data.test_mask), strict=True)
    scores = {split: data.kind.scores(logits, data.y, mask) for split, mask in masks}
    main = {split: values[data.kind.metric] for split, values in scores.items()}
    return {**main, "scores": scores}


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """{mean, std, n, values}; std is the sample standard deviation, None for one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)),
        "std": std,
        "n": len(values),
        "values": [float(value) for value in values],
    }


def quantiles(values: Sequence[float]) -> dict[str, Any]:
    """{p20, p50, p80, n} of a list of times."""
    p20, p50, p80 = np.percentile(values, [20, 50, 80]) if len(values) else [float("nan")] * 3
    return {"p20": float(p20), "p50": float(p50), "p80": float(p80), "n": len(values)}


def count_parameters(model: nn.Module) -> int:
    """Number of scalars in ``model.parameters()``."""
    return sum(parameter.numel() for parameter in model.parameters())


def peak_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the parent's size
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, Any]:
    """Versions, processor, threads and the back end that serves spmm."""
    return {
        "abkd_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": backend_of("spmm")[0],
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
