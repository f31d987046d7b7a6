"""The registry of benchmarks: wrong providers are refused, slower versions are found."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from abkd_fast import metrics
from abkd_fast._checkout import find_checkout

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from harness import check_kept  # noqa: E402
from limits import copy_rate  # noqa: E402
from registry.base import renewed  # noqa: E402
from registry.compare import compare, read, slower  # noqa: E402
from registry.report import with_kept  # noqa: E402

from bench import check_out, main, parse  # noqa: E402

LINEAR = """
import sys
sys.path.insert(0, sys.argv[1])
import bench
from registry.cases import OPS

def replace(wrong):
    OPS["linear+gradient"] = type(entry)(wrong, *list(vars(entry).values())[1:])

entry = OPS["linear+gradient"]
flags = ["--quick", "--graphs", "tiny", "--turns", "1"]
"""
WRONG_PROVIDER = (
    LINEAR
    + """
def with_wrong(*arguments):
    case = entry.make(*arguments)
    right = case.sides["F.linear"]

    def make():
        step = right()
        return lambda: [1.01 * part for part in step()]

    def make_nan():
        step = right()

        def run():  # the output is right, a gradient is not a number
            out, *gradients = step()
            return [out, *gradients[:-1], gradients[-1] * float("nan")]

        return run

    case.sides["one percent off"] = make
    case.sides["one not a number"] = make_nan
    return case

replace(with_wrong)
flags += ["--only", "linear*", "--out", "report.json", "--providers", "F.linear", "one*"]
sys.exit(bench.main(flags))
"""
)
WRONG_OURS = (
    LINEAR
    + """
def with_wrong(*arguments):
    case = entry.make(*arguments)
    right = case.sides["abkd_fast"]
    case.sides["abkd_fast"] = lambda: lambda: [1.01 * part for part in right()()]
    return case

if sys.argv[2] == "wrong":
    replace(with_wrong)
sys.exit(bench.main([*flags, "--providers", "none", *sys.argv[3:]]))
"""
)


def run_linear(folder, how, *flags):
    """The registry in a fresh process, ours `right` or `wrong` in linear's case."""
    command = [sys.executable, "-c", WRONG_OURS, str(ROOT / "bench"), how, *flags]
    if "--keep" in flags:
        command[2] = WRONG_OURS.replace(', "--providers", "none"', "")
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment(), check=False
    )


