"""Time layer_pair against its plain PyTorch baselines: loss and all gradients, values checked.

    python bench/bench_layer_pair.py [--rounds 5] [--threads 1]

Random teacher states of PubMed's and Cora's sizes; float32 on every side, and ours once more on a
bfloat16 teacher, and with the teacher's maps frozen. Sides take turns, everything is timed under
two allocators (see bench/harness.py), since much of the baselines' time goes into page faults.
"Extra MB" is the peak resident set of a fresh process per side, less what it held before the step.
Ours is timed once more on few nodes: one, for what does not depend on them, and as many as leave
the teacher in a cache.

Run it on an idle machine: waiting threads spin, and where other processes hold the cores every
parallel loop costs a time slice (OMP_WAIT_POLICY=PASSIVE cures that).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import costs
import torch
from errors import relative
from harness import (
    ALLOCATORS,
    child,
    machine_limits,
    peak_above_data,
    take_turns,
    write_json,
)
from machines import result
from peers import best, eager
from rich.console import Console
from rich.table import Table
from torch import Tensor

from abkd_fast.ops import layer_pair, teacher_moments
from abkd_fast.ops.layer_pair import prefers_moment_form

CONFIGS = {  # nodes, teacher layers, width, student layers, width
    "64x64 -> 4x4": (19_717, 64, 64, 4, 4),
    "16x256 -> 4x64": (19_717, 16, 256, 4, 64),
    "cora 64x64 -> 4x4": (2_708, 64, 64, 4, 4),
}
R = 64
FEW = (1, 480)  # nodes
OURS = ("abkd_fast", "abkd_fast bf16", "abkd_fast frozen")


@cache
def compiled_best() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(best.layer_pair, dynamic=False)


PEERS = {
    "best": best.layer_pair,
    "eager": eager.layer_pair,
    "eager indexed": eager.layer_pair_indexed,
    "best compiled": lambda *arguments: compiled_best()(*arguments),
}
SIDES = (*OURS, *PEERS)
Step = Callable[[], dict[str, Tensor]]  # loss, D, gradients


@dataclass
class Case:
    """Everything but the teacher."""

    attention: Tensor
    student_states: list[Tensor]
    teacher_maps: list[Tensor]
    student_maps: list[Tensor]

    @property
    def leaves(self) -> dict[str, Tensor]:
        """All that gets a gradient."""
        named = {"attention": self.attention}
        for key in ("teacher_maps", "student_maps", "student_states"):
            named |= {f"{key}[{i}]": leaf for i, leaf in enumerate(getattr(self, key))}
        return {name: leaf for name, leaf in named.items() if leaf.requires_grad}


def make_case(config: str, nodes: int) -> Case:
    _, num_teacher, width, num_student, student_width = CONFIGS[config]
    torch.manual_seed(1)

    def maps(count: int, d: int) -> list[Tensor]:
        return [(torch.randn(d, R) / d**0.5).requires_grad_() for _ in range(count)]

    states = [torch.randn(nodes, student_width).relu_() for _ in range(num_student)]
    return Case(
        torch.randn(num_teacher, num_student).softmax(1).requires_grad_(),
        [state.requires_grad_() for state in states],
        maps(num_teacher, width),
        maps(num_student, student_width),
    )


def make_layers(config: str, nodes: int) -> list[Tensor]:
    torch.manual_seed(0)
    _, num_teacher, width, _, _ = CONFIGS[config]
    return [torch.empty(nodes, width).normal_().relu_() for _ in range(num_teacher)]


def make_step(side: str, config: str, nodes: int | None = None) -> Step:
    """The side's loss and backward on the teacher as it likes to keep it."""
    nodes = CONFIGS[config][0] if nodes is None else nodes
    layers, case = make_layers(config, nodes), make_case(config, nodes)
    if side in PEERS:
        teacher = best.prepare(layers) if side.startswith("best") else eager.prepare(layers)
        layers = []

        def run() -> tuple[Tensor, Tensor]:
            return PEERS[side](
                teacher, case.student_states, case.attention, case.teacher_maps, case.student_maps
            )
    else:
        widths = [layer.size(1) for layer in layers]
        teacher, layers = torch.cat(layers, 1), []
        if side.endswith("bf16"):
            teacher = teacher.bfloat16()
        if side.endswith("frozen"):
            case.teacher_maps = [layer_map.detach() for layer_map in case.teacher_maps]
        moments = teacher_moments(teacher, widths)

        def run() -> tuple[Tensor, Tensor]:
            return layer_pair(
                teacher, widths, case.student_states, case.attention, case.teacher_maps,
                case.student_maps, moments=moments,
            )  # fmt: skip

    named = case.leaves

    def step() -> dict[str, Tensor]:
        loss, dissimilarity = run()
        gradients = torch.autograd.grad(loss, list(named.values()))
        results = {"loss": loss.detach(), "D": dissimilarity}
        return results | dict(zip(named, gradients, strict=True))

    return step


def check(steps: dict[str, Step]) -> dict[str, float]:
    """Largest relative error (in norm) of loss, D and gradients against eager, by side."""
    expected, errors = steps["eager"](), {}
    for side, step in steps.items():
        found = step()
        errors[side] = relative(found.values(), [expected[k] for k in found])
        bound = 1e-2 if side.endswith("bf16") else 1e-4
        if not errors[side] <= bound:
            raise SystemExit(f"{side} differs from eager by {errors[side]:.2g}, more than {bound}")
    return errors


