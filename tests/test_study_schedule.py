"""What a study runs next: the protocol itself, on records that no run made."""

import json
import re

import pytest
from study_files import TINY, fake_record, run_fake, write_study

from abkd_fast.study.records import Records
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.search import Trial, best, next_settings
from abkd_fast.study.spec import Range, load_study

SPACE = {"train.lr": Range(0.01, 0.1, True), "student_options.dropout": [0.0, 0.1, 0.2]}


def test_order_is_teacher_trials_recipes_runs(tmp_path):
    schedule = Schedule(load_study(write_study(tmp_path)))
    frozen_at_first_run = []

    def look(cell):
        if cell.kind == "final" and not frozen_at_first_run:
            frozen = json.loads((tmp_path / "study" / "recipes.json").read_text())["recipes"]
            frozen_at_first_run.append([entry["method"] for entry in frozen])

    asked = run_fake(schedule, look)
    kinds = [cell.kind for cell in asked]
    assert kinds == ["teacher"] + 16 * ["trial"] + 12 * ["final"]
    assert frozen_at_first_run == [["none", "KD", "ABKD", "KD + ABKD"]]
    assert len({cell.key for cell in asked}) == len(asked)
    # every method has the same budget
    for method in ("none", "KD", "ABKD", "KD + ABKD"):
        mine = [cell for cell in asked if cell.method == method]
        trials = {(cell.number, cell.seed) for cell in mine if cell.kind == "trial"}
        assert trials == {(0, 1000), (0, 1001), (1, 1000), (1, 1001)}
        assert [cell.seed for cell in mine if cell.kind == "final"] == [0, 1, 2]
    (joined,) = [cell for cell in asked if cell.method == "KD + ABKD"][:1]
    assert joined.settings["objective"] == "kd+abkd" and "kd.temperature" in joined.settings


def test_joined_methods_search_what_neither_fixes(tmp_path):
    fixed = TINY.replace('objective = "abkd"', 'objective = "abkd"\nsettings.kd.temperature = 3.0')
    schedule = Schedule(load_study(write_study(tmp_path, fixed)))
    asked = run_fake(schedule)
    joined = [cell for cell in asked if cell.method == "KD + ABKD"]
    assert {cell.settings["kd.temperature"] for cell in joined} == {3.0}


def test_starts_run_as_they_are_written(tmp_path):
    exact = TINY.replace("train.lr = 0.05", "train.lr = 0.054321")
    asked = run_fake(Schedule(load_study(write_study(tmp_path, exact))))
    first = {
        cell.settings["train.lr"] for cell in asked if cell.kind == "trial" and not cell.number
    }
    assert first == {0.054321}


def test_every_teacher_comes_before_the_first_student(tmp_path):
    """All runs of a task wait for its teacher: it must not start when all else is done."""
    two = TINY.replace('teachers = ["gcnii-2x8"]', 'teachers = ["gcnii-2x8", "gcnii-3x8"]')
    schedule = Schedule(load_study(write_study(tmp_path, two)))
    kinds = [cell.kind for cell in run_fake(schedule)]
    assert kinds[:2] == ["teacher", "teacher"] and "teacher" not in kinds[2:]


def test_recipe_is_the_best_trial_on_validation(tmp_path):
    schedule = Schedule(load_study(write_study(tmp_path)))
    asked = run_fake(schedule)
    (task,) = schedule.study.tasks
    (recipe,) = schedule.recipes.of(task, "none")
    trials = [cell for cell in asked if cell.kind == "trial" and cell.method == "none"]
    means = [
        sum(fake_record(cell)["val"] for cell in trials if cell.number == number) / 2
        for number in (0, 1)
    ]
    assert recipe["trials"] == means and recipe["val"] == max(means)
    assert recipe["trial"] == means.index(max(means))
    chosen = next(cell for cell in trials if cell.number == recipe["trial"])
    assert recipe["settings"] == chosen.settings
    runs = [cell for cell in asked if cell.kind == "final" and cell.method == "none"]
    assert all(cell.settings == recipe["settings"] for cell in runs)


