"""Queries of single nodes to exported students: in the process, and by examples/serve.py's HTTP.

    ABKD_DATA=data python bench/bench_serve.py [--datasets cora arxiv] [--seconds 6]

The weights are random (latency does not depend on them) and the same on every side; scores are
compared with a full pass before anything is timed. 256 nodes are drawn uniformly and asked for in
turn. A GCN whose features allow it (dense ones: arxiv's, OGBN-Arxiv's real graph with synthetic
features) is also exported with the first hop computed beforehand. HTTP is around the last program
of each model. Rows of data sets that are not run again are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from harness import check_kept, kept_rows, write_json
from machines import result
from torch import Tensor, nn

from abkd_fast import data, latency
from abkd_fast.export import FORMATS, ExportedServer, export_student
from abkd_fast.inductive import predict
from abkd_fast.nn import GCN, ModelSpec

CASES = {"cora": ["gcnii-4x4", "gcn-2x16"], "arxiv": ["gcn-2x256"]}
MESSAGES = 1 << 30  # bytes of one row an edge, which ONNX's program makes of the whole graph
SERVER = Path(__file__).resolve().parents[1] / "examples/serve.py"


def example() -> Any:
    """examples/serve.py as a module."""
    spec = importlib.util.spec_from_file_location("serve", SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def formats(model: nn.Module, graph: data.GraphData) -> list[str]:
    """ONNX where its runtime is installed and its messages fit; AOTInductor's last."""
    wanted = ("onnx", "onnxscript", "onnxruntime")
    widest = max(weight.size(0) for weight in model.parameters() if weight.dim() == 2)
    fits = 4 * widest * graph.graph.num_edges < MESSAGES
    onnx = fits and all(importlib.util.find_spec(name) is not None for name in wanted)
    return ["torch-export", *(["onnx"] if onnx else []), "aoti"]


def servers(
    model: nn.Module, graph: data.GraphData, folder: Path
) -> Iterator[tuple[str, latency.NodeServer | ExportedServer]]:
    hops = [False, True] if isinstance(model, GCN) and graph.aggregated_x is not None else [False]
    for first_hop in hops:
        suffix = ", first hop beforehand" if first_hop else ""
        yield f"NodeServer{suffix}", latency.NodeServer(model, graph, first_hop=first_hop)
        for form in formats(model, graph):
            path = folder / f"{form}-{first_hop}{FORMATS[form]}"
            exported = export_student(model, graph, path, format=form, first_hop=first_hop)
            yield f"{form}{suffix}", ExportedServer(exported, graph)


def ask(server: Any, turn: Iterator[int]) -> Tensor:
    return server(torch.tensor([next(turn)]))


def row_of(name: str, spec: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    read = data.arxiv_features if name == "arxiv" else partial(data.load, name)
    graph = read(root=options.root)
    torch.manual_seed(0)
    model = ModelSpec.parse(spec).build(graph.num_features, graph.num_classes).eval()
    expected, found = predict(model, graph), dict(servers(model, graph, folder))
    drawn = torch.randint(graph.num_nodes, (256,), generator=torch.Generator().manual_seed(0))
    for side, server in found.items():
        for node in drawn[:32]:
            torch.testing.assert_close(server(node[None]), expected[node][None], msg=side)
    calls = {side: partial(ask, server, cycle(drawn.tolist())) for side, server in found.items()}
    timed = latency.compare(calls, samples=options.samples, seconds=options.seconds)
    last = list(found)[-1]
    http, clients = example().measure(
        found[last], graph.num_nodes, options.samples, options.seconds, options.clients
    )
    timed[f"HTTP around {last}"] = http["HTTP"]
    for side, measurement in timed.items():
        print(name, spec, side, measurement, flush=True)
    sides = {side: measurement.row(samples=False) for side, measurement in timed.items()}
    return {"dataset": name, "model": spec, "sides": sides, "clients": clients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--samples", type=int, default=latency.samples_needed(0.99))
    parser.add_argument("--seconds", type=float, default=6.0, help="of timed calls of a side")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("serve"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = json.loads(options.out.read_text()) if options.out.exists() else None
    if before:
        check_kept(before, options.threads)
    kept, new = before["rows"] if before else [], list[dict[str, Any]]()
    for name in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            new += [row_of(name, spec, options, Path(folder)) for spec in CASES[name]]
        kept = [row for row in kept if row["dataset"] != name]
        kept, earlier = kept_rows(before, kept) if kept else ([], [])
        together = sorted(kept + new, key=lambda row: list(CASES).index(row["dataset"]))
        write_json(options.out, threads=options.threads, rows=together, earlier=earlier)


if __name__ == "__main__":
    main()
