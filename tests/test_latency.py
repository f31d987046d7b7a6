"""abkd_fast.latency: samples, quantiles, turns, clients, cost by op."""

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from abkd_fast import data, latency
from abkd_fast.latency import caches
from abkd_fast.latency.measure import TURN, after_sweeps
from abkd_fast.latency.subjects import full_graph_calls, node_queries, start_tools
from abkd_fast.nn import GCN, GCNII, GATConv

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.parametrize(("quantile", "count"), [(0.5, 1), (0.9, 64), (0.95, 130), (0.99, 662)])
def test_samples_needed_is_the_binomial_bound(quantile, count):
    assert latency.samples_needed(quantile) == count
    if count > 1:
        assert binom.cdf(1, count, 1 - quantile) <= 0.01 < binom.cdf(1, count - 1, 1 - quantile)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1.0])
def test_samples_needed_rejects(quantile):
    with pytest.raises(ValueError, match=r"quantile must lie in \(0, 1\)"):
        latency.samples_needed(quantile)


def test_quantiles_are_left_out_below_their_count():
    times = tuple(range(1_000_000, 1_000_000 + 129))
    measured = latency.Measurement("x", times)
    assert measured.quantile(0.9) == pytest.approx(1e-6 * np.quantile(times, 0.9))
    assert measured.quantile(0.95) is None
    row = measured.row()
    assert row["p99"] is None and row["left_out"]["p99"] == "needs 662 samples, has 129"
    assert set(row["left_out"]) == {"p95", "p99"}
    assert row["samples_ns"] == list(times) and row["n"] == 129
    assert row["min"] == 1.0 and row["iqr"] == pytest.approx(64e-6)
    assert "p90" in str(measured) and "p99" not in str(measured)
    assert latency.Measurement("x", times + times[:1]).quantile(0.95) is not None


def test_measure_calls_with_the_inputs_in_turn_and_restores_the_mode():
    seen, model = [], nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    model.register_forward_pre_hook(
        lambda module, args: seen.append((args[0], module.training, torch.is_grad_enabled()))
    )
    queries = [(torch.full((1, 2), float(i)),) for i in range(3)]
    found = latency.measure(model, queries, samples=7, warmup=2)["eager"]
    assert found.count == 7 and found.cold is not None and found.compile is None
    assert len(seen) == 1 + 2 + 1 + 7  # the first of a turn is no sample
    order = [int(x[0, 0]) for x, _, _ in seen]
    assert order == list(itertools.islice(itertools.cycle(range(3)), len(order)))
    assert not any(training or grads for _, training, grads in seen)
    assert model.training and not model[1].training


def test_measured_times_are_of_the_call():
    found = latency.measure(time.sleep, (0.002,), samples=5, warmup=0)["eager"]
    assert found.min >= 2.0
    assert all(ns >= 2_000_000 for ns in (*found.samples, found.cold))


def test_compare_takes_turns_and_stops_when_the_time_is_used():
    order = []
    subjects = {
        "a": lambda: order.append("a"),
        "b": lambda: (order.append("b"), time.sleep(0.05))[0],
    }
    found = latency.compare(subjects, samples=60, seconds=1.0, warmup=1)
    assert found["a"].count == 60
    assert 1 <= found["b"].count < 60
    turns = [(name, len(list(group))) for name, group in itertools.groupby(order)]
    # a's cold call and warm-up, b's, then turns of one call and the samples
    assert turns[0] == ("a", 2) and turns[1] == ("b", 2) and turns[2] == ("a", 1 + TURN)
    assert order.count("a") == 2 + 3 + 60


def test_interrupted_samples_are_marked_and_counted():
    found = latency.measure(lambda: None, samples=50)["eager"]
    assert len(found.interrupted) == found.count == 50
    assert len(found.undisturbed) == 50 - sum(found.interrupted)
    assert found.row()["interrupted"] == sum(found.interrupted)
    mixed = latency.Measurement("x", (1_000_000, 9_000_000), interrupted=(False, True))
    assert mixed.undisturbed == (1_000_000,) and mixed.row()["undisturbed_p50"] == 1.0
    assert latency.Measurement("x", (5,)).undisturbed == (5,)


