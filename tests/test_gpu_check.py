"""bench/gpu_check.py and its parts on a CPU, with tiny sizes: all but what a GPU measures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import bench_gpu  # noqa: E402
import costs  # noqa: E402
import gpu_check  # noqa: E402
import gpu_compare  # noqa: E402
import gpu_graphs  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_report  # noqa: E402
from bench_gpu_graph import (  # noqa: E402
    conv_case,
    exact_extremum,
    exact_rows,
    extremum_case,
    sampled,
    spmm_case,
)
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
    assert list(results) == [part.name for part in gpu_parts.parts("cpu", True, "0.0", Path("."))]
    assert set(results.values()) <= {"passed", "not run"} and report["finished"]
    assert results["tests/gpu"] == "passed" and "limits" in report
    ops = {"spmm", "spmm max", "conv", "segment_csr", "dropout", "linear", "kl_div"}
    ops |= {"teacher_moments"}
    assert {row["op"] for row in report["rows"]} == ops | {"layer_pair", "step", "epoch"}
    for row in report["rows"]:
        assert "synthetic" in row["case"] or row["case"].startswith("N=")
        assert row["gb"] > 0 and row["gflop"] > 0 and row["ms"]["abkd_fast"]["n"] > 0
        assert row["ms"].keys() - {"abkd_fast"}, "a case without any peer"
    assert "not run" in done.stdout or results["memcheck"] == "passed"


def test_parts_are_in_the_order_of_their_importance():
    assert set(gpu_parts.BENCHES) == set(bench_gpu.PARTS)
    names = [part.name for part in gpu_parts.parts("cuda", False, "9.0", Path("."))]
    assert names[:3] == ["build", "tests/gpu", "limits"]
    first, second = names.index("memcheck"), names.index("racecheck")
    assert second == first + 1 and 3 < first < len(names) - 3
    assert names.index("step:pubmed") < first < names.index("spmm:ogbn-products")


def test_all_of_it_ends_before_ten_minutes_whatever_the_parts_do(tmp_path, capsys):
    parts = gpu_parts.parts("cuda", False, "9.0", tmp_path)
    assert sum(part.budget for part in parts) > gpu_check.BUDGET  # so the rest must be cut
    assert gpu_check.BUDGET + gpu_check.REAPING < 600
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    hanging = [Part(f"{k}", sleep, 1.5) for k in range(3)] + [Part("limits", sleep, 60)]
    begin = time.monotonic()
    out = tmp_path / "out.json"
    outcomes = gpu_check.run_all(hanging, begin + 4, tmp_path, out)
    results = [outcome.result for outcome in outcomes]
    assert results[:2] == ["TIMED OUT"] * 2 and results[-1] == "NO TIME"
    assert sum(outcome.seconds for outcome in outcomes) < 4.5
    assert outcomes[-1].why == "the parts before took all the time"
    report = json.loads(out.read_text())
    assert [part["result"] for part in report["parts"]] == results and report["finished"]
    assert "the parts before took all the time" in capsys.readouterr().out


def test_what_is_left_is_less_than_a_parts_budget():
    part = Part("part", [sys.executable, "-c", "import time; time.sleep(60)"], 60)
    outcome = gpu_check.run_part(part, time.monotonic() + 1.5)
    assert (outcome.result, outcome.why) == ("NO TIME", "stopped after the 1 s that were left")


def test_rows_of_a_part_that_was_stopped_are_kept(tmp_path):
    rows = {"rows": [{"op": "spmm"}]}
    (tmp_path / gpu_parts.file_name("spmm:pubmed")).write_text(json.dumps(rows))
    report = {"rows": [], "parts": []}
    gpu_check.add(report, Outcome("spmm:pubmed", "TIMED OUT", 30, 30, "stopped"), tmp_path)
    gpu_check.add(report, Outcome("conv:pubmed", "TIMED OUT", 30, 30, "stopped"), tmp_path)
    assert report["rows"] == [{"op": "spmm"}]
    assert [part["result"] for part in report["parts"]] == ["TIMED OUT"] * 2


def test_a_killed_run_leaves_its_results_and_no_process(tmp_path):
    out, mark = tmp_path / "out.json", tmp_path / "mark"
    nested = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = f"""
