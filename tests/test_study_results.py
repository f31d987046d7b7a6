"""Tables, rows and figures of records that no run made."""

import csv
import json

import pytest
import study_files
from run_records import read_png
from study_files import TINY, fake_record, run_fake, write_study

from abkd_fast.study.layer_maps import entropy, map_rows
from abkd_fast.study.predict import _counts, _to_be_joined
from abkd_fast.study.results import write_results
from abkd_fast.study.runner import failures
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.spec import load_study

SMALL = TINY.split("[methods.ABKD]")[0].replace("trials = 2", "trials = 1")


@pytest.fixture
def schedule(tmp_path):
    schedule = Schedule(load_study(write_study(tmp_path, SMALL)))
    run_fake(schedule)
    return schedule


def test_tables_word_for_word(schedule):
    # at lr 0.05: val = 89 + seed + 4 and test = 2 val - 90 for "none", 2 less for "kd"
    write_results(schedule)
    page = (schedule.study.folder / "tables.md").read_text().splitlines()
    start = page.index("## tiny: gcnii-2x8 to gcnii-2x2")
    assert page[start + 1 : start + 18] == [
        "",
        "Teacher gcnii-2x8: 99 parameters, test 1.00, validation 1.00.",
        "",
        "| method   |         test |   95 % interval |   validation |   n |   parameters |   fewer"
        " |   training, s (processor) |   inference, ms |   peak, MiB |",
        "|:---------|-------------:|----------------:|-------------:|----:|-------------:|--------:"
        "|--------------------------:|----------------:|------------:|",
        "| none     | 98.00 ± 2.00 | 96.00 to 100.00 | 94.00 ± 1.00 |   3 |           20 |    5.0x"
        " |                 3.0 (2.5) |            0.50 |         256 |",
        "| KD       | 94.00 ± 2.00 |  92.00 to 96.00 | 92.00 ± 1.00 |   3 |           20 |    5.0x"
        " |                 3.0 (2.5) |            0.50 |         256 |",
        "",
        "Differences at the same seeds; p after Holm's correction for the number of",
        "comparisons against the same method.",
        "",
        "| method   |   against |   difference |   95 % interval |   t-test, p |   signed-rank, p "
        "|   n |",
        "|:---------|----------:|-------------:|----------------:|------------:|-----------------:"
        "|----:|",
        "| KD       |      none |        -4.00 |  -4.00 to -4.00 |       1.000 |            0.250 "
        "|   3 |",
        "",
        "Mean validation figure of every trial:",
        "",
    ]
    assert page[-2].startswith('- none: `{"objective": "none", "train.lr": 0.05}`')


def test_latex_has_the_same_figures(schedule):
    write_results(schedule)
    text = (schedule.study.folder / "tables.tex").read_text()
    assert text.count("\\begin{tabular}") == 2 and text.count("\\toprule") == 2
    assert "none     & 98.00 $\\pm$ 2.00 & 96.00 to 100.00 & 94.00 $\\pm$ 1.00" in text
    assert "95 \\% interval" in text and "±" not in text


def test_rows_and_summaries(schedule):
    found = write_results(schedule)
    with (schedule.study.folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["recipe"], r["seed"], float(r["test"])) for r in rows] == [
        *(("none", "1", str(seed), 96.0 + 2 * seed) for seed in range(3)),
        *(("KD", "1", str(seed), 92.0 + 2 * seed) for seed in range(3)),
    ]
    assert json.loads(rows[0]["settings"]) == {"objective": "none", "train.lr": 0.05}
    plain = json.loads((schedule.study.folder / "results.json").read_text())
    assert plain["tasks"][0]["summaries"][0]["test"]["values"] == [96.0, 98.0, 100.0]
    (result,) = found
    assert result.pending == 0 and [s.current for s in result.summaries] == [True, True]


def test_earlier_recipes_are_listed_with_their_figure(schedule, tmp_path):
    path = write_study(tmp_path, SMALL.replace("lr = 0.05", "lr = 0.03"))
    later = Schedule(load_study(path))
    run_fake(later)
    (result,) = write_results(later)
    page = (later.study.folder / "tables.md").read_text()
    first, second = page.split("Earlier recipes, each with its own test figure:")
    assert "| none (recipe 2) | 98.00 ± 2.00" in first and "| none " in second
    assert [(s.method, s.recipe) for s in result.summaries if not s.current] == [
        ("none", 1),
        ("KD", 1),
    ]
    assert {c.method for c in result.comparisons} == {"KD"}  # of the recipes that count now


def test_unfinished_study_says_so(tmp_path):
    schedule = Schedule(load_study(write_study(tmp_path, SMALL)))
    assert write_results(schedule) == []

    class Enough(Exception):
        pass

    def stop(cell):
        if cell.kind == "final" and cell.seed == 1:
            raise Enough

    with pytest.raises(Enough):
        run_fake(schedule, stop)
    (result,) = write_results(schedule)
    assert result.pending == 5  # of frozen recipes: the searches are done
    assert "**5 runs are still to come.**" in (schedule.study.folder / "tables.md").read_text()