def test_compiled_subjects_keep_compilation_apart():
    calls = []
    found = latency.compare(
        {"x": lambda: calls.append(time.sleep(0.02 if not calls else 0))},
        samples=3,
        warmup=0,
        compiled={"x"},
    )["x"]
    assert found.compile >= 20_000_000 > found.cold


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    seen = []
    latency.measure(lambda: seen.append(torch.get_num_threads()), samples=2, threads=before + 1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forms": ("fast",)}, "forms must be among eager, compile, cuda_graph"),
        ({"forms": ()}, "forms must be among"),
        ({"inputs": []}, "inputs must hold at least one tuple"),
        ({"samples": 0}, "samples must be >= 1"),
        ({"seconds": 0.0}, r"seconds must be finite and > 0, got 0\.0"),
        ({"seconds": float("nan")}, "seconds must be finite and > 0, got nan"),
        ({"seconds": float("inf")}, "seconds must be finite and > 0, got inf"),
        ({"forms": ("cuda_graph",)}, "inputs must be one tuple with CUDA tensors"),
    ],
)
def test_measure_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        latency.measure(lambda *_: None, **arguments)


def test_calls_after_sweeps_are_each_preceded_by_one():
    order = []
    sweep = lambda: order.append("sweep")  # noqa: E731
    spent = after_sweeps(lambda: order.append("call"), sweep, calls=5)
    assert order == ["sweep", "call"] * 5 and len(spent) == 5
    slow = after_sweeps(lambda: time.sleep(0.002), lambda: None, calls=50, seconds=1e-9)
    assert len(slow) == 3 and min(slow) >= 2_000_000
    assert latency.Measurement("x", (5,), cold_cache=(1, 3, 8)).row()["cold_cache"] == 3e-6
    assert latency.Measurement("x", (5,)).row()["cold_cache"] is None


