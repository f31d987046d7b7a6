"""Pages of figures are what bench/write_docs.py makes of the JSON files."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import roofline  # noqa: E402
import undistilled  # noqa: E402
import write_docs  # noqa: E402
from gpu_report import PEAKS  # noqa: E402

SIZES = [
    {"N": 100, "E": 700, "F": 16, "C": 5, "D": 64, "S": 8, "L": 4},
    {"N": 19_717, "E": 108_365, "F": 64, "C": 3, "D": 4096, "S": 16, "L": 64},
    {"N": 1, "E": 0, "F": 1, "C": 1, "D": 6, "S": 1, "L": 3},
]


@pytest.fixture(scope="module")
def reports():
    """All machines', the documented one's, GPUs'."""
    machines, gpus = write_docs.all_reports()
    return machines, write_docs.documented(machines), gpus


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"N={sizes['N']}")
@pytest.mark.parametrize("formula", roofline.FORMULAS, ids=lambda f: f"{f.op}-{f.what[:9]}")
def test_formulas_are_what_the_costs_count(formula, sizes):
    cost = formula.cost(sizes)
    assert eval(formula.flop, {}, sizes) == cost.flop
    assert eval(formula.moved, {}, sizes) == cost.moved


def test_pages_are_up_to_date(reports):
    machines, cpu, gpus = reports
    again = "run python bench/write_docs.py"
    expected = "\n".join(roofline.page(cpu, gpus))
    assert (ROOT / "docs/roofline.md").read_text() == expected, again
    assert (ROOT / "docs/benchmarks.md").read_text() == "\n".join(write_docs.page(machines)), again
    table = "\n".join(write_docs.readme_table(machines))
    page = undistilled.page(json.loads(undistilled.RESULTS.read_text()))
    assert (ROOT / "docs/study/undistilled.md").read_text() == page, "run bench/undistilled.py"
    marked = {"README.md": ("bench", table)}
    marked["docs/latency.md"] = ("latency", "\n".join(write_docs.latency_page(machines)))
    marked["docs/export.md"] = ("serve", "\n".join(write_docs.serve_section(cpu["serve"])))
    for page, (mark, text) in marked.items():
        assert f"<!-- {mark} -->\n{text}\n<!-- end -->" in (ROOT / page).read_text(), again


def test_every_op_is_on_the_page(reports):
    from abkd_fast.ops import OPS

    shown = {line.op for line in roofline.entries(reports[1])}
    assert {*OPS, "spmm max", "teacher_moments", "whole step"} <= shown
    assert {formula.op for formula in roofline.FORMULAS} <= shown


def test_costs_are_those_of_the_reports(reports):
    lines = [line for line in roofline.entries(reports[1]) if line.ms is not None]
    assert len(lines) > 20
    for line in lines:
        rows = reports[1][line.report]["rows"]
        row = next(row for row in rows if roofline.milliseconds(_ours(row)) == line.ms)
        assert line.cost.row()["gflop"] == pytest.approx(row["gflop"])
        assert line.cost.row()["gb"] == pytest.approx(row["gb"])


def _ours(row):
    return row if row.get("side", "abkd_fast") == "abkd_fast" else None


def test_without_a_gpu_the_page_says_so_and_has_no_figure(reports):
    section = "\n".join(roofline.page(reports[1], {})).split("## On a GPU")[1]
    assert "No GPU has been measured" in section and "|" not in section
    assert not re.search(r"\d+ ?(ms|GB/s|TFLOP/s|%)", section.replace("100 %", ""))


def test_with_a_report_of_one_its_columns_stand_there(reports):
    row = {"op": "spmm", "case": "g, F=64", "dtype": "bfloat16", "gb": 2.0, "gflop": 4.0}
    row |= {"ms": {"abkd_fast": {"p50": 2.0}}}
    limits = {"copy_gb_per_s": 2000.0, "bf16_tflops": 8.0, "tf32_tflops": 1.0}
    report = {"created": "2000-01-01T00:00:00Z", "limits": limits, "rows": [row]}
    report |= {"device": {"name": "a device of this test"}}
    text = "\n".join(roofline.page(reports[1], {"test/gpu.json": report}))
    assert "### a device of this test" in text and "No GPU has been measured" not in text
    assert "| spmm | g, F=64 | bfloat16 | 2 | 1 | 2 | 50% | 1000 | 2 |" in text
    assert set(PEAKS.values()) <= set(limits)
