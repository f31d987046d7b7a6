"""Time pair_infonce against plain PyTorch, values checked first.

    python bench/bench_pair_infonce.py [--rounds 9] [--width 64 --width 256]

Loss and the gradients of both sides at B = 4096, float32, rows of unit length: one pair of layers,
and 4 x 4 pairs under an attention map. *eager* is the definition (a product, logsumexp, the
diagonal), *cross_entropy* torch's loss on the same scores, *compiled* torch.compile of the former;
several pairs one after the other. Sides take turns, and a large product takes a turn too: its rate
is what ours is held against, at the 8 B^2 d operations a pair of a scheme that computes scores
again in the backward. Peak memory is that of two steps in a fresh process.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import costs
import torch
from errors import relative
from harness import child, machine_limits, peak_above_data, take_turns, write_json
from machines import result
from torch import Tensor
from torch.nn import functional as F

import abkd_fast
from abkd_fast import ops
from abkd_fast.metrics import quantiles

ROWS, TEMPERATURE, GEMM = 4096, 0.075, 2048
LAYERS = (1, 4)


def eager(u: Tensor, w: Tensor) -> Tensor:
    """InfoNCE of one pair."""
    scores = u @ w.t() / TEMPERATURE
    return (scores.logsumexp(1) - scores.diagonal()).mean()


def cross_entropy(u: Tensor, w: Tensor) -> Tensor:
    """The same as the cross-entropy of row v with class v."""
    return F.cross_entropy(u @ w.t() / TEMPERATURE, torch.arange(u.size(0)))


def all_pairs(one: Callable[[Tensor, Tensor], Tensor], u: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """mean(A * D) in plain torch."""
    return torch.stack([torch.stack([one(x, y) for x in u]) for y in w]).mul(a).mean()


@cache
def compiled_eager() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(eager, dynamic=False)


class Sides:
    """Layers of random rows, the same for all sides, and one step of each."""

    def __init__(
        self, layers: int, width: int, rows: int = ROWS, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        sides = [torch.randn(layers, rows, width) for _ in range(2)]
        sides[1] += sides[0]  # as a student that has begun to learn
        self.inputs = [F.normalize(x, dim=2).to(dtype).requires_grad_() for x in sides]
        self.attention = torch.rand(layers, layers).to(dtype)
        self.losses: dict[str, Callable[[], Tensor]] = {"abkd_fast": self._ours}
        plain = {"eager": eager, "cross_entropy": cross_entropy}
        if layers == 1:
            plain["compiled"] = lambda u, w: compiled_eager()(u, w)
        for side, one in plain.items():
            self.losses[side] = partial(all_pairs, one, *self.inputs, self.attention)

    def _ours(self) -> Tensor:
        return ops.pair_infonce(*self.inputs, self.attention, temperature=TEMPERATURE)[0]

    def step(self, side: str) -> list[Tensor]:
        loss = self.losses[side]()
        return [loss.detach(), *torch.autograd.grad(loss, self.inputs)]


def memory(layers: int, width: int, side: str) -> None:
    """Print the peak of two steps as JSON; one at few rows before loads the libraries."""
    sides = Sides(layers, width)
    x = torch.randn(64, width, requires_grad=True)
    eager(x, x).backward()
    ops.pair_infonce(x, x)[0].backward()
    abkd_fast.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    print(json.dumps(peak_above_data(partial(sides.step, side))))


def peak_memory(layers: int, width: int, threads: int) -> dict[str, float]:
    """MB of every side above what its process held before."""
    flags = ["--threads", str(threads), "--memory", str(layers), str(width)]
    names = Sides(layers, width).losses
    peaks = {side: child(__file__, [*flags, side])["above_data_mb"] for side in names}
    print(f"{layers} layers, d = {width}: MB", {k: round(v) for k, v in peaks.items()}, flush=True)
    return peaks


def measure(layers: int, width: int, rounds: int, peaks: dict[str, float]) -> dict[str, object]:
    sides = Sides(layers, width)
    expected = sides.step("eager")
    errors = {side: relative(sides.step(side), expected) for side in sides.losses}
    assert max(errors.values()) < 1e-5, errors
    del expected
    square = torch.randn(GEMM, GEMM)
    out = torch.empty_like(square)
    calls: dict[str, Callable[[], object]] = {
        side: partial(sides.step, side) for side in sides.losses
    }
    calls["gemm"] = partial(torch.mm, square, square, out=out)
    times = take_turns(calls, rounds, turn_seconds=0.05)
    median = {side: statistics.median(found["samples_ms"]) for side, found in times.items()}
    gemm = 2e-6 * GEMM**3 / median["gemm"]
    pairs = layers * layers
    row = {
        "case": f"{pairs} pair{'s' * (pairs > 1)}, d = {width}",
        "pairs": pairs,
        "rows": ROWS,
        "width": width,
        "ms": {side: quantiles(found["samples_ms"]) for side, found in times.items()},
        "gemm_gflop_s": gemm,
        "share_of_gemm": 8e-6 * pairs * ROWS**2 * width / median["abkd_fast"] / gemm,
        "error": errors,
        "above_data_mb": peaks,
    }
    cost = costs.pair_infonce(ROWS, width, layers, layers)
    print(
        row["case"],
        {k: round(v, 1) for k, v in median.items()},
        f"{row['share_of_gemm']:.0%}",
        flush=True,
    )
    return row | cost.row()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, action="append")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=result("pair_infonce"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(int(options.memory[0]), int(options.memory[1]), options.memory[2])
        return
    widths = options.width or [64, 128, 256]
    cases = [(layers, width) for layers in LAYERS for width in widths]
    peaks = [peak_memory(*case, options.threads) for case in cases]
    limits = machine_limits()
    rows = [
        measure(*case, max(options.rounds // case[0], 1), peak)
        for case, peak in zip(cases, peaks, strict=True)
    ]
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
