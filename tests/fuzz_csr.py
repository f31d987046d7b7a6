"""Fuzz ``CSRGraph`` and ``spmm`` with the inputs of fuzz_cases.py.

Run: make fuzz, or python tests/fuzz_csr.py --inputs 100000 --jobs 2 --seed 0
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch
import tyro
from fuzz_cases import failure, is_valid, make_case
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from abkd_fast._backend import backend_of

CHUNK = 500


def run_chunk(seed: int, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """How many inputs of every kind were accepted or refused, and the failures."""
    faulthandler.enable()
    torch.set_num_threads(1)
    seen: Counter[str] = Counter()
    failures = []
    for index in range(first, first + count):
        case, change = make_case(seed, index)
        seen[f"{change}, {'valid' if is_valid(case) else 'invalid'}"] += 1
        found = failure(case)
        if found is not None:
            failures.append(f"input {index} of seed {seed} ({change}): {found}\n  {case}"[:1500])
    return seen, failures


def run_chunks(
    seed: int, chunks: list[tuple[int, int]], jobs: int
) -> Iterator[tuple[Counter[str], list[str]]]:
    """``run_chunk`` on every chunk; here for one job, in other processes for more."""
    if jobs == 1:
        yield from (run_chunk(seed, *chunk) for chunk in chunks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_chunk, seed, *chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                first, count = futures[future]
                again = f"--seed {seed} --first {first} --inputs {count} --jobs 1"
                yield Counter(), [f"a process died; find the input with {again}"]
                return


def main(inputs: int = 100_000, seed: int = 0, jobs: int = 2, first: int = 0) -> None:
    """Fuzz CSRGraph and spmm.

    Args:
        inputs: how many inputs.
        seed: same seed, same inputs.
        jobs: processes.
        first: number of the first input.
    """
    console = Console()
    console.print(f"seed {seed}, inputs {first} to {first + inputs - 1}, {backend_of('spmm')[1]}")
    last, start = first + inputs, time.perf_counter()
    chunks = [(at, min(CHUNK, last - at)) for at in range(first, last, CHUNK)]
    seen: Counter[str] = Counter()
    failures: list[str] = []
    bar = Progress("fuzzing", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("", total=inputs)
        for counts, found in run_chunks(seed, chunks, jobs):
            seen.update(counts)
            failures += found
            bar.update(task, completed=seen.total())
    for kind, count in sorted(seen.items()):
        console.print(f"{count:>8,} {kind}")
    for text in failures[:10]:
        console.print(text, markup=False)
    seconds = time.perf_counter() - start
    console.print(f"{seen.total():,} inputs, {len(failures)} failures, {seconds:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    tyro.cli(main)