def test_a_sweep_is_twice_the_largest_cache(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    assert caches.last_level(tmp_path) is None
    for place, size in enumerate(("48K", "2M")):
        (tmp_path / f"index{place}").mkdir()
        (tmp_path / f"index{place}" / "size").write_text(f"{size}\n")
    assert caches.last_level(tmp_path) == 2 * 1024**2
    for level, size in ((1_000_000, 2_000_000), (10**9, 256_000_000), (None, 64_000_000)):
        monkeypatch.setattr(caches, "last_level", lambda level=level: level)
        assert caches.sweep_bytes(cpu) == size
    monkeypatch.setattr(caches, "sweep_bytes", lambda device: 4_000)
    assert torch.equal(caches.cache_sweep(cpu)(), torch.ones(1_000))


def test_copies_touch_what_was_asked_for():
    assert [caches.copy_size(size) for size in (0, 5_000_000, 10**12)] == [
        1_000_000,
        5_000_000,
        256_000_000,
    ]
    begin = time.perf_counter()
    assert caches.copy_bandwidth(torch.device("cpu"), 1_000_000) > 0
    assert time.perf_counter() - begin < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*")
def test_every_model_pays_for_its_own_compilation(digits):
    torch.manual_seed(0)
    models = [GCNII(64, 4, 2, 10).eval() for _ in range(2)]
    start_tools(("compile",), digits.graph.device)
    calls = {}
    for place, model in enumerate(models):
        for form, call in full_graph_calls(model, digits, ["eager", "compile"]).items():
            calls[f"{place} {form}"] = call
    made = {name for name in calls if name.endswith("compile")}
    found = latency.compare(calls, samples=5, warmup=1, compiled=made)
    first, second = (1e-6 * found[f"{place} compile"].compile for place in range(2))
    assert second > first / 10 and first < 10 * second
    for place in range(2):
        expected = found[f"{place} eager"].result
        torch.testing.assert_close(found[f"{place} compile"].result, expected)
        assert max(found[f"{place} compile"].samples) < 1e6 * second / 5  # kept, not made again


def test_throughput_runs_so_many_clients():
    threads = set()

    def query():
        threads.add(threading.current_thread())
        time.sleep(0.005)

    rows = latency.throughput(query, clients=(1, 3), seconds=0.1)
    assert [row["clients"] for row in rows] == [1, 3] and len(threads) == 4
    for row in rows:
        assert 0 < row["queries_per_s"] <= 200 * row["clients"]
    assert all(row["p50"] >= 5 for row in rows)
    with pytest.raises(ValueError, match="clients must be >= 1"):
        latency.throughput(query, clients=(0,))
    with pytest.raises(ValueError, match="seconds must be finite and > 0, got nan"):
        latency.throughput(query, seconds=float("nan"))
    with pytest.raises(ZeroDivisionError):
        latency.throughput(lambda: 1 / 0, clients=(2,), seconds=0.01)


def test_breakdown_names_ops_layers_bytes_and_activations(digits):
    model = GCN(64, 16, 2, 10).eval()
    graph = digits.graph.gcn_norm()
    found = latency.breakdown(model, lambda: model(digits.x, digits.graph), repeats=3)
    layers = found.by_layer()
    assert [row.layer for row in layers] == ["convs.0", "convs.1"]
    convs = [cost for cost in found.calls if cost.op == "abkd_fast.conv"]
    assert len(convs) == 2 and all(cost.ms > 0 for cost in found.calls)
    assert found.moved == sum(cost.moved for cost in found.calls)
    rows, edges = digits.num_nodes, graph.num_edges
    csr = graph.rowptr.nbytes + graph.col.nbytes + graph.value.nbytes
    weights = 4 * (64 * 16 + 16)
    # x is read, x W [N, 16] written, 16 columns an edge gathered, the rows and their sums written
    assert convs[0].moved == csr + weights + 4 * (rows * 64 + 16 * (rows + edges) + rows * 16 + 16)
    assert found.activations >= 4 * rows * (16 + 10)
    assert sum(count for _, count, _ in found.by_op()) == len(found.calls)


def test_breakdown_of_any_callable():
    x = torch.randn(100, 100)
    found = latency.breakdown(lambda: (x @ x).relu(), repeats=2)
    assert [cost.op for cost in found.calls] == ["mm", "relu"]
    assert found.calls[0].moved == 3 * 40_000  # x twice as an argument, the product once
    assert found.activations == 80_000
    out = torch.empty(100, 100)
    found = latency.breakdown(lambda: torch.mm(x, x, out=torch.empty_like(out)).relu_(), repeats=2)
    moved = {cost.op: cost.moved for cost in found.calls}
    assert moved["mm.out"] == 3 * 40_000 and moved["relu_"] == 2 * 40_000
    assert moved["empty_like"] == 0


def test_breakdown_counts_what_an_op_writes_and_does_not_return():
    rows = [torch.randn(100, 100) for _ in range(2)]
    found = latency.breakdown(lambda: torch._foreach_mul_(rows, 0.5), repeats=2)
    (cost,) = [cost for cost in found.calls if cost.op.startswith("_foreach_mul_")]
    assert cost.moved == 2 * 2 * 40_000  # read and written


def test_breakdown_counts_a_row_for_every_edge_of_attention(digits):
    conv = GATConv(64, 8, heads=2, add_self_loops=False).eval()
    found = latency.breakdown(conv, lambda: conv(digits.x, digits.graph), repeats=2)
    (cost,) = [cost for cost in found.calls if cost.op == "abkd_fast.edge_attention"]
    assert cost.moved > digits.graph.num_edges * 16 * 4


def test_flat_forward_gives_the_models_scores(digits):
    torch.manual_seed(0)
    for model in (GCNII(64, 8, 3, 10), GCN(64, 16, 2, 10, norm="batch_norm")):
        with torch.no_grad():
            expected = model.eval()(digits.x, digits.graph)
        call = latency.flat_forward(model, digits)
        torch.testing.assert_close(call(), expected)  # eval batch normalisation fuses otherwise
        assert torch.equal(call(), call())


def test_flat_forward_is_the_first_to_read_a_graph():
    fresh = data.load("digits")
    model = GCNII(64, 8, 3, 10).eval()
    call = latency.flat_forward(model, fresh)
    with torch.no_grad():
        torch.testing.assert_close(call(), model(fresh.x, fresh.graph))


def test_flat_forward_reads_features_that_change(digits):
    """A GCN could start from A_hat X, which is known: a pass from X on must not."""
    torch.manual_seed(0)
    model, own = GCN(64, 16, 2, 10).eval(), replace(digits, x=digits.x.clone())
    assert own.aggregated_x is not None
    call = latency.flat_forward(model, own)
    own.x.mul_(3.0)
    with torch.no_grad():
        torch.testing.assert_close(call(), model(own.x, own.graph))
        (eager,) = full_graph_calls(model, own, ["eager"]).values()
        torch.testing.assert_close(eager(), model(own.x, own.graph))


def test_flat_forward_finds_the_features_by_name(digits):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = GCN(64, 8, 2, 10)

        def forward(self, graph, x):
            return self.model(x, graph)

    model = Turned().eval()
    with torch.no_grad():
        expected = model(digits.graph, digits.x)
    torch.testing.assert_close(latency.flat_forward(model, digits)(), expected)
    with pytest.raises(ValueError, match="the model must take x and the data have it"):
        latency.flat_forward(_GraphAlone(), digits)


class _GraphAlone(nn.Module):
    def forward(self, graph):
        return graph.rowptr


def test_a_required_aggregated_x_is_given(digits):
    class Aggregated(nn.Module):
        def forward(self, aggregated_x, graph):
            return aggregated_x * 2.0

    (eager,) = full_graph_calls(Aggregated(), digits, ["eager"]).values()
    torch.testing.assert_close(eager(), digits.aggregated_x * 2.0)


def test_node_queries_are_as_many_as_samples(digits):
    queries = node_queries(digits, batch=8, count=70, seed=0)
    assert [len(nodes) for nodes in queries.values()] == [70, 1, 70]
    batches = queries["8 nodes"]
    assert all(nodes.unique().numel() == 8 for nodes in batches)
    assert len({tuple(nodes.tolist()) for nodes in batches}) == 70
    assert batches[0].untyped_storage().nbytes() == 8 * 8


def test_subjects_that_fail_are_left_out_where_asked():
    def fails():
        raise RuntimeError("no\nway")

    later = itertools.count()

    def fails_later():
        if next(later) == 2:
            raise AssertionError

    calls, failed = {"a": fails, "b": lambda: 1, "c": fails_later}, {}
    found = latency.compare(calls, samples=3, compiled={"a", "c"}, failed=failed)
    assert list(found) == ["b"] and failed == {"a": "no", "c": "AssertionError"}
    with pytest.raises(RuntimeError, match="no"):
        latency.compare({"a": fails}, samples=3, failed=failed)  # not one that is made
    with pytest.raises(RuntimeError, match="no"):
        latency.compare({"a": fails}, samples=3, compiled={"a"})


def check(script, *flags):
    """What a script of bench/ says, with one thread: a second one waits for a core in bursts."""
    command = [sys.executable, f"bench/{script}", "--band", "1.5", *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_medians_agree_with_torchs_timer():
    """Half as much again: both time the same calls in turns, on a machine that does more."""
    assert check("check_latency.py").count("agree") == 3


@pytest.mark.slow
def test_means_agree_with_the_clock_of_another_process():
    assert "agree" in check("check_one_shot.py", "--calls", "7000")


def test_the_documentations_example_runs(capsys):
    page = (ROOT / "docs/latency.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "latency.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "eager: p50" in shown and "torch.Size([1, 10])" in shown and "abkd_fast.conv" in shown
