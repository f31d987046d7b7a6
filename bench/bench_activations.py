"""Memory and time of training with activations kept, stored in bfloat16 or computed again.

    ABKD_DATA=DIR python bench/bench_activations.py [--threads 1] [--rounds 2] [--epochs 5]

Two runs on PubMed (19,717 nodes), float32, full batch: "teacher" trains GCNII 16 x 256 on labels;
"distillation" trains GCNII 16 x 128 with KD + ABKD on a teacher whose states, 16 x 64, are random
numbers. Every run is a fresh process, the choices in turns. Times are medians over the epochs after
the second: of a step by the clock, and of the processor, which other work on the machine disturbs
less; the round with the least of the latter counts. Peaks are the largest resident size, and what
of it is above the size before training. Losses and last gradients are checked before a row is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from harness import child, peak_above_data, write_json
from machines import result

from abkd_fast import ABKD, KD, Callback, Distiller, TeacherCache, TrainConfig, data
from abkd_fast.nn import GCNII
from abkd_fast.result import DistillResult

CHOICES = ("none", "bfloat16", "recompute")
RUNS = {"teacher": 256, "distillation": 128}  # widths of 16 layers


class Timed(Distiller):
    """Takes the processor's time of its steps."""

    def _train(self, *given: Any) -> None:
        self.cpu_ms: list[float] = []
        self.callbacks.append(self.Begin())
        self.begin = time.process_time()
        super()._train(*given)

    def _validate(self, progress: Any) -> dict[str, float]:
        self.cpu_ms.append(round(1e3 * (time.process_time() - self.begin), 1))
        return super()._validate(progress)

    class Begin(Callback):
        """A step begins where the epoch before ends."""

        def on_epoch(self, distiller: Any, record: dict[str, Any]) -> None:
            distiller.begin = time.process_time()


def train(run: str, activations: str, epochs: int) -> dict[str, Any]:
    """Peak, times of the steps and losses of a run in this process."""
    graph = data.load("pubmed")
    teacher, objective = None, None
    if run == "distillation":
        generator = torch.Generator().manual_seed(0)
        states = [torch.randn(graph.num_nodes, 64, generator=generator) for _ in range(16)]
        logits = torch.randn(graph.num_nodes, graph.num_classes, generator=generator)
        teacher = TeacherCache.from_states(states, logits)
        objective = KD() + ABKD(normalize="standardize", freeze_teacher_map=True)
        del states
    torch.manual_seed(0)
    student = GCNII(graph.num_features, RUNS[run], 16, graph.num_classes, dropout=0.5)
    chosen = None if activations == "none" else activations
    config = TrainConfig(epochs=epochs, patience=None, activations=chosen)
    distiller = Timed(teacher, student, graph, objective, config=config, callbacks=())
    results: list[DistillResult] = []
    memory = peak_above_data(lambda: results.append(distiller.fit()), calls=1)
    history = results[0].history
    times = [record["step_ms"] for record in history[2:]]
    return {
        "run": run,
        "activations": activations,
        "cpu_ms": statistics.median(distiller.cpu_ms[2:]),
        "median_ms": statistics.median(times),
        "samples_ms": [round(ms, 1) for ms in times],
        "losses": [record["loss"] for record in history],
        "gradients": [float(p.grad.double().abs().sum()) for p in student.parameters()],
        "load": os.getloadavg()[0],
        **memory,
    }


def check(rows: dict[str, dict[str, Any]]) -> None:
    """Exit unless recompute trained as none did, and bfloat16 from the same loss with others."""
    plain, rounded, again = (rows[choice] for choice in CHOICES)
    same = all(again[name] == plain[name] for name in ("losses", "gradients"))
    begins = rounded["losses"][0] == plain["losses"][0]
    if not (same and begins and rounded["gradients"] != plain["gradients"]):
        raise SystemExit(f"the runs differ otherwise than they must: {rows}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=result("activations"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        print(json.dumps(train(*options.worker, options.epochs)))
        return
    best: dict[tuple[str, str], dict[str, Any]] = {}
    shared = ["--threads", str(options.threads), "--epochs", str(options.epochs)]
    for run in options.runs:
        for _ in range(options.rounds):
            for choice in CHOICES:
                row = child(__file__, [*shared, "--worker", run, choice])
                least = min(best.get((run, choice), row), row, key=lambda r: r["cpu_ms"])
                best[run, choice] = least
                text = f"{row['median_ms']:.0f} ms a step, {row['cpu_ms']:.0f} of the processor's"
                text += f", peak {row['peak_mb']:.0f} MB"
                print(f"{run}, {choice}: {text}, load {row['load']:.1f}", flush=True)
            check({choice: best[run, choice] for choice in CHOICES})
    write_json(options.out, data="pubmed", threads=options.threads, rows=list(best.values()))


if __name__ == "__main__":
    main()
