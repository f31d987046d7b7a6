"""The table of targets: bounds, verdicts, and what a missed target would take."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import section_misses  # noqa: E402
import section_registry  # noqa: E402
import targets  # noqa: E402
from machines import DOCUMENTED, measured_machines, reports_of  # noqa: E402
from ratio_plot import draw_ratios  # noqa: E402
from registry.ratios import ratios  # noqa: E402
from targets import Line  # noqa: E402


@pytest.mark.parametrize(
    "line, target, value, met",
    [
        (Line("w", "a", 2.0, "r", low=2), ">= 2x", "2x", "yes"),
        (Line("w", "a", 1.99, "r", low=2), ">= 2x", "1.99x", "no"),
        (Line("w", "a", 99.0, "r", high=100, unit="MB"), "<= 100 MB", "99 MB", "yes"),
        (Line("w", "a", 1.2, "r", 0.9, 1.1, "exponent"), "0.9 to 1.1", "1.200", "no"),
        (Line("w", "a", 0.9, "r", low=0.85, unit="%"), ">= 85%", "90%", "yes"),
        (Line("w", "a", 3.0, "r"), "", "3x", ""),
    ],
)
def test_verdicts(line, target, value, met):
    assert line.cells() == ["w", "a", target, value, met]


def test_missed_ratio_says_what_it_would_take():
    machine = {"gemm_gflop_s": {"float32": 100.0}, "copy_gb_s": {"64": 50.0}}
    ours = {"gflop": 2.0, "gb": 0.1, "touched_mb": 10.0, "median_ms": 16.0}
    line = Line("loss", "eager", 25.0, "layer_pair", low=40, needs=(400.0, ours, machine))
    text = targets.reason(line)
    assert "40 times would be 10 ms, 200 GFLOP/s of what is counted" in text
    assert "ours takes 16 ms, 125 GFLOP/s, where a large product of torch's reaches 100." in text
    line = Line("loss", "eager", 25.0, "step", low=40, needs=(400.0, ours | {"gb": 2.0}, machine))
    assert "ours takes 16 ms, 125 GB/s, where a copy that touches as much reaches 50." in (
        targets.reason(line)
    )


def test_all_reports_give_their_lines():
    machines = {name: reports_of(name) for name in measured_machines()}
    found = targets.lines(machines[DOCUMENTED])
    text = "\n".join(targets.targets_section(machines))
    missed = [line for line in found if line.met is False]
    assert all(targets.reason(line) in text for line in missed)
    everywhere = [line for reports in machines.values() for line in targets.lines(reports)]
    assert {line.report for line in everywhere} == {
        "layer_pair", "step", "conv", "spmm", "latency", "growth", "growth_ops"
    }  # fmt: skip
    assert text.count("| no |") == sum(line.met is False for line in everywhere)


def test_loss_by_nodes_is_split_into_calls_and_rates():
    ours = {"config": "64x64", "nodes": 1000, "side": "abkd_fast", "gflop": 2.4, "gb": 0.016}
    report = {
        "machine": {"gemm_gflop_s": {"float32": 300.0}},
        "by_nodes": {"64x64": {"1": 2.0, "10": 2.1, "100": 3.0, "1000": 14.0, "read": 6.0}},
        "rows": [ours | {"side": "abkd_fast frozen", "gflop": 1.2}, ours],
    }
    head, *_, line, _ = section_misses.pair_profile(report)
    assert "a large product of torch's: 300 GFLOP/s" in head
    assert line == (  # ten nodes add less than what varies
        "- 64x64: 2 ms with one node; 100 nodes (2 MB) add 1 ms, 240 GFLOP/s; "
        "1,000 nodes (16 MB) add 12 ms, 200 GFLOP/s; to read the teacher (torch.sum) takes 6 ms."
    )
    assert section_misses.pair_profile(report | {"by_nodes": {}}) == []


def test_shares_of_a_step_are_of_its_median():
    common = {"case": "distil", "dataset": "cora", "median_ms": 10.0}
    spent = {name: float(ms) for name, ms in zip("abcdefg", (4, 1, 1, 1, 0.5, 0.5, 1), strict=True)}
    rows = [
        common | {"allocator": "default", "breakdown": spent},
        common | {"allocator": "page-keeping", "breakdown": spent},
    ]
    (line,) = [f for f in section_misses.step_profile({"rows": rows}) if f.startswith("-")]
    assert "10 ms: a 40%, b 10%, c 10%, d 10%, g 10%, e 5%, smaller ones 5%, " in line
    assert line.endswith("the rest 10%.")
    slow = [rows[0] | {"median_ms": 5.0}]  # the profiler took longer than the step does
    line = section_misses.step_profile({"rows": slow})[2]
    assert "5 ms: a 44%" in line and line.endswith("the rest 0%.")


def test_only_cases_behind_their_target_are_listed():
    def case(width, peer):
        times = {"abkd_fast": {"p50": 1.0}, "csr @ x": {"p50": peer}, "scipy": {"p50": 9.0}}
        return {"dataset": "some", "width": width, "what": "forward", "gb": 0.05,
                "touched_mb": 3.0, "ms": times}  # fmt: skip

    rows = [case(128, 1.4), case(128, 1.6), case(256, 1.3), case(512, 1.1)]
    report = {"rows": rows, "machine": {"copy_gb_s": {"4": 100.0, "1024": 30.0}}}
    text = "\n".join(section_misses.spmm_profile(report))
    assert text.startswith("2 of 4 cases are behind") and "(100 of 4 MB, 30 of 1024 MB)" in text
    assert "| some | 512 | forward | 1.000 | 1.10x | csr @ x | 3.0 | 50 | 50% |" in text
    assert "| some | 128 | forward | 1.000 | 1.40x |" in text and "| 256 |" not in text


def row(provider, p50, dtype="float32", **rest):
    label = "some, synthetic"
    found = {"op": "spmm", "graph": "some", "label": label, "width": "16", "dtype": dtype}
    found |= {"spec": f"spmm/{label}/16/{dtype}", "provider": provider, "p50": p50}
    return found | {"gb_s": 4.0, "touched_mb": 1.0} | rest


def report_of(rows, left_out=()):
    about = dict.fromkeys(("cpu", "torch", "python"), "x") | {"cores": 2, "threads": 1, "load": 0.5}
    return {
        "rows": rows,
        "left_out": list(left_out),
        "threads": 1,
        "machine": {"copy_gb_s": {"64": 8.0}},
        "created": "2000-01-01",
        "environment": about,
    }


def test_tiny_graphs_show_what_a_call_costs_at_the_least_width():
    rows = []
    for width in ("64", "4", "16"):
        case = {"graph": "tiny", "width": width, "spec": f"spmm/tiny/{width}/float32"}
        rows += [row("abkd_fast", int(width) / 1000) | case, row("PyG", 0.5) | case]
    text = "\n".join(section_registry.calls_section(report_of([*rows, row("abkd_fast", 1.0)])))
    assert "| spmm | 4 | 4 | PyG | 500 |" in text and text.count("| spmm |") == 1
    assert section_registry.calls_section(report_of([row("abkd_fast", 1.0)])) == []


def test_ratio_is_to_the_fastest_peer_that_was_right():
    names = {"abkd_fast": 2.0, "abkd_fast reference": 1.0, "PyG": 6.0, "torch CSR": 5.0}
    rows = [row(name, ms) for name, ms in names.items()] + [row("abkd_fast", 3.0, "bfloat16")]
    gone = {"spec": "spmm/some/16/float32", "provider": "scipy", "why": "wrong by 0.1"}
    rows += [row(name, 0.02) | {"graph": "tiny", "spec": "of a call"} for name in names]
    report = report_of(rows, [gone])
    (ours, peer), (_, missing), _ = ratios(report)
    assert (ours["p50"], peer["provider"], missing) == (2.0, "torch CSR", None)
    text = "\n".join(section_registry.registry_section(report))
    assert "| 2 | 4 | 50% | torch CSR | 2.5x |" in text and "scipy: wrong by 0.1" in text
    assert "tiny" not in text and text.count("| spmm |") == 2
    figure = draw_ratios({"registry": report})
    (dot,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dot.get_xdata()[0] == 2.5
