"""Losses and metrics of the tasks, against torch's and by hand; training on each."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import small_data
from sklearn.metrics import f1_score
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig, ops
from abkd_fast.capture import Capture
from abkd_fast.config import DistillConfig
from abkd_fast.nn import GCN
from abkd_fast.report import summary_table
from abkd_fast.runs import distill
from abkd_fast.task import BINARY, MULTICLASS, MULTILABEL

NAN = float("nan")
ALL = torch.ones(4, dtype=torch.bool)


def of_task(task, columns=3, **changes):
    """small_data with labels that its features tell, as columns of yes and no."""
    data = small_data()
    y = (data.x[:, :columns] > 1).to(torch.float32)
    return replace(data, y=y, task=task, name=task, **changes)


def test_bernoulli_loss_is_torchs():
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, (6, 3)).double()
    y[1, 2] = y[4] = NAN
    mask = torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    known = mask[:, None] & ~y.isnan()
    expected = bce(logits[known], y[known])
    loss = MULTILABEL.loss(logits, y, mask)
    assert torch.equal(loss, BINARY.loss(logits, y, mask))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    (found,) = torch.autograd.grad(loss, logits)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, gradient, rtol=1e-13, atol=1e-13)
    assert (found[~known] == 0).all()


def test_multiclass_loss_is_cross_entropy():
    logits, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    expected, _ = ops.kl_div(logits, y, ALL)
    assert torch.equal(MULTICLASS.loss(logits, y, ALL), expected)


def test_multiclass_scores():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    scores = MULTICLASS.scores(logits, torch.tensor([0, 1, 1, 0]), ALL)
    # class 0: 1 of 2 found, precision 1/2; class 1: 1 of 2, precision 1; class 2: nothing
    assert scores["acc"] == 50.0
    assert scores["macro_f1"] == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    assert MULTICLASS.fast_score(logits, torch.tensor([0, 1, 1, 0]), ALL) == 50.0


def test_macro_f1_is_scikit_learns():
    torch.manual_seed(0)
    logits, y = torch.randn(200, 9), torch.randint(7, (200,))  # two classes have no label
    logits[:, 8] = -10.0  # and one of them is never predicted
    mask = torch.rand(200) < 0.7
    found = MULTICLASS.scores(logits, y, mask)["macro_f1"]
    expected = f1_score(y[mask], logits[mask].argmax(1), average="macro", zero_division=0.0)
    assert found == pytest.approx(100.0 * expected, rel=1e-12)


def test_multilabel_scores():
    y = torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, NAN]])
    logits = torch.tensor([[2.0, 3], [1, -1], [-1, 2], [5, 5]])
    scores = MULTILABEL.scores(logits, y, ALL)
    # of the rows without a gap: 3 right, 1 wrong yes, 1 missed
    assert scores["micro_f1"] == pytest.approx(100 * 2 * 3 / (2 * 3 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx(100 * (1 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="must label every class of some row"):
        MULTILABEL.scores(logits, y, torch.tensor([False, False, False, True]))


def test_binary_scores():
    y = torch.tensor([[1.0, NAN], [0, 1], [1, 1], [0, 1]])
    logits = torch.tensor([[3.0, 9], [1, 9], [-2, 9], [-3, 9]])
    scores = BINARY.scores(logits, y, ALL)
    assert scores["roc_auc"] == pytest.approx(75.0)  # column 2 has no zeros: left out
    assert scores["acc"] == pytest.approx(100 * (2 + 3) / 7)
    with pytest.raises(ValueError, match="both 0 and 1"):
        BINARY.scores(logits, y, torch.tensor([True, False, True, False]))


@pytest.mark.parametrize("task", [MULTICLASS, MULTILABEL, BINARY])
def test_fast_scores_are_the_librarys(task):
    logits = torch.randn(80, 4).round(decimals=1)  # with ties
    y = torch.randint(0, 4, (80,)) if task is MULTICLASS else torch.randint(0, 2, (80, 4)).float()
    if task is not MULTICLASS:
        y[torch.rand(80, 4) < 0.1] = NAN
    mask = torch.rand(80) < 0.7
    expected = task.scores(logits, y, mask)[task.metric]
    assert task.fast_score(logits, y, mask) == pytest.approx(expected, abs=1e-9)
    loss, score = task.assess(logits, y, mask)
    assert torch.equal(loss, task.loss(logits, y, mask))
    assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        ("multilabel", torch.zeros(60, dtype=torch.int64), r"y must be float \[N, C\]"),
        ("binary", torch.zeros(60), r"a single column is y\[:, None\]"),
        ("binary", torch.full((60, 1), 2.0), "0, 1 or NaN"),
        ("binary", torch.zeros(59, 1), "y must have N=60 rows"),
        ("binary", torch.full((60, 1), NAN), "y must be known in some column on train_mask"),
        ("regression", torch.zeros(60, 1), "task must be one of multiclass, multilabel, binary"),
    ],
)
def test_labels_are_checked(task, y, message):
    with pytest.raises(ValueError, match=message):
        replace(small_data(), y=y, task=task)


def test_tasks_are_part_of_the_data():
    data = of_task("multilabel")
    assert data.num_classes == 3 and data.num_rows == 60
    assert data.to("cpu").task == "multilabel"
    assert replace(data, task="binary").fingerprint() != data.fingerprint()


@pytest.mark.parametrize(("task", "metric"), [("multilabel", "micro_f1"), ("binary", "roc_auc")])
@pytest.mark.parametrize("monitor", ["val_loss", "val_metric"])
def test_training_follows_the_task(task, metric, monitor):
    data = of_task(task)
    config = TrainConfig(epochs=30, patience=None, monitor=monitor, lr=0.1)
    teacher = GCN(8, 16, 3, 3, dropout=0.0)
    Distiller(None, teacher, data, config=config, callbacks=()).fit()
    student = GCN(8, 4, 2, 3, dropout=0.0)
    loss = KD(activation="sigmoid") + ABKD(attention_dim=8)
    result = Distiller(teacher, student, data, loss, config=config, callbacks=()).fit()
    values = [record[f"val_{metric}"] for record in result.history]
    losses = [record["val_loss"] for record in result.history]
    best = max(values) if monitor == "val_metric" else min(losses)
    kept = (values if monitor == "val_metric" else losses)[result.metrics["best_epoch"]]
    assert kept == best
    assert result.history[-1]["ce"] < 0.8 * result.history[0]["ce"]
    scores = data.kind.scores(result.student(data.x, data.graph), data.y, data.test_mask)
    assert result.metrics["student"]["test"] == pytest.approx(scores[metric])
    assert set(result.metrics["teacher"]["scores"]["test"]) == set(scores)


def test_sigmoid_divergence_by_hand():
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    cache = TeacherCache.from_states([], teacher, torch.float64)
    kd = KD(alpha=1.0, temperature=2.0, activation="sigmoid")
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    loss = kd(Capture([], student, []), cache)
    torch.testing.assert_close(loss, 4 * expected.sum(1).mean(), rtol=1e-12, atol=1e-12)
    rows = torch.tensor([3, 0])
    part = kd(Capture([], student[rows], []), cache, rows)
    torch.testing.assert_close(part, 4 * expected[rows].sum(1).mean(), rtol=1e-12, atol=1e-12)


def test_softmax_of_one_column_is_refused():
    cache = TeacherCache.from_states([], torch.randn(5, 1))
    with pytest.raises(ValueError, match='KD.activation="sigmoid"'):
        KD()(Capture([], torch.randn(5, 1), []), cache)


def test_the_report_names_the_metric(tmp_path, monkeypatch):
    data = of_task("binary")
    monkeypatch.setattr("abkd_fast.runs.load_data", lambda config: data)
    train = TrainConfig(epochs=3, patience=None)
    config = DistillConfig(
        teacher="gcn-2x8", student="gcn-2x2", train=train, teacher_train=train, out=tmp_path / "out"
    )
    metrics = distill(replace(config, teachers=tmp_path / "teachers"))
    assert metrics["metric"] == "roc_auc" and metrics["dataset"]["task"] == "binary"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metric"] == "roc_auc"
    labels = list(summary_table(metrics).columns[0].cells)
    assert "test ROC-AUC (%)" in map(str, labels) and "test accuracy (%)" in map(str, labels)
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "test ROC-AUC of" in page and "validation ROC-AUC (%)" in page
