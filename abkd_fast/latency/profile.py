"""The latency report of students beside their teacher: every number in one dictionary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checks import first_line
from abkd_fast._neighborhood import CONVS, operator, operator_name
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.inductive import predict
from abkd_fast.latency.breakdown import Breakdown, breakdown
from abkd_fast.latency.caches import cache_sweep, copy_bandwidth, copy_size, sweep_bytes
from abkd_fast.latency.measure import (
    ENOUGH,
    after_sweeps,
    check_seconds,
    compare,
    evaluating,
    thread_count,
    throughput,
)
from abkd_fast.latency.samples import Measurement
from abkd_fast.latency.server import NodeServer
from abkd_fast.latency.subjects import (
    FULL,
    ONE,
    Call,
    Subject,
    from_features,
    full_graph_calls,
    node_call,
    node_queries,
    start_tools,
)
from abkd_fast.metrics import count_parameters, environment, peak_bytes, split_scores
from abkd_fast.nn import MLP

FORMAT = 2
_SLOW = 50.0  # ms of a query above which clients' loops and sweeps are not worth their time


def profile(
    subjects: Sequence[Subject],
    data: GraphData,
    *,
    forms: Sequence[str] = ("eager", "flat"),
    samples: int = ENOUGH,
    seconds: float = 10.0,
    batch: int = 64,
    clients: Sequence[int] = (1, 2),
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every model on every kind of query, taking turns.

    Args:
        subjects: teacher and students.
        data: graph, features and labels.
        forms: of the full-graph pass: "eager", "flat", "compile", "torch-export", "aoti",
            "cuda_graph". A form that fails is left out, with the reason.
        samples: calls timed of each.
        seconds: of timed calls of each, at most; slow ones get fewer samples.
        batch: nodes of a mini-batch query.
        clients: numbers of threads that ask for single nodes in a closed loop.
        threads: torch's threads; None leaves them.
        seed: of the nodes that are drawn.

    Returns:
        The content of a latency.json.
    """
    check_seconds(seconds)
    device, calls = data.graph.device, dict[str, _Calls]()
    with thread_count(threads), torch.no_grad(), ExitStack() as stack:
        start_tools(forms, device)
        for subject in subjects:
            stack.enter_context(evaluating(subject.model))
            _read_by(subject.model, data)  # made once, before any model's first call
        graph = _prepare_graph(data)
        calls[FULL], full = _full_graph(subjects, data, forms, samples, seconds)
        queries = {FULL: full}
        rows = [_model_row(subject, data) for subject in subjects]
        left_out: dict[str, str] = {}
        servers = _servers(subjects, data, left_out)
        answering = _answering(subjects, servers, data)
        drawn = node_queries(data, batch, samples, seed)
        for kind, nodes in drawn.items():
            calls[kind] = {key: node_call(serve, nodes) for key, serve in answering.items()}
            queries[kind] = _node_times(calls[kind], samples, seconds)
        loops = _throughput(servers, queries[ONE], drawn[ONE], clients, min(1.0, seconds))
        facts = environment() | {"load": os.getloadavg()[0], "affinity": _affinity()}
        peak = peak_bytes()  # without the buffers of what follows
        queries = _with_cold_caches(queries, calls, device, seconds)
        for row in rows:
            row["copy_bytes"] = copy_size(row["moved_bytes"])
            row["copy_gb_s"] = copy_bandwidth(device, row["copy_bytes"])
    for row, subject in zip(rows, subjects, strict=True):
        name = subject.name
        row["queries"] = {kind: _rows(found, name) for kind, found in queries.items()}
        row["left_out"] = subject.left_out
        row["throughput"] = loops.get(name, [])
        row["prepare_ms"] = {what: 1e-6 * spent for what, spent in subject.prepare.items()}
        row["server"] = _server_facts(servers.get(name), left_out.get(name))
        row["gb_s"] = 1e-6 * row["moved_bytes"] / row["queries"][FULL]["eager"]["p50"]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": facts,
        "device": str(device),
        "seed": seed,
        "dataset": _dataset(data),
        "graph_prepare_ms": graph,
        "sweep_bytes": sweep_bytes(device),
        "models": rows,
        "peak_bytes": peak,
    }


