"""Time full-graph training over METIS parts in 1, 2 and 4 processes, on this one machine.

    python bench/bench_distributed.py [--nodes 40000] [--sizes 1 2 4] [--rounds 2] [--epochs 12]

One KD + ABKD step (forward, objective, backward, Adam) of a GCN student 3 x 64 on a synthetic
graph (degree-corrected block model, 8 classes, mean degree 12, 64 features), float32, dropout 0,
gloo over the loopback device, one thread a process; "one process" is the plain Distiller on one
thread. The teacher's states are random numbers, 4 x 64: what a step costs does not depend on them.
Every run is a fresh job, the sizes in turns. Times are medians over the epochs after the second, of
the round with the smallest median; borrowed rows are the largest rank's, as a share of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import child, status_mb, write_json
from machines import result

from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig, data
from abkd_fast.distributed import DistributedDistiller, HaloGraph, World
from abkd_fast.nn import GCN


def train(nodes: int, epochs: int, world: World | None) -> dict[str, Any]:
    """Times of the steps, and what the part of this rank looks like."""
    graph_data = data.dcsbm(nodes, mean_degree=12.0)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(nodes, 64, generator=generator) for _ in range(4)]
    logits = torch.randn(nodes, graph_data.num_classes, generator=generator)
    teacher = TeacherCache.from_states(states, logits)
    del states
    torch.manual_seed(0)
    student = GCN(graph_data.num_features, 64, 3, graph_data.num_classes, dropout=0.0)
    objective = KD() + ABKD(normalize="standardize", freeze_teacher_map=True)
    parts = teacher, student, graph_data, objective
    options = {"config": TrainConfig(epochs=epochs, patience=None), "callbacks": ()}
    if world is None:
        run = Distiller(*parts, **options)
    else:
        run = DistributedDistiller(world, *parts, **options)
    result = run.fit()
    graph = run.training.graph
    borrowed = (graph.num_src - graph.num_dst) / graph.num_dst
    assert isinstance(graph, HaloGraph) == (world is not None)
    times = [record["step_ms"] for record in result.history[2:]]
    return {
        "median_ms": statistics.median(times),
        "samples_ms": [round(ms, 2) for ms in times],
        "nodes": graph.num_dst,
        "edges": graph.num_edges,
        "borrowed": borrowed,
        "peak_mb": status_mb("VmHWM"),
        "last_loss": result.history[-1]["loss"],
    }


def in_processes(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What every rank measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={size}", __file__, "--nodes", str(options.nodes)]
        command += ["--epochs", str(options.epochs), "--worker", folder]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(size)]


def environment() -> dict[str, str]:
    """One thread a process, messages over the loopback device."""
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def row_of(size: int, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the report."""
    return {
        "processes": size,
        "median_ms": max(rank["median_ms"] for rank in ranks),
        "samples_ms": ranks[0]["samples_ms"],
        "borrowed": max(rank["borrowed"] for rank in ranks),
        "largest_nodes": max(rank["nodes"] for rank in ranks),
        "largest_edges": max(rank["edges"] for rank in ranks),
        "peak_mb_of_a_process": max(rank["peak_mb"] for rank in ranks),
        "last_loss": ranks[0]["last_loss"],
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=40_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=result("distributed"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(json.dumps(train(options.nodes, options.epochs, None)))
        return
    if options.worker:
        with World.join() as world:
            found = train(options.nodes, options.epochs, world)
            (options.worker / str(world.rank)).write_text(json.dumps(found))
        return
    plain = ["--nodes", str(options.nodes), "--epochs", str(options.epochs), "--plain"]
    best: dict[int, dict[str, Any]] = {}
    medians: dict[int, list[float]] = {}
    for _ in range(options.rounds):
        for size in (0, *options.sizes):
            alone = size == 0
            ranks = (
                [child(__file__, plain, environment())] if alone else in_processes(size, options)
            )
            row = row_of(size, ranks)
            medians.setdefault(size, []).append(row["median_ms"])
            best[size] = min(best.get(size, row), row, key=lambda found: found["median_ms"])
            name = "one process" if alone else f"torchrun, {size} processes"
            times = f"{row['median_ms']:.0f} ms a step, borrowed {row['borrowed']:.1%}"
            memory = f"peak {row['peak_mb_of_a_process']:.0f} MB, load {row['load']:.1f}"
            print(f"{name}: {times}, {memory}", flush=True)
    write_json(
        options.out,
        data="synthetic (dcsbm, mean degree 12)",
        num_nodes=options.nodes,
        cores=os.cpu_count(),
        loaded=max(row["load"] for row in best.values()) > max(options.sizes) + 1,
        rows=[best[size] | {"medians_ms": medians[size]} for size in (0, *options.sizes)],
    )


if __name__ == "__main__":
    main()
