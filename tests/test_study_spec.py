"""Study files: what they may say, and what is refused by name."""

import re
from pathlib import Path

import pytest

from abkd_fast.presets import distill_preset
from abkd_fast.study.flags import known_flags, with_flags
from abkd_fast.study.spec import Range, load_study

WHOLE = """
[study]
trials = 3
trial_seeds = 2
final_seeds = 4
against = ["none"]

[settings]
train.epochs = 20

[search]
train.lr = {low = 0.01, high = 0.1, log = true}
"student-options.dropout" = [0.0, 0.1]

[[start]]
train.lr = 0.05

[datasets.digits]
teachers = ["gcnii-2x8", "gcnii-3x8"]
students = ["gcnii-2x2", "gcnii-2x4"]

[datasets.cora]
preset = "paper-cora"
settings.train.epochs = 30

[methods.none]
objective = "none"

[methods.KD]
objective = "kd"
search.kd.temperature = [1.0, 2.0]
settings.train.lr = 0.03
"""


def read(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_study(path)


def test_grid_settings_and_search(tmp_path):
    study = read(tmp_path, WHOLE)
    assert [task.name for task in study.tasks] == [
        "digits: gcnii-2x8 to gcnii-2x2",
        "digits: gcnii-2x8 to gcnii-2x4",
        "digits: gcnii-3x8 to gcnii-2x2",
        "digits: gcnii-3x8 to gcnii-2x4",
        "cora: gcnii-64x64 to gcnii-4x4",
    ]
    assert study.folder == tmp_path / "mine"
    none, kd = study.methods.values()
    assert none.search == {
        "train.lr": Range(0.01, 0.1, True),
        "student_options.dropout": [0.0, 0.1],
    }
    assert list(kd.search) == ["student_options.dropout", "kd.temperature"]  # lr is fixed for it
    config = study.tasks[-1].config({**kd.settings, "kd.temperature": 2})
    assert (config.dataset, config.teacher, config.student) == ("cora", "gcnii-64x64", "gcnii-4x4")
    assert config.train.epochs == 30 and config.train.lr == 0.03
    assert config.kd.temperature == 2.0 and config.objective == "kd"
    assert config.train.weight_decay == distill_preset("paper-cora").train.weight_decay
    assert study.tasks[0].config({}).train.epochs == 20


def test_flags_are_distills():
    flags = known_flags()
    assert {"train.lr", "abkd.beta", "student_options.dropout", "inductive"} <= set(flags)
    assert not {"seeds", "out", "teacher"} & set(flags)
    assert with_flags(distill_preset(None), {"train.patience": 5}).train.patience == 5
    assert with_flags(distill_preset(None), {"train.patience": "none"}).train.patience is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[study]", "[studdy]", "the file must have known keys only, got 'studdy'; did you mean s"),
        ("trials = 3", "trial = 3", "[study] must have known keys only, got 'trial'; did you mean"),
        ("train.epochs = 20", 'student = "gcnii-2x2"', "must name its students in students = [..."),
        (
            'objective = "kd"',
            'objective = "kd"\nsettings.inductive = true',
            "leave students, teachers",
        ),
        ("trials = 3", "trials = 2.5", "study.trials must be a whole number >= 0, got 2.5"),
        ("trials = 3", "trials =", "must be TOML, got: Invalid value (at line 3"),
        ("trials = 3", "trials = 0", "[methods.none] must search nothing with trials = 0, got tra"),
        ('against = ["none"]', 'against = ["KDD"]', "study.against must be among none, KD, got 'K"),
        ("train.epochs = 20", "train.epoch = 20", "[settings] must name flags of abkd-fast distil"),
        ("train.epochs = 20", "seeds = 5", "got 'seeds'; the study sets it"),
        ("train.epochs = 20", 'train.epochs = "x"', "train.epochs must be int, got 'x'"),
        ("train.epochs = 20", "train.epochs = 0", "epochs must be >= 1, got 0"),
        ("high = 0.1", "high = 0.001", "search.train.lr must have low < high"),
        ("low = 0.01", "low = 0", "and low > 0 with log = true"),
        ("[0.0, 0.1]", "[0.0, 1.5]", "dropout must be in [0, 1), got 1.5"),
        ("[0.0, 0.1]", "0.1", "must be a list of choices or {low, high, log}, got 0.1"),
        ("lr = 0.05", "lr = 0.5", "[[start]] must lie in the search, got train.lr = 0.5"),
        ('"gcnii-2x8", ', '"gcni-2x8", ', "teacher must be FAMILY-LAYERSxWIDTH"),
        ('"paper-cora"', '"paper-corra"', "preset must be one of paper-cora"),
        ("[datasets.digits]", "[datasets.digit]", "did you mean 'digits'"),
        ('objective = "none"', "", "[methods.none] must have an objective, got none"),
        ('objective = "kd"', 'objective = "kdd"', "objective must be"),
        ('objective = "kd"', 'objective = "kd"\ntrials = 9', "must have the budget of every other"),
        ("settings.train.lr = 0.03", "settings.train.epochs = 90", "got another train.epochs; lea"),
        ("kd.temperature = [1.0, 2.0]", "kd.temperatur = [1.0]", "did you mean kd.temperature?"),
    ],
)
def test_errors_name_key_and_fix(old, new, message, tmp_path):
    assert old in WHOLE
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert str(tmp_path / "mine.toml") in str(error.value)


def test_another_budget_must_be_declared(tmp_path):
    declared = 'objective = "kd"\ntrials = 9\nunequal = "it has more settings"'
    study = read(tmp_path, WHOLE.replace('objective = "kd"', declared))
    assert study.budget(study.methods["KD"]) == (9, 2, 4)
    assert study.budget(study.methods["none"]) == (3, 2, 4)


def test_best_with_chooses_among_methods_with_trials(tmp_path):
    rule = '[best_with]\nmethod = "KD"\ncount = 1\namong = ["none"]\n'
    assert read(tmp_path, WHOLE + rule).best_with.among == ("none",)
    with pytest.raises(ValueError, match="without its own method"):
        read(tmp_path, WHOLE + rule.replace('["none"]', '["KD"]'))
    with pytest.raises(ValueError, match=r"\[best_with\] must have among"):
        read(tmp_path, WHOLE + rule.rsplit("among", 1)[0])


@pytest.mark.parametrize("name", ["small", "aifb", "public-split", "ablations"])
def test_study_files_of_the_docs(name):
    study = load_study(Path(__file__).parents[1] / "docs" / "study" / f"{name}.toml")
    assert study.tasks and len(study.methods) >= 3