def time_config(config: str, rounds: int) -> dict[str, Any]:
    """Check values, then time all sides in turns; runs in a child process."""
    steps = {side: make_step(side, config) for side in SIDES}
    errors = check(steps)
    timed = take_turns(steps, rounds)
    return {side: timed[side] | {"relative_error": errors[side]} for side in SIDES}


def time_nodes(config: str, rounds: int) -> dict[str, float]:
    """Our median by number of nodes, the configuration's last; the sizes take turns.

    *read*: a sum over all states of the teacher, which does little else than to read them.
    """
    sizes = (*FEW, CONFIGS[config][0])
    steps = {str(size): make_step("abkd_fast", config, size) for size in sizes}
    teacher = torch.cat(make_layers(config, sizes[-1]), 1)
    timed = take_turns(steps | {"read": lambda: {"sum": teacher.sum()}}, rounds)
    return {size: found["median_ms"] for size, found in timed.items()}


def count_work(config: str, side: str) -> dict[str, Any]:
    """Of one of our sides: the form it takes and what that costs."""
    nodes, num_teacher, width, num_student, student_width = CONFIGS[config]
    teacher, student = num_teacher * width, num_student * student_width
    frozen = side.endswith("frozen")
    moment = prefers_moment_form(num_teacher, num_student, teacher, R, student, frozen=frozen)
    passes = 1 if frozen and not moment else 2
    size = 2 if side.endswith("bf16") else 4
    cost = costs.layer_pair(nodes, teacher, student, 0 if moment else R, size, passes)
    return {"form": "moment" if moment else "projection"} | cost.row()


# -- report -----------------------------------------------------------------------------------


def bench(config: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one configuration."""
    common = ["--config", config, "--threads", str(options.threads)]
    memory = {side: child(__file__, [*common, "--memory", side]) for side in SIDES}
    rows = []
    for allocator, variables in ALLOCATORS.items():
        timed = child(__file__, [*common, "--time", "--rounds", str(options.rounds)], variables)
        for side in SIDES:
            row = {"config": config, "nodes": CONFIGS[config][0], "threads": options.threads}
            row |= {"allocator": allocator, "side": side} | timed[side]
            samples = row["samples_ms"]
            row |= {"min_ms": min(samples), "max_ms": max(samples)}
            row |= count_work(config, side) if side in OURS else {}
            rows.append(row | (memory[side] if allocator == "default" else {}))
    return rows


def by_nodes_of(config: str, options: argparse.Namespace) -> dict[str, float]:
    common = ["--config", config, "--threads", str(options.threads)]
    found: dict[str, float] = child(
        __file__, [*common, "--time-nodes", "--rounds", str(options.rounds)]
    )
    shown = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found.items())
    print(f"{config}, ours by nodes: {shown}", flush=True)
    return found


def show(rows: list[dict[str, Any]], threads: int, limits: Any, console: Console) -> None:
    gemm, copy = limits["gemm_gflop_s"]["float32"], limits["copy_gb_s"]["1024"]
    table = Table(title=f"layer_pair, loss + backward, r = {R}, CPU, {threads} thread(s)")
    for name in ("teacher -> student", "allocator", "side"):
        table.add_column(name)
    for name in ("median ms", "min", "max", "times ours", "faults", "extra MB", "error"):
        table.add_column(name, justify="right")
    for row in rows:
        same = [r for r in rows if all(r[k] == row[k] for k in ("config", "allocator"))]
        ours = next(r for r in same if r["side"] == "abkd_fast")
        table.add_row(
            row["config"], row["allocator"], row["side"],
            f"{row['median_ms']:.1f}", f"{row['min_ms']:.1f}", f"{row['max_ms']:.1f}",
            f"{row['median_ms'] / ours['median_ms']:.1f}x", f"{row['minor_faults']:.0f}",
            f"{row['above_data_mb']:.0f}" if "peak_mb" in row else "",
            f"{row['relative_error']:.0e}",
            end_section=row is same[-1],
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if row["side"] in OURS and row["allocator"] == "default":
            rate, speed = (1e3 * row[unit] / row["median_ms"] for unit in ("gflop", "gb"))
            console.print(
                f"{row['config']}, {row['side']}, {row['form']} form: {row['gflop']:.2f} GFLOP at "
                f"{rate:.0f} GFLOP/s, {rate / gemm:.0%} of a large product in torch; "
                f"{row['gb']:.3f} GB at {speed:.1f} GB/s, {speed / copy:.0%} of a "
                "large copy"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=result("layer_pair"))
    parser.add_argument("--config", choices=CONFIGS, help="only this one")
    parser.add_argument("--time", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--time-nodes", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.time:
        print(json.dumps(time_config(options.config, options.rounds)))
        return
    if options.time_nodes:
        print(json.dumps(time_nodes(options.config, options.rounds)))
        return
    if options.memory:
        print(json.dumps(peak_above_data(make_step(options.memory, options.config))))
        return
    limits = machine_limits()
    configs = [options.config] if options.config else list(CONFIGS)
    rows = [row for config in configs for row in bench(config, options)]
    show(rows, options.threads, limits, Console(width=132))
    by_nodes = {config: by_nodes_of(config, options) for config in configs}
    write_json(
        options.out,
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        nodes=CONFIGS["64x64 -> 4x4"][0],
        subspace_width=R,
        machine=limits,
        rows=rows,
        by_nodes=by_nodes,
    )


if __name__ == "__main__":
    main()
