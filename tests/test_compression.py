"""--compression: the student it picks, against all candidates."""

from dataclasses import replace

import pytest
from helpers import small_data

from abkd_fast._student import with_student
from abkd_fast.cli import main
from abkd_fast.compression import choose_student, parameters, parse_ratio
from abkd_fast.config import DistillConfig, TrainConfig
from abkd_fast.nn import GCN, ModelSpec
from abkd_fast.runs import distill

CORA = 1433, 7


def on_cora(spec):
    return parameters(spec, *CORA, {})


def candidates(largest):
    depths = [depth for depth in (2, 4, 8, 16, 32, 64, 128) if depth <= largest.num_layers]
    return [
        ModelSpec(largest.family, depth, width)
        for depth in depths
        for width in range(1, largest.hidden_channels + 1)
    ]


@pytest.mark.parametrize("spec", ["gcnii-64x64", "gcn-3x40", "mlp-4x30"])
@pytest.mark.parametrize("ratio", [1.5, 4, 60, 139.5])
def test_the_largest_that_is_small_enough(spec, ratio):
    teacher = ModelSpec.parse(spec)
    whole = parameters(teacher, *CORA, {})
    fitting = [
        (count, -candidate.num_layers, candidate)
        for candidate in candidates(teacher)
        if whole / (count := parameters(candidate, *CORA, {})) >= ratio
    ]
    if not fitting:
        with pytest.raises(ValueError, match="compression must lie in"):
            choose_student(ratio, whole, teacher, on_cora)
        return
    best = max(fitting, key=lambda item: item[:2])
    found, count = choose_student(ratio, whole, teacher, on_cora)
    assert (count, found) == (best[0], best[2])


def test_counts_are_those_of_the_models():
    spec = ModelSpec.parse("gcnii-4x4")
    model = spec.build(*CORA)
    assert parameters(spec, *CORA, {}) == sum(p.numel() for p in model.parameters())


def test_the_reachable_range_is_named():
    teacher = ModelSpec.parse("gcnii-64x64")
    whole = parameters(teacher, *CORA, {})
    smallest = parameters(ModelSpec("gcnii", 2, 1), *CORA, {})
    message = rf"compression must lie in \[1.0x, {whole / smallest:.1f}x\] for gcnii .*got 1000x"
    with pytest.raises(ValueError, match=message):
        choose_student(1000, whole, teacher, on_cora)
    ratio = whole / smallest
    assert choose_student(ratio, whole, teacher, on_cora)[0] == ModelSpec("gcnii", 2, 1)


@pytest.mark.parametrize(("text", "ratio"), [("60x", 60), ("60", 60), ("32.9X", 32.9)])
def test_ratios(text, ratio):
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize("text", ["", "x", "1x", "0.5", "-3", "sixty", "nan", "inf"])
def test_bad_ratios(text):
    with pytest.raises(ValueError, match="compression must be a ratio above 1"):
        DistillConfig(compression=text)


def test_distilling_to_a_ratio(tmp_path, monkeypatch, capsys):
    data = small_data()
    monkeypatch.setattr("abkd_fast.runs.load_data", lambda config: data)
    train = TrainConfig(epochs=2, patience=None)
    config = DistillConfig(
        teacher="gcnii-4x16",
        compression="5x",
        train=train,
        teacher_train=train,
        teachers=tmp_path / "teachers",
        out=tmp_path / "out",
    )
    metrics = distill(config)
    largest = ModelSpec("gcnii", 4, 16)
    whole = parameters(largest, 8, 3, {})
    found, count = choose_student(5, whole, largest, lambda spec: parameters(spec, 8, 3, {}))
    assert metrics["student"]["model"] == str(found) == metrics["config"]["student"]
    assert metrics["student"]["parameters"] == count and metrics["compression_ratio"] >= 5
    line = capsys.readouterr().out.splitlines()[0]
    assert f"student {found}: {count:,} parameters" in line and "(asked for 5x)" in line
    (folder,) = (tmp_path / "teachers").iterdir()
    from_file = replace(config, teacher=str(folder))
    assert with_student(from_file, data, None).student == str(found)
    own = replace(config, teacher="some:teacher", student="gcn-2x2", compression="2x")
    picked = with_student(own, data, lambda name, data: GCN(8, 40, 2, 3)).student
    assert picked == "gcn-2x19"  # 8 * 40 + 40 + 40 * 3 + 3 = 483 parameters, 231 of 19 wide
    with pytest.raises(ValueError, match="compression must lie in"):
        with_student(replace(config, compression="5000x"), data, None)


def test_an_unreachable_ratio_is_a_wrong_flag(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--compression", "100000x", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "compression must lie in" in capsys.readouterr().err