import sys, time
from pathlib import Path
sys.path[:0] = ["bench"]
import gpu_check
from gpu_check import Part
gpu_check.parts = lambda *_: [
    Part("first", [sys.executable, "-c", "print(1)"], 9),
    Part("second", [sys.executable, "-c", {nested!r}], 9),
]
sys.argv[1:] = ["--device", "cpu", "--out", {str(out)!r}]
gpu_check.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not out.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(5) == 128 + 15
    report = json.loads(out.read_text())
    assert [part["name"] for part in report["parts"]] == ["first"] and not report["finished"]
    time.sleep(2.5)
    assert not mark.exists()


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


def test_a_signal_waits_until_the_process_it_must_end_is_known():
    reached = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: reached.append(number))
    try:
        with gpu_check.signals_later():
            signal.raise_signal(signal.SIGTERM)
            assert reached == []
        assert reached == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_parts_end_with_what_their_commands_do():
    def end(code, deadline=100.0, **options):
        part = Part("part", [sys.executable, "-c", code], 60, **options)
        return gpu_check.run_part(part, time.monotonic() + deadline)

    assert end("print('hi')").result == "passed"
    failed = end("raise SystemExit(3)")
    assert (failed.result, failed.why) == ("FAILED", "exit code 3")
    assert end("pass", deadline=0.5).result == "NO TIME"
    refused = end("print('Device not supported'); raise SystemExit(1)", optional=True)
    assert (refused.result, refused.why) == ("not run", "the tool refuses this device")
    assert end("print('Device not supported'); raise SystemExit(1)").result == "FAILED"
    absent = gpu_check.run_part(Part("x", ["no-such-tool"], 9, optional=True), time.monotonic() + 9)
    assert (absent.result, absent.why) == ("not run", "no-such-tool is not installed")


def test_failures_are_listed_and_exit_with_1(capsys):
    outcomes = [Outcome("a", "passed", 1, 2), Outcome("b", "FAILED", 1, 2, "exit code 3", "trace")]
    with pytest.raises(SystemExit) as end:
        gpu_check.finish([*outcomes, Outcome("c", "NO TIME", 0, 2, "none left")])
    printed = capsys.readouterr().out
    assert end.value.code == 1 and printed.rstrip().endswith("not passed: b, c")
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
    torch.manual_seed(0)
    graph = gpu_graphs.rmat(50, 400, "cpu").gcn_norm()
    case = spmm_case(graph, "tiny", 8, torch.float32, "cpu")
    right = case.sides["abkd_fast"]

    def broken():
        raise RuntimeError("out of memory")

    def off():
        return lambda: [right()()[0] + 1]

    case.sides = {"abkd_fast": right, "off": off, "broken": broken}
    steps, left_out = gpu_compare.checked(case, "cpu")
    assert list(steps) == ["abkd_fast"]
    assert left_out["broken"] == "RuntimeError: out of memory"
    assert left_out["off"].startswith("wrong by")
    case.sides = {"abkd_fast": off}
    with pytest.raises(SystemExit, match="abkd_fast differs from float64"):
        gpu_compare.checked(case, "cpu")