_Found = dict[tuple[str, str], Measurement]  # (model, form)
_Calls = dict[tuple[str, str], Call]


def _full_graph(
    subjects: Sequence[Subject],
    data: GraphData,
    forms: Sequence[str],
    samples: int,
    seconds: float,
) -> tuple[_Calls, _Found]:
    names, calls = {}, {}
    for subject in subjects:
        subject.left_out.clear()
        subject.exported.clear()
        wanted = [form for form in dict.fromkeys(forms) if form != "eager"]
        made_of = full_graph_calls(subject.model, data, ["eager", *wanted], subject.exported)
        for form, call in made_of.items():
            key = f"{subject.name}, {form}"
            names[key], calls[key] = (subject, form), call
    made = {key for key, (_, form) in names.items() if form != "eager"}
    failed: dict[str, str] = {}
    found = compare(calls, samples=samples, seconds=seconds, compiled=made, failed=failed)
    for key, reason in failed.items():
        subject, form = names[key]
        subject.left_out[form] = reason
    keys = {key: (names[key][0].name, names[key][1]) for key in found}
    timed = {keys[key]: calls[key] for key in found}
    return timed, {keys[key]: one for key, one in found.items()}


def _answering(
    subjects: Sequence[Subject], servers: Mapping[str, NodeServer], data: GraphData
) -> dict[tuple[str, str], Callable[[Tensor], Tensor]]:
    """What answers node queries, by (model, form): servers, and exported programs likewise."""
    from abkd_fast.export import ExportedServer

    found: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    for subject in subjects:
        if subject.name in servers:
            found[subject.name, "server"] = servers[subject.name]
        for form, program in subject.exported.items():
            found[subject.name, form] = ExportedServer(program, data)
    return found


def _node_times(calls: _Calls, samples: int, seconds: float) -> _Found:
    """Without a cold call: building a server has run the model."""
    named = {", ".join(key): call for key, call in calls.items()}
    found = compare(named, samples=samples, seconds=seconds)
    return {key: replace(found[", ".join(key)], cold=None) for key in calls}


def _with_cold_caches(
    queries: Mapping[str, _Found],
    calls: Mapping[str, _Calls],
    device: torch.device,
    seconds: float,
) -> dict[str, _Found]:
    sweep = cache_sweep(device)
    swept = {}
    for kind, found in queries.items():
        swept[kind] = dict(found)
        for key, one in found.items():
            if one.p50 <= _SLOW:
                spent = after_sweeps(calls[kind][key], sweep, seconds=0.1 * seconds)
                swept[kind][key] = replace(one, cold_cache=spent)
    return swept


def _rows(found: _Found, name: str) -> dict[str, Any]:
    return {form: one.row() for (model, form), one in found.items() if model == name}


def _servers(
    subjects: Sequence[Subject], data: GraphData, left_out: dict[str, str]
) -> dict[str, NodeServer]:
    servers = {}
    for subject in subjects:
        begin = time.perf_counter_ns()
        try:
            servers[subject.name] = NodeServer(subject.model, data)
            subject.prepare["server"] = time.perf_counter_ns() - begin
        except ValueError as reason:
            left_out[subject.name] = first_line(reason)
    return servers


def _server_facts(server: NodeServer | None, reason: str | None) -> dict[str, Any]:
    if server is None:
        return {"left_out": reason}
    return {"hops": server.hops, "form": server.form, "why": server.why}


