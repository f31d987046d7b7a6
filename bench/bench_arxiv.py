"""Teacher cache on disk against memory, at OGBN-Arxiv's size: GAT 750-750-40 to SAGE and GCN.

    python bench/bench_arxiv.py --root DIR [--folder runs/arxiv] [--steps 5]

The graph and its labels are OGBN-Arxiv's own, the features are synthetic. The teacher's weights
are random: its states cost what trained ones do. It reads features and one-hot training labels,
three heads of 250, batch norm, linear residual, no attention vector of the target. Every phase is
a process of its own; peaks are whole, torch and data included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import machine_limits, run_of, write_json
from machines import result
from phases import in_phase, phase
from torch import Tensor, nn
from torch.nn.functional import one_hot

import abkd_fast as af
from abkd_fast.config import TrainConfig
from abkd_fast.data import GraphData, arxiv_features
from abkd_fast.metrics import count_parameters, quantiles
from abkd_fast.nn import GAT, GCN, GraphSAGE

HIDDEN, STUDENT = 750, 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STUDENTS = {"SAGE": GraphSAGE, "GCN": GCN}


def teacher_of(data: GraphData) -> GAT:
    torch.manual_seed(0)
    classes = data.num_classes
    options = {"heads": 3, "out_heads": 1, "norm": "batch_norm", "residual": True}
    return GAT(data.num_features + classes, HIDDEN, 3, classes, dropout=0.75,
               use_att_dst=False, hidden_bias=False, **options)  # fmt: skip


def with_labels(model: nn.Module, data: GraphData) -> Tensor:
    """Scores from features and one-hot training labels."""
    labels = one_hot(data.y, data.num_classes) * data.train_mask[:, None]
    return model(torch.cat([data.x, labels.to(data.x.dtype)], 1), data.graph)


def file_of(folder: Path, dtype: str) -> Path:
    return folder / f"gat-750-{dtype}.safetensors"


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Run the teacher and keep its states."""
    data = arxiv_features(root=options.root)
    teacher = teacher_of(data)
    path = file_of(options.folder, options.dtype) if options.storage == "mmap" else None
    begin = time.perf_counter()
    cache = af.TeacherCache.build(
        teacher, data, dtype=DTYPES[options.dtype], forward=with_labels,
        storage=options.storage, path=path,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    states_mb = cache.states.nbytes / 1e6
    return {
        "build_s": seconds,
        "states_mb": states_mb,
        "widths": cache.widths,
        "parameters": count_parameters(teacher),
        "num_nodes": data.num_nodes,
        "num_edges": data.graph.num_edges,
    }


def distil(options: argparse.Namespace) -> dict[str, Any]:
    """A few steps of KD + ABKD; validation after each is not in their time."""
    data = arxiv_features(root=options.root)
    cache = af.TeacherCache.load(file_of(options.folder, options.dtype), options.storage)
    torch.manual_seed(0)
    student = STUDENTS[options.student](
        data.num_features, STUDENT, 2, data.num_classes, norm="batch_norm"
    )
    config = TrainConfig(epochs=options.steps, patience=None)
    result = af.Distiller(cache, student, data, af.KD() + af.ABKD(), config=config).fit()
    steps = [record["step_ms"] for record in result.history]
    return {
        "step_ms": quantiles(steps[1:])["p50"],  # the first step finds no warm memory
        "first_step_ms": steps[0],
        "steps_ms": steps,
        "losses": [record["loss"] for record in result.history],
        "parameters": count_parameters(student),
    }


def measure(
    options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]
) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All phases but those that are there, after each what is known."""
    common = ["--folder", str(options.folder), "--steps", str(options.steps)]
    common += ["--threads", str(options.threads)]
    common += [] if options.root is None else ["--root", str(options.root)]
    stores = [{"storage": s, "dtype": d} for s in ("mmap", "memory") for d in DTYPES]
    cases = [("build", store) for store in stores]
    cases += [("distil", {"student": s} | store) for s in STUDENTS for store in stores]
    for name, case in cases:
        if any(case.items() <= row.items() for row in found[name]):
            continue
        flags = [text for key, value in case.items() for text in (f"--{key}", value)]
        found[name].append(case | phase(__file__, [*common, *flags, "--phase", name]))
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--folder", type=Path, default=Path("runs/arxiv"), help="of the caches")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=result("arxiv"))
    parser.add_argument("--resume", action="store_true", help="keep the phases in --out")
    parser.add_argument("--phase", choices=["build", "distil"], help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--student", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.phase:
        in_phase(lambda: {"build": build, "distil": distil}[options.phase](options))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {"build": [], "distil": []}
    about: dict[str, Any] = {"threads": options.threads, "machine": machine_limits()}
    if options.resume:
        report = json.loads(options.out.read_text())
        found = {name: report[name] for name in found}
        about["earlier"] = [*report.get("earlier", []), run_of(report)]
    for rows in measure(options, found):
        write_json(options.out, **about, **rows)


if __name__ == "__main__":
    main()
