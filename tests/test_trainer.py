"""The loop: learning, early stopping, resuming, failing well."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import small_data

from abkd_fast import (
    ABKD,
    KD,
    Callback,
    CSRGraph,
    Distiller,
    Objective,
    TeacherCache,
    TrainConfig,
    TrainingError,
)
from abkd_fast._storage import load_tensors
from abkd_fast.nn import GCNII

QUICK = TrainConfig(epochs=30, patience=None, checkpoint_every=10)


def make(out=None, config=QUICK, objective=True, seed=0, callbacks=(), data=None):
    data = data or small_data()
    torch.manual_seed(seed)
    teacher = GCNII(8, 6, 4, 3)
    student = GCNII(8, 4, 2, 3, dropout=0.2, init="xavier")
    loss = KD() + ABKD(attention_dim=8) if objective else None
    given = TeacherCache.build(teacher, data) if objective else None
    return Distiller(
        given, student, data, loss, seed=seed, config=config, out=out, callbacks=callbacks
    )


def timeless(history):
    return [{k: v for k, v in record.items() if k != "step_ms"} for record in history]


def same_result(a, b):
    assert timeless(a.history) == timeless(b.history)
    for name, value in a.student.state_dict().items():
        assert torch.equal(value, b.student.state_dict()[name]), name
    assert torch.equal(a.attention, b.attention)
    assert torch.equal(a.attention_history, b.attention_history)
    assert a.attention_epochs == b.attention_epochs


def test_students_learn_from_labels():
    result = make(objective=False, config=replace(QUICK, epochs=100, lr=0.03)).fit()
    assert result.metrics["student"]["train"] > 80
    assert not result.student.training


def test_students_learn_from_a_teacher():
    data, config = small_data(), replace(QUICK, epochs=100, lr=0.03)
    torch.manual_seed(0)
    teacher = GCNII(8, 16, 4, 3, dropout=0.1)
    Distiller(None, teacher, data, config=config, callbacks=()).fit()
    student = GCNII(8, 4, 2, 3, dropout=0.0, init="xavier")
    loss = KD(alpha=1.0) + ABKD(attention_dim=8, normalize="standardize", freeze_teacher_map=True)
    result = Distiller(teacher, student, data, loss, config=config, callbacks=()).fit()
    first, last = result.history[0], result.history[-1]
    assert last["kd"] < 0.2 * first["kd"] and last["abkd"] < 0.9 * first["abkd"]
    assert result.metrics["student"]["test"] > 60


def test_result_carries_the_map_and_the_figures():
    result = make().fit()
    assert result.attention.shape == result.dissimilarity.shape == (4, 2)
    assert result.attention_history.shape == (len(result.attention_epochs), 4, 2)
    torch.testing.assert_close(result.attention.sum(1), torch.ones(4))
    metrics = result.metrics
    assert metrics["compression_ratio"] == pytest.approx(
        metrics["teacher"]["parameters"] / metrics["student"]["parameters"]
    )
    assert set(result.history[0]) == {
        *("epoch", "loss", "ce", "kd", "abkd", "lr", "step_ms"),
        *("val_loss", "train_acc", "val_acc"),
    }


def test_best_epoch_is_the_best_on_validation():
    for monitor, key in (("val_loss", 1), ("val_acc", -1)):
        result = make(config=replace(QUICK, monitor=monitor)).fit()
        values = [key * record[monitor] for record in result.history]
        assert values[result.metrics["best_epoch"]] == min(values)


def test_early_stopping_counts_epochs_without_a_better_value():
    result = make(config=replace(QUICK, epochs=500, patience=5, lr=0.05)).fit()
    assert result.metrics["epochs"] == result.metrics["best_epoch"] + 6 < 500


def test_same_seed_same_result_other_seed_other_result():
    same_result(make().fit(), make().fit())
    assert timeless(make(seed=1).fit().history) != timeless(make().fit().history)


def adam_settings(monkeypatch, config):
    """(learning rates of all groups, first betas) at every step of a run."""
    seen = []
    step = torch.optim.Adam.step

    def spy(optimizer, *args, **kwargs):
        groups = optimizer.param_groups
        seen.append(([g["lr"] for g in groups], {g["betas"][0] for g in groups}))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    make(config=config).fit()
    return seen


def test_objective_learns_at_its_own_rate(monkeypatch):
    config = replace(QUICK, lr=0.02, objective_lr=0.1)
    assert adam_settings(monkeypatch, config) == [([0.02, 0.02, 0.1], {0.9})] * 30
    assert adam_settings(monkeypatch, QUICK) == [([0.01, 0.01, 0.01], {0.9})] * 30


def test_onecycle_peaks_at_each_rate_and_leaves_momentum_alone(monkeypatch):
    config = replace(QUICK, lr=0.02, objective_lr=0.1, schedule="onecycle")
    seen = adam_settings(monkeypatch, config)
    assert [max(rates) for rates in zip(*(rates for rates, _ in seen), strict=True)] == [
        *(pytest.approx(0.02), pytest.approx(0.02)),
        pytest.approx(0.1),
    ]
    assert seen[0][0][0] < 0.001 and seen[-1][0][0] < 0.0001
    assert all(betas == {0.9} for _, betas in seen)
    seen = adam_settings(monkeypatch, replace(config, cycle_momentum=True))
    betas = [beta for _, found in seen for beta in found]
    assert min(betas) == pytest.approx(0.85) and max(betas) == pytest.approx(0.95)


def test_callers_random_state_is_left_alone():
    distiller = make()
    state = torch.get_rng_state()
    distiller.fit()
    assert torch.equal(torch.get_rng_state(), state)


def test_callbacks_see_every_epoch():
    seen = []

    class Watch(Callback):
        def on_start(self, distiller, first_epoch):
            seen.append(("start", first_epoch))

        def on_epoch(self, distiller, record):
            seen.append(record["epoch"])

        def on_end(self, distiller, result):
            seen.append(result.metrics["epochs"])

    make(callbacks=[Watch()]).fit()
    assert seen == [("start", 0), *range(30), 30]


def test_maps_of_any_objective_are_kept():
    class Mine(Objective):
        def forward(self, student, teacher, nodes=None):
            self.attention = torch.full((4, 2), 0.5)
            return student.states[0].square().mean()

    distiller = make()
    distiller.objective = KD() + Mine()
    result = distiller.fit()
    assert torch.equal(result.attention, torch.full((4, 2), 0.5))
    assert result.attention_history.shape == (30, 4, 2) and result.dissimilarity is None


def test_log_is_one_record_an_epoch(tmp_path):
    result = make(tmp_path).fit()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert result.checkpoint == tmp_path / "checkpoint.safetensors"


def test_nan_loss_names_epoch_layer_and_checkpoint(tmp_path):
    class Poison(Callback):
        def on_epoch(self, distiller, record):
            if record["epoch"] == 14:
                with torch.no_grad():
                    distiller.student.convs[1].weight1.fill_(torch.nan)

    with pytest.raises(TrainingError) as info:
        make(tmp_path, callbacks=[Poison()]).fit()
    message = str(info.value)
    assert "ce is not finite at epoch 15 (seed 0), first in the output of convs.1" in message
    assert f"{tmp_path / 'checkpoint.safetensors'} (epoch 10)" in message
    assert (
        load_tensors(tmp_path / "checkpoint.safetensors", "checkpoint")[1]["progress"]["epoch"]
        == 10
    )


def test_weights_that_turn_nan_in_a_step_never_reach_the_checkpoint(tmp_path):
    class Poison(Callback):
        def on_epoch(self, distiller, record):
            if record["epoch"] == 18:
                distiller.student.convs[1].weight1.register_hook(lambda grad: grad * torch.nan)

    with pytest.raises(TrainingError, match=r"val_loss is not finite at epoch 19 .*\(epoch 10\)"):
        make(tmp_path, callbacks=[Poison()], objective=False).fit()
    tensors, _ = load_tensors(tmp_path / "checkpoint.safetensors", "checkpoint")
    assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert "NaN" not in line


def test_diverging_at_once_says_so():
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        make(config=replace(QUICK, epochs=1, lr=1e38), objective=False).fit()


def test_rejects_what_does_not_fit():
    data = small_data()
    student = GCNII(8, 4, 2, 3)
    with pytest.raises(ValueError, match="objective needs a teacher, got teacher=None"):
        Distiller(None, student, data, KD())
    other = TeacherCache.from_states([torch.zeros(59, 4)], torch.zeros(59, 3))
    with pytest.raises(ValueError, match="got 59 teacher rows and 60 nodes in 'small'"):
        Distiller(other, student, data, KD())
    elsewhere = TeacherCache.build(student, small_data(seed=3))
    with pytest.raises(ValueError, match="must have been run on 'small' with this split"):
        Distiller(elsewhere, student, data, KD())
    narrow = TeacherCache.from_states([torch.zeros(60, 4)], torch.zeros(60, 2))
    with pytest.raises(ValueError, match="must score the 3 classes of 'small', got 2"):
        Distiller(narrow, student, data, KD())
    few = GCNII(8, 4, 2, 2)
    with pytest.raises(ValueError, match="student must score the 3 classes of 'small', got 2"):
        Distiller(None, few, data, callbacks=()).fit()
    pooled = Distiller(None, few, data, forward=lambda model, data: data.x[:5], callbacks=())
    with pytest.raises(ValueError, match=r"must return class scores \[N=60, C\], got \[5, 8\]"):
        pooled.fit()


@pytest.mark.parametrize(
    "edges",
    [
        pytest.param([[], []], id="no-edges"),
        pytest.param([[0, 1], [1, 0]], id="isolated"),
        pytest.param([[0, 1, 2, 2], [0, 1, 2, 2]], id="self-loops"),
        pytest.param([[0, 0, 0, 1], [1, 1, 1, 0]], id="duplicates"),
    ],
)
def test_degenerate_graphs_train(edges):
    edge_index = torch.tensor(edges, dtype=torch.int64)
    data = replace(small_data(), graph=CSRGraph.from_edge_index(edge_index, 60))
    result = make(data=data).fit()
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_foreign_modules_are_distilled_too():
    class PlainGCN(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.last = torch.nn.Linear(8, width), torch.nn.Linear(width, 3)

        def forward(self, x, edge_index):
            mixed = x.index_add(0, edge_index[1], x[edge_index[0]])
            return self.last(self.first(mixed).relu())

    result = Distiller(
        PlainGCN(16),
        PlainGCN(3),
        small_data(sparse=True),
        ABKD(attention_dim=8),
        config=QUICK,
        teacher_layers="first",
        student_layers="first",
        callbacks=(),
    ).fit()
    assert result.attention.shape == (1, 1)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_scores_alone_need_no_hidden_layers():
    teacher = torch.nn.Linear(8, 3)
    result = Distiller(
        teacher,
        torch.nn.Linear(8, 3),
        small_data(),
        KD(),
        config=QUICK,
        forward=lambda model, data: model(data.x),
        callbacks=(),
    ).fit()
    assert result.attention is None and result.metrics["compression_ratio"] == 1.0
