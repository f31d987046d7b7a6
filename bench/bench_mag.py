"""OGBN-Mag's configuration of the paper end to end, at OGBN-Mag's size, beside PyG.

    python bench/bench_mag.py [--folder runs/mag] [--steps 4] [--limit-mb 20000]

Synthetic data of OGBN-Mag's counts (abkd_fast.data.mag_sized). Teacher R-GCN 512-512-349, student
32-349, both with embeddings of the types without features. The teacher's weights are random: its
states cost what trained ones do. PyG's student (HeteroConv of SAGEConv means) makes the same step
on labels alone, its scores compared with ours on a hundredth of the graph; a process that needs
more than the limit is ended. Every phase is a process of its own; peaks are whole.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine_limits, run_of, write_json
from machines import result
from peers.pyg_rgcn import PygRGCN
from phases import in_phase, phase
from torch.nn.functional import cross_entropy

import abkd_fast as af
from abkd_fast.config import TrainConfig
from abkd_fast.data import GraphData, TypedArrays, mag_sized
from abkd_fast.data.array_cache import ArrayWriter, cached_arrays
from abkd_fast.inductive import predict
from abkd_fast.metrics import count_parameters, quantiles, split_scores
from abkd_fast.nn import RGCN

FORMS = ("edge_index", "csr")  # of PyG's edges
TEACHER, STUDENT = (512, 3), (32, 2)  # width, layers
EMBEDDED = ("author", "field_of_study", "institution")
BF16_FILE = "rgcn-512-bfloat16.safetensors"


def arrays_of(options: argparse.Namespace) -> TypedArrays:
    """The data, made once and kept as files."""

    def write(writer: ArrayWriter) -> dict[str, Any]:
        data = mag_sized(scale=options.scale)
        for relation, edges in data.edge_index.items():
            writer.add("/".join(relation), edges)
        writer.add("x", data.x["paper"])
        writer.add("y", data.y["paper"])
        for part, nodes in data.split["paper"].items():
            writer.add(f"split/{part}", nodes)
        return {"name": data.name, "num_nodes": data.num_nodes}

    cache = cached_arrays(options.folder / f"arrays-{options.scale}", write)
    found = cache.arrays
    split = {part: found[f"split/{part}"] for part in ("train", "val", "test")}
    edges = {tuple(key.split("/")): value for key, value in found.items() if key.count("/") == 2}
    return TypedArrays(
        name=cache.about["name"],
        num_nodes=cache.about["num_nodes"],
        edge_index=edges,
        x={"paper": np.asarray(found["x"])},
        y={"paper": np.asarray(found["y"])},
        split={"paper": split},
        synthetic=True,
    )


def model_of(data: GraphData, width: int, layers: int) -> RGCN:
    torch.manual_seed(0)
    relations = data.relations
    assert relations is not None
    return RGCN(data.num_features, width, layers, data.num_classes, relations.num_nodes,
                relations.num_relations, embedded=EMBEDDED, dropout=0.5)  # fmt: skip


def sizes(model: RGCN) -> dict[str, int]:
    embeddings = sum(p.numel() for p in model.embeddings.values())
    return {"parameters": count_parameters(model) - embeddings, "embeddings": embeddings}


def make_data(options: argparse.Namespace) -> dict[str, Any]:
    """Generate the data, and the graph from them."""
    begin = time.perf_counter()
    arrays = arrays_of(options)
    made = time.perf_counter()
    data = arrays.graph_data()
    assert data.relations is not None
    return {
        "arrays_s": made - begin,
        "graph_s": time.perf_counter() - made,
        "num_nodes": sum(arrays.num_nodes.values()),
        "num_edges": data.relations.num_edges,
        "relations": data.relations.num_relations,
    }


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Run the teacher, its states to disk layer by layer."""
    data = arrays_of(options).graph_data()
    teacher = model_of(data, *TEACHER)
    begin = time.perf_counter()
    cache = af.TeacherCache.build(
        teacher, data, dtype=torch.bfloat16, storage="mmap", path=options.folder / BF16_FILE
    )
    seconds = time.perf_counter() - begin
    states_mb = cache.states.nbytes / 1e6
    return {"build_s": seconds, "states_mb": states_mb, "widths": cache.widths, **sizes(teacher)}


