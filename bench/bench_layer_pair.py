"""Time layer_pair against its plain PyTorch baselines: loss and all gradients, values checked.

    python bench/bench_layer_pair.py [--rounds 5] [--nodes 19717]

PubMed's size with random teacher states; float32 on every side, and ours once more on a bfloat16
teacher. Within a process the sides take turns, so a slow spell of the machine meets all of them.
Everything is timed twice: under glibc's default allocator, and under one that keeps its pages
(no mmap, no trim), since much of the baselines' time goes into page faults. "Extra MB" is the peak
resident set of a fresh process per side, less what it held before the step.

Run it on an idle machine: waiting threads spin, and where other processes hold the cores every
parallel loop costs a time slice (OMP_WAIT_POLICY=PASSIVE cures that).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peers import best, eager
from rich.console import Console
from rich.table import Table
from torch import Tensor

from abkd_fast.metrics import environment
from abkd_fast.ops import layer_pair, teacher_moments

CONFIGS = {  # teacher layers, width, student layers, width
    "64x64 -> 4x4": (64, 64, 4, 4),
    "16x256 -> 4x64": (16, 256, 4, 64),
}
R = 64
SIDES = ("abkd_fast", "abkd_fast bf16", "best", "eager", "eager indexed")
PEERS = {
    "best": best.layer_pair,
    "eager": eager.layer_pair,
    "eager indexed": eager.layer_pair_indexed,
}
ALLOCATORS = {
    "default": {},
    "page-keeping": {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
    },
}
TURN_SECONDS = 0.3
Step = Callable[[], list[Tensor]]  # loss, D, gradients


@dataclass
class Case:
    """Everything but the teacher."""

    attention: Tensor
    student_states: list[Tensor]
    teacher_maps: list[Tensor]
    student_maps: list[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        """All that gets a gradient."""
        return [self.attention, *self.teacher_maps, *self.student_maps, *self.student_states]


def make_case(config: str, nodes: int) -> Case:
    num_teacher, width, num_student, student_width = CONFIGS[config]
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
    num_teacher, width, _, _ = CONFIGS[config]
    return [torch.empty(nodes, width).normal_().relu_() for _ in range(num_teacher)]


def make_step(side: str, layers: list[Tensor], case: Case) -> Step:
    """The side's loss and backward on the teacher as it likes to keep it."""
    if side in PEERS:
        teacher = best.prepare(layers) if side == "best" else eager.prepare(layers)
        layers.clear()

        def run() -> tuple[Tensor, Tensor]:
            return PEERS[side](
                teacher, case.student_states, case.attention, case.teacher_maps, case.student_maps
            )
    else:
        widths = [layer.size(1) for layer in layers]
        teacher = torch.cat(layers, 1)
        layers.clear()
        if side.endswith("bf16"):
            teacher = teacher.bfloat16()
        moments = teacher_moments(teacher, widths)

        def run() -> tuple[Tensor, Tensor]:
            return layer_pair(
                teacher, widths, case.student_states, case.attention, case.teacher_maps,
                case.student_maps, moments=moments,
            )  # fmt: skip

    def step() -> list[Tensor]:
        loss, dissimilarity = run()
        return [loss.detach(), dissimilarity, *torch.autograd.grad(loss, case.leaves)]

    return step


# -- time -------------------------------------------------------------------------------------


def time_config(config: str, nodes: int, rounds: int) -> dict[str, Any]:
    """Check values, then time all sides in turns; runs in a child process."""
    case = make_case(config, nodes)
    steps = {side: make_step(side, make_layers(config, nodes), case) for side in SIDES}
    errors = check(steps)
    samples: dict[str, list[float]] = {side: [] for side in SIDES}
    faults: dict[str, list[int]] = {side: [] for side in SIDES}
    gemm = []
    for _ in range(rounds):
        for side, step in steps.items():
            turn = time.perf_counter()
            while True:
                before, begin = minor_faults(), time.perf_counter()
                step()
                samples[side].append(1e3 * (time.perf_counter() - begin))
                faults[side].append(minor_faults() - before)
                if time.perf_counter() - turn > TURN_SECONDS:
                    break
        gemm.append(gemm_rate())
    return {
        "samples_ms": samples,
        "minor_faults": {side: statistics.median(values) for side, values in faults.items()},
        "relative_error": errors,
        "gemm_gflops": gemm,
    }


