"""Time dropout against torch's, forward and backward.

    python bench/bench_dropout.py [--sizes 1000000]

torch draws its mask from a sequential generator and keeps it for the backward; ours draws it twice
from (seed, layer, step, element). The masks differ, so what is checked is what both promise: kept
elements are x / (1 - p), as many as p says, and the gradient has the same mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import costs
import torch
import torch.nn.functional as F
from harness import machine_limits, take_turns, write_json
from machines import result
from torch import Tensor

from abkd_fast.metrics import quantiles
from abkd_fast.ops.dropout import draw_seed, dropout

P = 0.5
SIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "abkd_fast": lambda x: dropout(x, P, draw_seed()),
    "torch": lambda x: F.dropout(x, P),
}


def step(side: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    if not backward:
        out = side(x)
        return out, out
    leaf = x.detach().requires_grad_()
    out = side(leaf)
    out.backward(x)
    assert leaf.grad is not None
    return out.detach(), leaf.grad


def check(out: Tensor, gradient: Tensor, x: Tensor) -> None:
    kept = out != 0
    torch.testing.assert_close(out[kept], (x / (1 - P))[kept])
    torch.testing.assert_close(gradient, out)
    assert abs(float(kept.float().mean()) - (1 - P)) < 6 * (P * (1 - P) / x.numel()) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=result("dropout"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    limits, rows = machine_limits(), []
    for size in options.sizes:
        x = torch.randn(size)
        for backward in (False, True):
            for side in SIDES.values():
                check(*step(side, x, backward), x)
            calls = {name: partial(step, side, x, backward) for name, side in SIDES.items()}
            times = take_turns(calls, options.rounds)
            ours, peer = (times[name]["median_ms"] for name in SIDES)
            what = "forward+backward" if backward else "forward"
            print(f"{size} {what}: {ours:.3f} ms, torch {peer:.3f} ms ({peer / ours:.2f}x)")
            ms = {name: quantiles(t["samples_ms"]) for name, t in times.items()}
            row = {"elements": size, "dtype": "float32", "what": what, "ms": ms}
            rows.append(row | costs.dropout(size, backward=backward).row())
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