def train(options: argparse.Namespace, distil: bool) -> dict[str, Any]:
    """A few steps, validation after each not in their time; then one evaluation."""
    data = arrays_of(options).graph_data()
    cache = af.TeacherCache.load(options.folder / BF16_FILE) if distil else None
    objective = af.KD() + af.ABKD() if distil else None
    student = model_of(data, *STUDENT)
    plan = [str(part) for part in af.memory_plan(data, student, cache, storage="mmap")]
    config = TrainConfig(epochs=options.steps, patience=None)
    result = af.Distiller(cache, student, data, objective, config=config).fit()
    begin = time.perf_counter()
    scores = split_scores(predict(student, data), data)
    steps = [record["step_ms"] for record in result.history]
    return {
        "step_ms": quantiles(steps[1:])["p50"],
        "steps_ms": steps,
        "losses": [record["loss"] for record in result.history],
        "evaluation_s": time.perf_counter() - begin,
        "scores": scores,
        "plan": plan,
        **sizes(student),
    }


def pyg_edges(data: GraphData, arrays: TypedArrays, form: str) -> dict[Any, Any]:
    """Edges as PyG takes them: edge_index, or transposed torch CSR."""
    edges = arrays.relations()[1]
    if form == "edge_index":
        return {relation: ends.long() for relation, ends in edges.items()}
    assert data.relations is not None
    return {relation: data.relations.relation(relation).to_torch() for relation in edges}


def train_pyg(options: argparse.Namespace) -> dict[str, Any]:
    """The same step on labels alone with PyG's layers."""
    arrays = arrays_of(options)
    data = arrays.graph_data()
    edges = pyg_edges(data, arrays, options.form)
    assert data.relations is not None
    model = PygRGCN(model_of(data, *STUDENT), data.relations.relations)
    optimizer = torch.optim.Adam(model.parameters(), lr=TrainConfig().lr, fused=True)
    steps = []
    for _ in range(options.steps):
        begin = time.perf_counter()
        optimizer.zero_grad()
        scores = model(data.x, edges)
        loss = cross_entropy(scores[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        steps.append(1e3 * (time.perf_counter() - begin))
        print(f"PyG {options.form}: loss {loss.item():.4f}, {steps[-1]:,.0f} ms", flush=True)
        del scores, loss
    return {"step_ms": quantiles(steps[1:])["p50"], "steps_ms": steps}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Largest difference of PyG's scores from ours, of either form of the edges."""
    arrays = arrays_of(options)
    data = arrays.graph_data()
    ours = model_of(data, *STUDENT).eval()
    assert data.relations is not None
    theirs = PygRGCN(ours, data.relations.relations).eval()
    expected = predict(ours, data)
    found = {}
    with torch.no_grad():
        for form in FORMS:
            difference = (theirs(data.x, pyg_edges(data, arrays, form)) - expected).abs().max()
            found[form] = float(difference / expected.abs().max())
            assert found[form] < 1e-5, f"PyG's scores differ by {found[form]}"
    return {"difference": found}


def measure(options: argparse.Namespace, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All phases but those that are there, after each what is known."""
    common = ["--folder", str(options.folder), "--steps", str(options.steps)]
    common += ["--threads", str(options.threads)]
    whole = [*common, "--scale", str(options.scale)]
    cases = {
        "check": [*common, "--scale", "0.01", "--phase", "check"],
        **{name: [*whole, "--phase", name] for name in ("data", "build", "distil")},
        **{f"pyg {form}": [*whole, "--phase", "pyg", "--form", form] for form in FORMS},
        "labels": [*whole, "--phase", "labels"],
    }
    for name, flags in cases.items():
        if name not in found:
            found[name] = phase(__file__, flags, limit_mb=options.limit_mb)
            yield found


PHASES = {
    "data": make_data,
    "build": build,
    "distil": lambda options: train(options, distil=True),
    "labels": lambda options: train(options, distil=False),
    "pyg": train_pyg,
    "check": check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/mag"), help="of all files")
    parser.add_argument("--scale", type=float, default=1.0, help="share of OGBN-Mag's size")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit-mb", type=float, default=20_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=result("mag"))
    parser.add_argument("--resume", action="store_true", help="keep the phases in --out")
    parser.add_argument("--phase", choices=[*PHASES], help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.phase:
        in_phase(lambda: PHASES[options.phase](options))
        return
    about = {"threads": options.threads, "scale": options.scale, "limit_mb": options.limit_mb}
    about["machine"] = machine_limits()
    found = {}
    if options.resume:
        report = json.loads(options.out.read_text())
        found = report["phases"]
        about["earlier"] = [*report.get("earlier", []), run_of(report)]
    for phases in measure(options, found):
        write_json(options.out, **about, phases=phases)


if __name__ == "__main__":
    main()
