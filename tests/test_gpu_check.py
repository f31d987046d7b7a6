"""bench/gpu_check.py and its parts on a CPU, with tiny sizes: all but what a GPU measures."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import bench_gpu  # noqa: E402
import gpu_check  # noqa: E402
import gpu_graphs  # noqa: E402
import gpu_report  # noqa: E402
from gpu_check import Outcome, Part  # noqa: E402

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


def run(*arguments):
    command = [sys.executable, "-P", "bench/gpu_check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@no_gpu
def test_without_a_gpu_it_says_so_and_exits_with_2():
    done = run()
    assert done.returncode == 2
    assert done.stdout.startswith("gpu-check needs an NVIDIA GPU and a CUDA build of torch; torch ")


@no_gpu
@pytest.mark.slow
def test_dry_run_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    results = {part["name"]: part["result"] for part in report["parts"]}
    assert set(results) == {"tests/gpu", "memcheck", "racecheck", *gpu_check.BENCHES}
    assert set(results.values()) <= {"passed", "not run"}
    assert results["tests/gpu"] == "passed" and "limits" in report
    assert {row["op"] for row in report["rows"]} == {"spmm", "conv", "layer_pair"}
    for row in report["rows"]:
        assert "synthetic" in row["case"] or row["op"] == "layer_pair"
        assert row["gb"] > 0 and row["gflop"] > 0 and row["ms"]["abkd_fast"]["n"] > 0
    assert "not run" in done.stdout or results["memcheck"] == "passed"


def test_every_benchmark_has_a_budget_and_all_budgets_fit():
    assert set(gpu_check.BENCHES) == set(bench_gpu.PARTS)
    parts = gpu_check.parts("cuda", False, "9.0", Path("."))
    assert [part.name for part in parts][0] == "build"
    assert sum(part.budget for part in parts if part.optional or part.name in gpu_check.BENCHES) < (
        gpu_check.BUDGET
    )
    assert gpu_check.BUDGET < 600


def test_a_part_that_hangs_is_stopped_with_its_children(tmp_path):
    mark = tmp_path / "mark"
    nested = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {nested!r}])"
    part = Part("hangs", [sys.executable, "-c", code], 1.0)
    begin = time.monotonic()
    outcome = gpu_check.run_part(part, begin + 100)
    assert (outcome.result, outcome.why) == ("TIMED OUT", "stopped after 1 s")
    assert time.monotonic() - begin < 3
    time.sleep(3)
    assert not mark.exists()


def test_parts_end_with_what_their_commands_do():
    def end(code, deadline=100.0, **options):
        part = Part("part", [sys.executable, "-c", code], 60, **options)
        return gpu_check.run_part(part, time.monotonic() + deadline)

    assert end("print('hi')").result == "passed"
    failed = end("raise SystemExit(3)")
    assert (failed.result, failed.why) == ("FAILED", "exit code 3")
    assert end("pass", deadline=0.5).result == "TIMED OUT"
    refused = end("print('Device not supported'); raise SystemExit(1)", optional=True)
    assert (refused.result, refused.why) == ("not run", "the tool refuses this device")
    assert end("print('Device not supported'); raise SystemExit(1)").result == "FAILED"
    absent = gpu_check.run_part(Part("x", ["no-such-tool"], 9, optional=True), time.monotonic() + 9)
    assert (absent.result, absent.why) == ("not run", "no-such-tool is not installed")


def test_failures_are_listed_and_exit_with_1(tmp_path, capsys):
    report = {"device": {"name": "none"}, "limits": {}, "rows": [], "parts": []}
    outcomes = [Outcome("a", "passed", 1, 2), Outcome("b", "FAILED", 1, 2, "exit code 3", "trace")]
    with pytest.raises(SystemExit) as end:
        gpu_check.finish(report, outcomes, tmp_path / "out.json")
    printed = capsys.readouterr().out
    assert end.value.code == 1 and printed.rstrip().endswith("failed: b")
    assert "b: FAILED, exit code 3\ntrace" in printed


def test_table_rates_and_ratios():
    times = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "n": 9}
    row = {"op": "spmm", "case": "g, F=64", "dtype": "bfloat16", "gb": 2.0, "gflop": 4.0}
    row |= {"ms": {"abkd_fast": times, "peer": times | {"p50": 5.0}}, "left_out": {"p": "wrong"}}
    limits = {"copy_gb_per_s": 2000.0, "bf16_tflops": 8.0, "tf32_tflops": 1.0}
    lines = gpu_report.row_cells(row, limits)
    assert lines[0][3:] == ["abkd_fast", "2", "1000", "50%", "2", "25%", "1.00"]
    assert lines[1][3:] == ["peer", "5", "400", "20%", "0.8", "10%", "2.50"]
    assert lines[2][3:5] == ["p (wrong)", "-"]
    part = {"name": "b", "result": "FAILED", "why": "exit code 3", "seconds": 1, "budget": 2}
    text = gpu_report.table({"device": {}, "limits": limits, "rows": [row], "parts": [part]})
    assert "measured here: copy_gb_per_s 2000" in text and "FAILED" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("spmm")}) == 1


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 5), (500, 4000), (1000, 20_000)])
def test_rmat_has_its_size_and_skew(nodes, edges):
    graph = gpu_graphs.rmat(nodes, edges, "cpu", seed=1)
    assert (graph.num_dst, graph.num_src, graph.num_edges) == (nodes, nodes, edges)
    again = gpu_graphs.rmat(nodes, edges, "cpu", seed=1)
    assert torch.equal(again.rowptr, graph.rowptr) and torch.equal(again.col, graph.col)
    if nodes >= 500:
        degree = graph.rowptr.diff()
        assert int(degree.max()) > 5 * edges / nodes
        assert not torch.equal(gpu_graphs.rmat(nodes, edges, "cpu", seed=2).col, graph.col)


def test_without_data_the_label_says_synthetic(monkeypatch, tmp_path):
    monkeypatch.setenv("ABKD_DATA", str(tmp_path))
    graph, label = gpu_graphs.load("pubmed", "cpu")
    assert label == "pubmed size, synthetic R-MAT"
    assert (graph.num_dst, graph.num_edges) == gpu_graphs.SIZES["pubmed"]


def test_tests_of_the_gpu_are_collected_and_say_why_they_skip():
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skips) == 1 and "no GPU: `make gpu-check`" in skips[0], done.stdout[-2000:]


def test_a_peer_that_fails_is_named_and_ours_may_not():
    graph = gpu_graphs.rmat(50, 400, "cpu").gcn_norm()
    x = torch.randn(50, 8)
    right = bench_gpu.spmm_sides(graph, 8, torch.float32, "cpu")["abkd_fast"]

    def broken(x):
        raise RuntimeError("out of memory")

    sides = {"abkd_fast": right, "off": lambda x: right(x) + 1, "broken": broken}
    steps, left_out = bench_gpu.checked("spmm", graph, x, sides)
    assert list(steps) == ["abkd_fast"]
    assert left_out["broken"] == "RuntimeError: out of memory"
    assert left_out["off"].startswith("wrong by")
    with pytest.raises(SystemExit, match="abkd_fast differs from float64"):
        bench_gpu.checked("spmm", graph, x, {"abkd_fast": lambda x: right(x) + 1})