def _throughput(
    servers: Mapping[str, NodeServer],
    found: _Found,
    nodes: Sequence[Tensor],
    clients: Sequence[int],
    seconds: float,
) -> dict[str, list[dict[str, float]]]:
    """Closed loops of clients that ask for one node after the other."""
    loops = {}
    for name, server in servers.items():
        if found[name, "server"].p50 < _SLOW:
            loops[name] = throughput(node_call(server, nodes), clients, seconds)
    return loops


def _model_row(subject: Subject, data: GraphData) -> dict[str, Any]:
    """What is known of a model without timing queries, and its breakdown."""
    model = subject.model
    scores = split_scores(predict(model, data), data)
    arguments = from_features(model, data)
    costs = breakdown(model, lambda: model(*arguments))
    fits = subject.about is None or subject.about.fingerprint == data.fingerprint()
    return {
        "name": subject.name,
        "role": subject.role,
        "model": subject.about.spec if subject.about else type(model).__name__,
        "file": subject.source,
        "parameters": count_parameters(model),
        "dtype": _dtype(model),
        "metric": data.kind.metric,
        "accuracy": {split: scores[split] for split in ("train", "val", "test")},
        "same_data": fits,
        "memory_bytes": {
            "weights": sum(part.nbytes for part in (*model.parameters(), *model.buffers())),
            "graph": _graph_bytes(_read_by(model, data)),
            "features": _feature_bytes(data.x),
            "activations": costs.activations,
        },
        "moved_bytes": costs.moved,
        "layers": _layer_rows(costs),
        "ops": [{"op": op, "calls": calls, "ms": ms} for op, calls, ms in costs.by_op()],
    }


def _dtype(model: nn.Module) -> str | None:
    """Of the first weight, None without weights."""
    weight = next(model.parameters(), None)
    return None if weight is None else str(weight.dtype).removeprefix("torch.")


def _read_by(model: nn.Module, data: GraphData) -> CSRGraph | None:
    """The matrix that the layers of a model of ours multiply with; else the graph."""
    convs = [module for module in model.modules() if isinstance(module, CONVS)]
    if data.x is None or not convs:
        return None if isinstance(model, MLP) else data.graph
    try:
        return operator(operator_name(convs, data), data)
    except ValueError:
        return data.graph


def _layer_rows(costs: Breakdown) -> list[dict[str, Any]]:
    return [asdict(row) for row in costs.by_layer()]


def _prepare_graph(data: GraphData) -> dict[str, float]:
    """ms of what is done once for a graph, each on fresh copies."""
    edge_index, weight = data.graph.to_edge_index()
    times = {}
    begin = time.perf_counter_ns()
    graph = CSRGraph.from_edge_index(edge_index, data.num_nodes, weight)
    times["csr"] = time.perf_counter_ns() - begin
    for what, prepare in (("gcn_norm", graph.gcn_norm), ("transpose", graph.t)):
        begin = time.perf_counter_ns()
        prepare()
        times[what] = time.perf_counter_ns() - begin
    return {what: 1e-6 * spent for what, spent in times.items()}


def _dataset(data: GraphData) -> dict[str, Any]:
    stats = data.graph.degree_stats()
    return {
        "name": data.name,
        "num_nodes": data.num_nodes,
        "num_edges": data.graph.num_edges,
        "num_features": data.num_features,
        "num_classes": data.num_classes,
        "synthetic": data.synthetic,
        "sparse_features": isinstance(data.x, CSRGraph),
        "index_dtype": str(data.graph.col.dtype).removeprefix("torch."),
        "degree": {name: getattr(stats, name) for name in ("mean", "median", "max", "isolated")},
    }


def _graph_bytes(graph: CSRGraph | None) -> int:
    if graph is None:
        return 0
    value = 0 if graph.value is None else graph.value.nbytes
    return graph.rowptr.nbytes + graph.col.nbytes + value


def _feature_bytes(x: Tensor | CSRGraph | None) -> int:
    if x is None:
        return 0
    return _graph_bytes(x) if isinstance(x, CSRGraph) else x.nbytes


def _affinity() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