def check(steps: dict[str, Step]) -> dict[str, float]:
    """Largest relative error (in norm) of loss, D and gradients against eager, by side."""
    expected, errors = steps["eager"](), {}
    for side, step in steps.items():
        pairs = zip(step(), expected, strict=True)
        errors[side] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        bound = 1e-2 if side.endswith("bf16") else 1e-4
        if not errors[side] <= bound:
            raise SystemExit(f"{side} differs from eager by {errors[side]:.2g}, more than {bound}")
    return errors


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def gemm_rate(size: int = 2048) -> float:
    """GFLOP/s of one large float32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = a @ b
    begin = time.perf_counter()
    torch.mm(a, b, out=out)
    return 2e-9 * size**3 / (time.perf_counter() - begin)


# -- memory -----------------------------------------------------------------------------------


def measure_memory(config: str, nodes: int, side: str) -> dict[str, float]:
    """Peak resident set of two steps, in MB; runs in a fresh process."""
    step = make_step(side, make_layers(config, nodes), make_case(config, nodes))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparation
    before = status_mb("VmRSS")
    step()
    step()
    return {"peak_mb": status_mb("VmHWM"), "above_data_mb": status_mb("VmHWM") - before}


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))


# -- report -----------------------------------------------------------------------------------


def child(arguments: list[str], variables: dict[str, str]) -> Any:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def bench(config: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one configuration."""
    common = ["--config", config, "--nodes", str(options.nodes)]
    memory = {side: child([*common, "--memory", side], {}) for side in SIDES}
    rows = []
    for allocator, variables in ALLOCATORS.items():
        timed = child([*common, "--time", "--rounds", str(options.rounds)], variables)
        for side in SIDES:
            samples = timed["samples_ms"][side]
            rows.append(
                {
                    "config": config,
                    "allocator": allocator,
                    "side": side,
                    "median_ms": statistics.median(samples),
                    "min_ms": min(samples),
                    "max_ms": max(samples),
                    "minor_faults": timed["minor_faults"][side],
                    "relative_error": timed["relative_error"][side],
                    "gemm_gflops": statistics.median(timed["gemm_gflops"]),
                    "samples_ms": samples,
                }
                | (memory[side] if allocator == "default" else {})
            )
    return rows


def show(rows: list[dict[str, Any]], nodes: int, console: Console) -> None:
    table = Table(title=f"layer_pair, loss + backward, N = {nodes}, r = {R}, CPU")
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
        num_teacher, width, _, _ = CONFIGS[row["config"]]
        if row["side"] == "abkd_fast" and row["allocator"] == "default":
            rate = 4e-6 * nodes * num_teacher * width * R / row["median_ms"]
            console.print(
                f"{row['config']}: {rate:.0f} GFLOP/s counted on 4 N T d r; a large float32 "
                f"product runs at {row['gemm_gflops']:.0f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=19_717)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results/layer_pair-cpu.json"))
    parser.add_argument("--config", choices=CONFIGS, help="only this one")
    parser.add_argument("--time", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        print(json.dumps(time_config(options.config, options.nodes, options.rounds)))
        return
    if options.memory:
        print(json.dumps(measure_memory(options.config, options.nodes, options.memory)))
        return
    state = {"load": os.getloadavg()[0], "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY")}
    configs = [options.config] if options.config else list(CONFIGS)
    rows = [row for config in configs for row in bench(config, options)]
    show(rows, options.nodes, Console(width=132))
    report = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment() | state,
        "nodes": options.nodes,
        "subspace_width": R,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