@pytest.mark.parametrize("op", ["spmm", "spmm bfloat16", "conv", "spmm max"])
def test_on_the_cpu_one_wrong_row_of_ours_is_seen(op):
    torch.manual_seed(0)
    graph = gpu_graphs.rmat(3000, 20_000, "cpu").gcn_norm()
    if op.startswith("spmm") and op != "spmm max":
        dtype = torch.bfloat16 if "bfloat16" in op else torch.float32
        case = spmm_case(graph, "some", 8, dtype, "cpu")
    else:
        case = (conv_case if op == "conv" else extremum_case)(graph, "some", 8, "cpu")
    bound, found = gpu_compare.BOUNDS[case.dtype], case.sides["abkd_fast"]()()
    assert case.truth(found) <= bound
    for place, part in enumerate(found):  # the output, then its gradient
        row = int(part.float().norm(dim=1).sort().indices[part.size(0) // 2])
        wrong = [tensor.clone() for tensor in found]
        wrong[place][row] += part[row].abs().max()
        assert case.truth(wrong) > bound, f"{op}, tensor {place}"


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sample_of_rows_is_that_of_all(transposed):
    torch.manual_seed(0)
    graph, x = gpu_graphs.rmat(300, 2000, "cpu").gcn_norm(), torch.randn(300, 12)
    rows = torch.randperm(300)[:40]
    whole = exact_rows(graph, slice(None), lambda nodes: x[nodes], transposed)
    some = exact_rows(graph, rows, lambda nodes: x[nodes], transposed)
    assert torch.allclose(some, whole[rows], rtol=1e-12, atol=1e-12)
    if not transposed:
        largest, _ = exact_extremum(graph, x, torch.randn(300, 12))
        assert torch.equal(sampled(graph, rows, lambda nodes: x[nodes], "max"), largest[rows])


def test_differences_are_relative_to_rows_and_not_to_rows_of_zeros():
    found, expected = torch.ones(10_000, 4), torch.ones(10_000, 4)
    found[7] = 1.5
    assert gpu_compare.by_rows([found], [expected]) == pytest.approx(0.5)
    expected[7], found[7] = 0, 1e-7
    assert gpu_compare.by_rows([found], [expected]) < 1e-6
    found[7] = float("nan")
    assert gpu_compare.by_rows([found], [expected]) == float("inf")


def test_a_peer_without_room_is_named():
    gpu_compare.check_room(2 * 10**9, 3 * 10**9)
    with pytest.raises(MemoryError, match="needs 5 GB, 3 are free"):
        gpu_compare.check_room(5 * 10**9, 3 * 10**9)
    graph = gpu_graphs.rmat(50, 400, "cpu").gcn_norm()
    case = spmm_case(graph, "tiny", 8, torch.float32, "cpu")
    case.needs = {"gather + scatter": 10**15}
    steps, left_out = gpu_compare.checked(case, "cpu")
    assert "gather + scatter" not in steps and "torch.compile" in steps
    assert left_out["gather + scatter"].startswith("MemoryError: needs 1000000 GB, ")


def test_ties_of_a_maximum_may_share_its_gradient():
    out, dx = torch.randn(4, 5), torch.randn(1000, 20)
    shared, wrong = dx.clone(), dx.clone()
    shared[7, 3] *= 0.5
    wrong[::2] += 1
    assert gpu_compare.but_for_ties([out, dx], [out, shared]) == 1 / dx.numel()
    assert gpu_compare.but_for_ties([out, dx], [out, wrong]) == 0.5
    assert gpu_compare.but_for_ties([out + 1, dx], [out, dx]) > 0.1


def test_costs_of_small_cases_by_hand():
    # 2 rows, 3 edges, 4 wide: x of every edge and the output; pointers, columns, weights
    assert costs.spmm(2, 3, 4) == costs.Cost(24, 3 * 4 + 3 * 8 + (3 + 2) * 16, 36 + 2 * 2 * 16)
    # the same, and winners; then winners and dout of every edge, the transposed graph, dx
    both = costs.spmm_extremum(2, 3, 4, backward=True)
    forward = 36 + 5 * 16 + 2 * 4 * 4
    assert both.moved == forward + (3 * 4 + 3 * 12) + (3 * 4 * 8 + 2 * 16)
    assert costs.kl_div(5, 2, labels=True, backward=False) == costs.Cost(40, 80, 80)
    assert costs.kl_div(5, 2).moved == 2 * 40 + 3 * 40
    assert costs.teacher_moments(10, [2, 3]) == costs.Cost(20 * 13, 200 + 8 * 18, 200 + 8 * 18)