def test_figures_are_drawn(schedule):
    for row in schedule.runs.all():
        points = {"epoch": [0, 1, 2], "val_acc": [50.0, 60.0, 70.0], "val_loss": [1.0, 0.9, 0.8]}
        points |= {"gradient": [0.3, 0.2, 0.1]}
        if row["method"] == "KD":
            points |= {"norm.w": [1.0, 2.0, 3.0], "gradient.w": [0.1, 0.2, 0.1]}
            points["attention"] = [[0.2, 0.8], [0.6, 0.4]]
        schedule.traces.append({"key": row["key"], **points})
    write_results(schedule)
    found = {path.name for path in schedule.study.folder.glob("*.png")}
    task = "tiny-gcnii-2x8-gcnii-2x2"
    assert found == {
        *("accuracy.png", "pareto.png", f"training-{task}.png", f"norms-{task}.png"),
        f"attention-{task}-kd.png",
    }
    for name in found:
        width, height = read_png(schedule.study.folder / name)
        assert width > 300 and height > 200


def test_a_maps_entropy_is_one_where_uniform_and_zero_where_one_hot():
    assert entropy([[0.25] * 4] * 3) == pytest.approx(1)
    assert entropy([[0.0, 2.0], [1.0, 0.0]]) == 0
    assert entropy([[0.5, 0.5], [1.0, 0.0]]) == pytest.approx(0.5)
    assert entropy([[3.0]]) == 1


def test_rows_of_maps():
    run = {"attention": [[1.0, 0.0], [0.5, 0.5]], "abkd": [2.0, 0.5], "norm.subspace": [4.0, 2.0]}
    other = {"attention": [[0.0, 1.0], [0.5, 0.5]], "abkd": [2.0, 2.0]}
    joined = {k.replace("norm.", "norm.objectives.1."): v for k, v in run.items()}
    runs = {"KD": [{"ce": [1.0]}], "ABKD": [run, other], "one": [run], "sum": [joined]}
    found = map_rows(runs)
    assert found == [
        ["ABKD", "0.50", "0.50 0.50", "1.2", "0.5", "0.5"],
        ["one", "0.50", "0.75 0.25", "0.5", "0.25", "0.5"],
        ["sum", "0.50", "0.75 0.25", "0.5", "0.25", "0.5"],
    ]


def test_equal_figures_of_all_seeds_are_drawn(tmp_path, monkeypatch):
    """100 * 22 / 36 ten times over: the interval's ends are the mean, whatever its last digit."""

    def equal(cell):
        own = {"test": 100 * 22 / 36} if cell.kind == "final" else {}
        return {**fake_record(cell), **own}

    monkeypatch.setattr(study_files, "fake_record", equal)
    text = SMALL.replace("final_seeds = 3", "final_seeds = 10")
    schedule = Schedule(load_study(write_study(tmp_path, text)))
    run_fake(schedule)
    write_results(schedule)
    assert (schedule.study.folder / "pareto.png").exists()


def two_data_sets(tmp_path):
    head, tiny = SMALL.split("[datasets.tiny]")
    first, methods = tiny.split("[methods.none]")
    return write_study(
        tmp_path, f"{head}[datasets.tiny]{first}[datasets.more]{first}[methods.none]{methods}"
    )


def test_only_some_data_sets_run_and_results_are_of_all(tmp_path):
    path = two_data_sets(tmp_path)
    part = Schedule(load_study(path, only=["more"]))
    assert {cell.task.dataset for cell in run_fake(part)} == {"more"}
    whole = Schedule(load_study(path))
    run_fake(whole)
    write_results(whole)
    rows = (whole.study.folder / "runs.csv").read_text()
    write_results(Schedule(load_study(path, only=["more"])))
    assert (whole.study.folder / "runs.csv").read_text() == rows and rows.count("tiny") > 1


def test_prediction_counts_what_will_run(tmp_path):
    """Two teachers, several methods, and those that follow from recipes."""
    text = TINY.replace('teachers = ["gcnii-2x8"]', 'teachers = ["gcnii-2x8", "gcnii-3x8"]')
    schedule = Schedule(load_study(write_study(tmp_path, text)))
    predicted = sum(count for _, count in _counts(schedule).values())
    predicted += sum(_to_be_joined(schedule, task, {}).count for task in schedule.study.tasks)
    assert predicted == len(run_fake(schedule))
    assert _counts(schedule) == {}


def test_failures_are_those_of_the_file_as_it_is(tmp_path):
    path = write_study(tmp_path, SMALL)
    schedule = Schedule(load_study(path))
    while cells := list(schedule.pending()):
        cell = cells[0]
        error = "no" if cell.method == "KD" and cell.kind == "final" else None
        schedule.records(cell.kind).append({**fake_record(cell), "error": error})
    assert len(failures(schedule)) == 3 and all("KD" in line for line in failures(schedule))
    path.write_text(path.read_text().split("[methods.KD]")[0])
    assert failures(Schedule(load_study(path))) == []


def test_pending_counts_searches_too(tmp_path):
    schedule = Schedule(load_study(write_study(tmp_path, SMALL)))
    cells = iter(range(2))
    while next(cells, None) is not None:  # the teacher, and one trial run of the first method
        cell = next(schedule.pending())
        schedule.records(cell.kind).append(fake_record(cell))
    (result,) = write_results(schedule)
    assert result.pending == 2 * (2 + 3) - 1
