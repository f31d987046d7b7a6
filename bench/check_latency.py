"""Check that latency.measure agrees with torch.utils.benchmark on the same callables.

    python bench/check_latency.py [--band 1.15]

Both time single calls, in turns of 20, so that a slow spell of the machine meets both; the medians
must be within a factor of ``--band`` of each other. Exit code 1 where they are not. A median of
single calls is what the two define alike; torch's timer adds its own loop to a call (about 0.2 us).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

from abkd_fast import data, latency
from abkd_fast.nn import GCNII

TURNS, CALLS = 15, 20


def callables() -> dict[str, Callable[[], Any]]:
    """A large product, a student's full pass, and a node query."""
    digits = data.load("digits")
    torch.manual_seed(0)
    model = GCNII(digits.num_features, 8, 4, digits.num_classes).eval()
    server, node = latency.NodeServer(model, digits), torch.tensor([7])
    a = torch.randn(512, 512)
    return {
        "product 512": torch.no_grad()(lambda: a @ a),
        "student, full graph": torch.no_grad()(lambda: model(digits.x, digits.graph)),
        "student, one node": lambda: server(node),
    }


def medians(call: Callable[[], Any]) -> tuple[float, float]:
    """(ours, torch's) of the same number of calls, in ms."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    ours: list[int] = []
    theirs: list[float] = []
    for _ in range(TURNS):
        ours += latency.measure(call, samples=CALLS, warmup=2)["eager"].samples
        theirs += [timer.timeit(1).mean for _ in range(CALLS)]
    return 1e-6 * statistics.median(ours), 1e3 * statistics.median(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--band", type=float, default=1.15, help="largest factor between the two")
    options = parser.parse_args()
    failed = False
    for name, call in callables().items():
        ours, theirs = medians(call)
        apart = max(ours / theirs, theirs / ours)
        failed |= apart > options.band
        verdict = "apart" if apart > options.band else "agree"
        print(f"{name}: measure {ours:.4f} ms, torch Timer {theirs:.4f} ms, {verdict}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