def environment(tree=ROOT):
    """Of a process that is no worker of this run: pytest-benchmark times nothing in one.

    With one thread: a second one waits for a core while other processes are at work.
    """
    rest = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join(filter(None, [str(tree), rest.get("PYTHONPATH")]))
    return rest | {"PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def report(**medians):
    """A synthetic report: 20 samples within 5 percent of each median."""
    rows = []
    for name, ms in medians.items():
        provider, spec = ("torch CSR", "spmm") if name == "peer" else ("abkd_fast", name)
        quantiles = {"p20": 0.97 * ms, "p50": ms, "p80": 1.03 * ms, "n": 20}
        rows.append({"spec": f"{spec}/pubmed/64/float32", "provider": provider} | quantiles)
    return {"rows": rows, "left_out": []}


def compared(before, after, threshold=1.2):
    console = Console(file=io.StringIO(), width=160)
    return compare(before, after, threshold, console), console.file.getvalue()


def test_a_row_that_looks_slower_is_judged_by_its_second_timing():
    before, after = report(spmm=1.0, conv=1.0), report(spmm=3.0, conv=1.7)
    assert [pair.spec[:4] for pair in slower(before, after, 1.2)] == ["spmm", "conv"]
    again = report(spmm=1.1, conv=1.1), report(spmm=3.1, conv=1.1)
    both = [renewed(*sides) for sides in zip((before, after), again, strict=True)]
    assert [pair.spec[:4] for pair in slower(*both, 1.2)] == ["spmm"]
    kept = renewed(before, report(conv=9.0))  # spmm was not timed again, or failed
    assert [row["p50"] for row in kept["rows"]] == [1.0, 9.0]


def test_wrong_provider_is_reported_and_not_timed(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-c", WRONG_PROVIDER, str(ROOT / "bench")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert {row["provider"] for row in found["rows"]} == {"abkd_fast", "F.linear"}
    assert [gone["provider"] for gone in found["left_out"]] == [
        "one percent off",
        "one not a number",
    ]
    assert "one percent off: wrong by 0.01" in done.stdout
    assert "one not a number: wrong by inf" in done.stdout
    assert all(row["p50"] > 0 and row["of_copy"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_ours_being_wrong_everywhere_is_told_compared_and_renewed(tmp_path):
    pytest.importorskip("pytest_benchmark")
    case = "linear+gradient/tiny/64/float32"
    only = ["--only", "linear*", "--out"]
    before = run_linear(tmp_path, "right", *only, "a.json")
    assert before.returncode == 0, before.stdout + before.stderr
    done = run_linear(tmp_path, "wrong", *only, "b.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"not timed: {case}, abkd_fast: abkd_fast differs from float64 by 0.01" in done.stdout
    assert "flags must leave" not in done.stdout
    (row,) = read(tmp_path / "a.json")["rows"]
    assert row["label"] == "tiny size, synthetic R-MAT"
    console = Console(file=io.StringIO(), width=160)
    sides = read(tmp_path / "a.json"), read(tmp_path / "b.json")
    assert compare(*sides, 1.2, console) == 1
    assert f"wrong: {row['spec']}: abkd_fast differs from float64" in console.file.getvalue()
    again = run_linear(tmp_path, "right", *only, "b.json", "--keep")
    assert again.returncode == 0, again.stdout + again.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["left_out"] == [] and found["rows"]


def test_flags_that_leave_no_case_end_with_2(tmp_path):
    pytest.importorskip("pytest_benchmark")
    done = run_linear(tmp_path, "wrong", "--only", "nothing*")
    assert done.returncode == 2 and "flags must leave a case" in done.stdout


def test_folder_that_cannot_be_written_is_noticed_before_anything_is_timed(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "a.json", tmp_path):
        assert main(["--only", "nothing*", "--out", str(out)]) == 2
        assert f"--out must be a file that can be written, got {out}" in capsys.readouterr().out
    check_out(tmp_path / "new" / "a.json")
    assert not list((tmp_path / "new").iterdir())


def test_slower_row_is_named_and_gives_exit_code_1():
    code, text = compared(report(spmm=1.0, conv=2.0), report(spmm=1.5, conv=2.0))
    assert code == 1
    assert "slower: spmm/pubmed/64/float32: 1 -> 1.5 ms, 1.50 times" in text
    assert "slower: conv" not in text and "1 of 2 rows slower" in text


@pytest.mark.parametrize("ms", [1.19, 1.0, 0.5])
def test_within_the_threshold_or_faster_is_no_regression(ms):
    code, text = compared(report(spmm=1.0), report(spmm=ms))
    assert code == 0 and "no row slower" in text
    assert ("faster" in text) == (ms == 0.5)


def test_overlapping_samples_are_noise():
    before, after = report(spmm=1.0), report(spmm=1.5)
    before["rows"][0]["p80"] = 1.6
    assert compared(before, after)[0] == 0


def test_peers_are_a_control_and_no_regression():
    code, text = compared(report(spmm=1.0, peer=1.0), report(spmm=1.0, peer=2.0))
    assert code == 0 and "peers: 2.00 times" in text


def test_plain_torch_does_not_count_and_a_back_end_is_named():
    before, after = report(spmm=1.0, conv=1.0), report(spmm=1.0, conv=2.0)
    for side in (before, after):
        side["rows"][1]["provider"] = "abkd_fast reference"
    code, text = compared(before, after)
    assert code == 0 and "\nslower:" not in text and "abkd_fast reference" in text
    for side in (before, after):
        side["rows"][1]["provider"] = "abkd_fast triton"
    code, text = compared(before, after)
    assert code == 1
    assert "\nslower: conv/pubmed/64/float32, abkd_fast triton: 1 -> 2 ms, 2.00 times" in text


@pytest.mark.parametrize("spec", ["conv/pubmed/64/float32", "conv/pubmed, synthetic/64/float32"])
def test_case_in_which_ours_became_wrong_gives_exit_code_1(spec):
    before, after = report(spmm=1.0, conv=1.0), report(spmm=1.0)
    facts = {"op": "conv", "graph": "pubmed", "width": "64", "dtype": "float32", "spec": spec}
    before["rows"][1] |= facts
    gone = {"spec": "conv/pubmed/64/float32", "provider": "abkd_fast", "why": "ValueError: no"}
    code, text = compared(before, after | {"left_out": [gone]})
    assert code == 1 and f"wrong: {spec}: ValueError: no" in text
    code, text = compared(before, {"rows": [], "left_out": [gone]})  # nothing in common
    assert code == 1 and f"wrong: {spec}: ValueError: no" in text
    code, text = compared(before, after | {"left_out": [gone | {"provider": "PyG"}]})
    assert code == 0 and "wrong:" not in text
    code, text = compared(report(spmm=1.0), after | {"left_out": [gone]})  # was not timed before
    assert code == 0 and "wrong:" not in text


def test_rows_of_one_report_are_named():
    code, text = compared(report(spmm=1.0, conv=1.0), report(spmm=1.0, linear=1.0))
    assert code == 0
    assert "only before: conv/pubmed" in text and "only after: linear/pubmed" in text


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="must have a row of abkd_fast in common"):
        compared(report(conv=1.0), report(linear=1.0))


def test_reports_of_other_threads_are_an_error():
    with pytest.raises(ValueError, match="as many threads, got 1 and 2"):
        compared(report(conv=1.0) | {"threads": 1}, report(conv=1.0) | {"threads": 2})


def test_reports_of_other_processors_are_an_error():
    sides = [report(conv=ms) | {"environment": {"cpu": name}} for ms, name in ((1, "A"), (2, "B"))]
    with pytest.raises(ValueError, match="the same processor, got A and B"):
        compared(*sides)
    assert compared(sides[0], report(conv=1.0))[0] == 0


def test_line_of_what_was_not_timed_goes_when_its_case_is_timed():
    case = {"op": "spmm", "graph": "tiny", "width": "64", "dtype": "float32"}
    gone = {"spec": "spmm/tiny/64/float32", "provider": "abkd_fast", "why": "wrong"}
    row = report(spmm=1.0)["rows"][0] | case | {"spec": "spmm/tiny, synthetic/64/float32"}
    timed, both = {"rows": [row], "left_out": []}, [gone, gone | {"provider": "PyG"}]
    assert with_kept(timed, {"rows": [], "left_out": both}) == timed
    found = with_kept({"rows": [], "left_out": [gone]}, {"rows": [row], "left_out": []})
    assert found == {"rows": [], "left_out": [gone]}


def test_report_that_does_not_say_its_run_keeps_no_rows():
    with pytest.raises(ValueError, match="got none of created, .*environment.cpu.*another --out"):
        check_kept(report(spmm=1.0) | {"threads": 1}, 1)


def test_cases_that_are_not_timed_again_are_kept():
    about = {"commit": "abc", "load": 0.5, "cpu": metrics.environment()["cpu"]}
    header = {"created": "2026-01-02", "environment": about, "threads": 2}
    before = report(spmm=1.0, conv=2.0) | header
    both = with_kept(report(spmm=3.0), before)
    assert [(row["spec"], row["p50"]) for row in both["rows"]] == [
        ("conv/pubmed/64/float32", 2.0),
        ("spmm/pubmed/64/float32", 3.0),
    ]
    assert both["earlier"] == [{"created": "2026-01-02", "commit": "abc", "load": 0.5}]
    assert [row.get("run") for row in both["rows"]] == ["2026-01-02", None]
    assert "earlier" not in with_kept(report(spmm=3.0, conv=1.0), before)
    later = both | header | {"created": "2026-01-03"}
    again = with_kept(report(conv=4.0), later)  # of the first run nothing is left
    assert [run["created"] for run in again["earlier"]] == ["2026-01-03"]
    undated = before | {"earlier": [{"created": "2026-01-01", "commit": "a", "load": 1.0}]}
    again = with_kept(report(spmm=3.0), undated)  # rows that do not say of which run they are
    assert [run["created"] for run in again["earlier"]] == ["2026-01-01", "2026-01-02"]
    assert not any("run" in row for row in again["rows"])
    with pytest.raises(ValueError, match="the threads of this run, 1, got 2"):
        check_kept(before, 1)
    about["cpu"] = "another"
    with pytest.raises(ValueError, match="the processor of this run, .*, got another"):
        check_kept(before, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "--out", "nowhere.json"], "--keep needs a report in --out"),
        (["--base", "main", "--out", "a.json"], "--compare and --base write no report, got --out"),
        (["--keep", "--out", __file__, "--providers", "PyG"], "it goes without --providers"),
        (["--compare", "a", "b", "--only", "spmm*"], "it goes without --only"),
        (["--compare", "a", "b", "--quick", "--graphs", "tiny"], "without --quick, --graphs"),
        (["--compare", "a", "b", "--providers", "PyG"], "it goes without --providers"),
        (["--compare", "a", "b", "--turns", "3"], "it goes without --turns"),
        (["--base", "main", "--providers", "PyG"], "it goes without --providers"),
        (["--threshold", "1.3"], "it needs --compare or --base"),
        (["--no-samples"], "it needs --out"),
        (["--base", "main", "--threshold", "nan"], "a number of more than 1, got nan"),
        (["--base", "main", "--threshold", "inf"], "a number of more than 1, got inf"),
        (["--turns", "0"], "--turns must be 1 or more, got 0"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ['{"rows": [{"width": 4}]}', "[1]", '{"rows": [1]}', '{"rows": null}', "{}", "{", "\udcff",
     '{"rows": [], "left_out": [1]}', '{"rows": [], "environment": null}',
     json.dumps(report(spmm=float("nan"))), json.dumps(report(spmm=0.0))],
)  # fmt: skip
def test_another_json_is_refused(text, tmp_path, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(report(spmm=1.0)))
    bad.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match="must be a report of `abkd-fast bench --out`"):
        read(bad)
    assert main(["--compare", str(good), str(bad)]) == 2
    assert f"error: {bad} must be a report" in capsys.readouterr().out


def test_rate_of_a_copy_does_not_jump_between_the_sizes_measured():
    machine = {"copy_gb_s": {"1": 100.0, "4": 80.0, "1024": 20.0}}
    assert [copy_rate(machine, mb) for mb in (0.0, 0.5, 1, 4, 1024, 5000)] == [
        100.0, 100.0, 100.0, 80.0, 20.0, 20.0
    ]  # fmt: skip
    assert copy_rate(machine, 2.0) == pytest.approx(90.0)
    assert copy_rate(machine, 64.0) == pytest.approx(50.0)
    assert copy_rate({"copy_gb_s": {"64": 50.0}}, 10.0) == 50.0


def test_command_needs_a_checkout(tmp_path):
    with pytest.raises(OSError, match="bench must run in a checkout of abkd_fast"):
        find_checkout(tmp_path)
    assert find_checkout(tmp_path, ROOT / "abkd_fast" / "ops") == ROOT


def test_command_compares_and_hands_on_the_exit_code(tmp_path):
    for name, ms in (("a.json", 1.0), ("b.json", 2.0)):
        (tmp_path / name).write_text(json.dumps(report(spmm=ms)))
    command = [sys.executable, "-m", "abkd_fast", "bench", "--compare", "a.json", "b.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 1, done.stderr
    assert "slower: spmm/pubmed/64/float32: 1 -> 2 ms, 2.00 times" in done.stdout


@pytest.mark.slow
def test_base_catches_a_slowed_op(tmp_path):
    """A second pass in ops/spmm.py of a clone's working tree; real processes, real times."""
    pytest.importorskip("pytest_benchmark")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    shutil.copytree(ROOT / "bench", clone / "bench", dirs_exist_ok=True)
    for file in (ROOT / "abkd_fast").glob("_C*.so"):
        shutil.copy2(file, clone / "abkd_fast")
    (clone / "abkd_fast" / "kernels").symlink_to("../kernels")
    op = clone / "abkd_fast/ops/spmm.py"
    forward = '        return torch.ops.abkd_fast.spmm(rowptr, col, value, x, reduce == "mean")\n'
    source = op.read_text()
    assert source.count(forward) == 1
    second = forward.replace("return ", "")
    op.write_text(source.replace(forward, second + forward))
    flags = ["--base", "HEAD", "--only", "spmm/*/64/float32", "linear*", "--turns", "3"]
    command = [sys.executable, "-m", "abkd_fast", "bench", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=clone, env=environment(clone), check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    slower = [line for line in done.stdout.splitlines() if line.startswith("slower: ")]
    assert len(slower) == 1 and slower[0].startswith("slower: spmm/pubmed"), done.stdout
    assert "timed again with the sides exchanged" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "linear+gradient/" in line]
    assert rows and "abkd_fast" in rows[0]  # compared too
    assert not list((clone / ".git").glob("worktrees/*"))
