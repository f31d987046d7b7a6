"""Check latency.measure against the clock of another process: pyperf around a one-shot.

    python bench/check_one_shot.py [--band 1.15]

A one-shot loads a student and runs it --calls times, or not at all; pyperf times whole processes of
both kinds in turns. What the calls add, each, is the mean time of a call as seen from outside; it
must be within a factor of --band of the mean of latency.measure's samples. Of both it is the median
over the turns: one held-up turn decides nothing. Exit code 1 where they are apart.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyperf
import torch

from abkd_fast import data, latency
from abkd_fast.nn import GCNII

TURNS = 7


def student() -> Callable[[], Any]:
    """A full pass over the digits."""
    digits = data.load("digits")
    torch.manual_seed(0)
    model = GCNII(digits.num_features, 8, 4, digits.num_classes).eval()
    return torch.no_grad()(lambda: model(digits.x, digits.graph))


def one_shot(calls: int) -> None:
    call = student()
    for _ in range(calls):
        call()


def process_seconds(calls: int, folder: Path) -> float:
    """Wall clock of one process, by pyperf."""
    out = folder / "one-shot.json"
    out.unlink(missing_ok=True)
    timed = [sys.executable, __file__, "--one-shot", "--calls", str(calls)]
    once = ["--processes", "1", "--values", "1", "--warmups", "0", "--loops", "1", "--copy-env"]
    command = [sys.executable, "-m", "pyperf", "command", *once, "--quiet", "-o", str(out)]
    subprocess.run([*command, "--", *timed], check=True, stdout=subprocess.DEVNULL)
    return float(pyperf.Benchmark.load(str(out)).mean())


def means(calls: int) -> tuple[float, float]:
    """(ours, pyperf's) of a call, in ms: of each the median of its turns' means, taken in turns."""
    call, ours, added = student(), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(TURNS):
            without = process_seconds(0, Path(folder))
            added.append((process_seconds(calls, Path(folder)) - without) / calls)
            samples = latency.measure(call, samples=calls // TURNS)["eager"].samples
            ours.append(statistics.fmean(samples))
    return 1e-6 * statistics.median(ours), 1e3 * statistics.median(added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--band", type=float, default=1.15, help="largest factor between the two")
    parser.add_argument("--calls", type=int, default=20_000, help="of a process")
    parser.add_argument("--one-shot", action="store_true", help="only run the calls")
    options = parser.parse_args()
    if options.one_shot:
        one_shot(options.calls)
        return
    ours, theirs = means(options.calls)
    agree = 1.0 / options.band <= theirs / ours <= options.band
    verdict = "agree" if agree else "apart"
    print(f"measure {ours:.4f} ms, pyperf around {options.calls} calls {theirs:.4f} ms, {verdict}")
    sys.exit(int(not agree))


if __name__ == "__main__":
    main()