def test_restart_asks_for_the_same(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_fake(Schedule(load_study(write_study(tmp_path / "a"))))
    path, parts = write_study(tmp_path / "b"), []
    for _ in range(len(whole)):  # a new process for every single run
        schedule = Schedule(load_study(path))
        cell = next(schedule.pending())
        schedule.records(cell.kind).append(fake_record(cell))
        parts.append(cell)
    assert [cell.key for cell in parts] == [cell.key for cell in whole]
    assert list(Schedule(load_study(path)).pending()) == []


def test_later_recipe_is_added_and_runs_too(tmp_path):
    path = write_study(tmp_path)
    run_fake(Schedule(load_study(path)))
    before = (tmp_path / "study" / "recipes.json").read_text()
    path.write_text(TINY.replace("kd.temperature = [1.0, 2.0]", "kd.temperature = [4.0]"))
    schedule = Schedule(load_study(path))
    asked = run_fake(schedule)
    (task,) = schedule.study.tasks
    first, second = schedule.recipes.of(task, "KD")
    assert (first["recipe"], second["recipe"]) == (1, 2)
    assert json.loads(before)["recipes"] == schedule.recipes.of(task)[:4]
    assert second["settings"]["kd.temperature"] == 4.0
    assert {cell.method for cell in asked} == {"KD", "KD + ABKD"}  # the others are as they were


def test_more_seeds_are_the_same_recipe(tmp_path):
    path = write_study(tmp_path)
    run_fake(Schedule(load_study(path)))
    path.write_text(TINY.replace("final_seeds = 3", "final_seeds = 4"))
    asked = run_fake(Schedule(load_study(path)))
    assert [(cell.kind, cell.seed) for cell in asked] == 4 * [("final", 3)]


def test_joined_method_has_the_budget_of_the_one_it_is_joined_with(tmp_path):
    path = write_study(tmp_path)
    own = "[methods.KD]\nfinal_seeds = 2\nunequal = 'dear'"
    path.write_text(TINY.replace("[methods.KD]", own))
    asked = run_fake(Schedule(load_study(path)))
    seeds = {name: 0 for name in ("none", "KD", "ABKD", "KD + ABKD")}
    for cell in asked:
        if cell.kind == "final":
            seeds[cell.method] += 1
    assert seeds == {"none": 3, "KD": 2, "ABKD": 3, "KD + ABKD": 2}


def test_failed_trials_count_and_can_be_retried(tmp_path):
    path = write_study(tmp_path)
    schedule = Schedule(load_study(path))
    while cells := list(schedule.pending()):
        cell, record = cells[0], fake_record(cells[0])
        if cell.kind == "trial" and cell.method == "KD":
            record = {**cell.about(), "error": "TrainingError: loss is not finite"}
        schedule.records(cell.kind).append(record)
    (task,) = schedule.study.tasks
    assert {entry["method"] for entry in schedule.recipes.of(task)} == {"none", "ABKD"} | {
        "KD + ABKD"
    }
    assert len(schedule.runs.all()) == 9
    again = Schedule(load_study(path), retry=True)
    assert {cell.method for cell in again.pending() if cell.kind == "trial"} == {"KD"}


def test_settings_of_another_studys_recipe(tmp_path):
    run_fake(Schedule(load_study(write_study(tmp_path))))
    text = TINY.replace("trials = 2", 'trials = 0\nbase = {study = "study.toml", method = "KD"}')
    text = re.sub(r"(?s)\[search\].*?(?=\[datasets)", "", text).replace(
        "search.kd.temperature = [1.0, 2.0]", "settings.kd.temperature = 8.0"
    )
    path = tmp_path / "ablation.toml"
    path.write_text(text.split("[best_with]")[0])
    schedule = Schedule(load_study(path))
    asked = run_fake(schedule)
    assert [cell.kind for cell in asked] == ["teacher"] + 9 * ["final"]
    (task,) = schedule.study.tasks
    frozen = json.loads((tmp_path / "study" / "recipes.json").read_text())["recipes"]
    base = next(entry["settings"] for entry in frozen if entry["method"] == "KD")
    none, kd = (schedule.recipes.of(task, name)[0]["settings"] for name in ("none", "KD"))
    assert none == {**base, "objective": "none"} and kd == {**base, "kd.temperature": 8.0}
    path.write_text(text.split("[best_with]")[0].replace('method = "KD"', 'method = "AT"'))
    with pytest.raises(ValueError, match="study.base must be frozen for tiny: gcnii-2x8"):
        list(Schedule(load_study(path)).pending())


def test_next_settings_follow_from_the_records_alone():
    start = [{"train.lr": 0.05, "kd.temperature": 2.0}]
    first = next_settings(SPACE, start, [], "seed")
    assert first["train.lr"] == 0.05 and set(first) == set(SPACE)
    done = [Trial(first, [80.0, 82.0])]
    for _ in range(6):
        found = next_settings(SPACE, start, done, "seed")
        reordered = dict(reversed(SPACE.items()))
        assert found == next_settings(reordered, start, done, "seed")
        assert 0.01 <= found["train.lr"] <= 0.1
        assert found["student_options.dropout"] in (0.0, 0.1, 0.2)
        done.append(Trial(found, None if len(done) == 2 else [70.0]))
    assert len({trial.settings["train.lr"] for trial in done}) == 7
    assert next_settings(SPACE, start, done, "other") != next_settings(SPACE, start, done, "seed")


def test_best_is_the_first_of_equals_and_never_a_failed_one():
    trials = [Trial({}, None), Trial({}, [1.0, 3.0]), Trial({}, [2.0, 2.0]), Trial({}, [1.0])]
    assert best(trials) == 1
    assert best(trials[:1]) is None


def test_record_that_a_kill_cut_off_is_made_again(tmp_path):
    path = tmp_path / "r.jsonl"
    records = Records(path)
    records.append({"key": "a", "val": 1})
    records.append({"key": "b", "val": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "c", "va')
    records = Records(path)
    assert records.get("c") is None and records.get("b") == {"key": "b", "val": 2}
    records.append({"key": "c", "val": 3})
    assert path.read_bytes() == whole + b'{"key": "c", "val": 3}\n'
    records.append({"key": "a", "val": 4})
    assert [record["val"] for record in Records(path).all()] == [4, 2, 3]
    path.write_bytes(b'{"key": "a"}\nnonsense\n')
    with pytest.raises(ValueError, match="one JSON record with a key in every line.*in line 2"):
        Records(path)
