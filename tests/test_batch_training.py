"""Distiller on mini-batches: the full batch when the batch is the graph, and what it learns."""

import json

import pytest
import torch
from helpers import small_data

from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig
from abkd_fast.batches import BatchConfig, ClusterBatches, NeighborBatches
from abkd_fast.cli import main
from abkd_fast.nn import GCN, GCNII, GraphSAGE

CONFIG = TrainConfig(epochs=4, patience=None, lr=0.02)


def run(data, batches=None, config=CONFIG, dropout=0.0, out=None, family=GCN):
    torch.manual_seed(0)
    teacher, student = GCNII(8, 6, 4, 3, dropout=0.5), family(8, 4, 2, 3, dropout=dropout)
    cache = TeacherCache.build(teacher, data, dtype=torch.get_default_dtype())
    objective = KD() + ABKD(attention_dim=8)
    return Distiller(
        cache, student, data, objective, config=config, out=out, batches=batches, callbacks=()
    ).fit()


def whole(kind, data):
    """Batches that are the whole graph."""
    if kind == "neighbors":
        return NeighborBatches(data, [-1, -1], batch_size=data.num_nodes)
    return ClusterBatches(data, 3, parts_per_batch=3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["neighbors", "clusters"])
def test_a_batch_that_is_the_graph_trains_like_the_full_batch(kind):
    data = small_data()
    full, batched = run(data), run(data, whole(kind, data))
    for expected, got in zip(full.history, batched.history, strict=True):
        for name in ("loss", "ce", "kd", "abkd", "val_loss"):
            assert got[name] == pytest.approx(expected[name], rel=1e-10), name
    for name, value in full.student.state_dict().items():
        torch.testing.assert_close(batched.student.state_dict()[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_losses_of_labels_average_to_the_full_batchs():
    """Without an update and with all neighbours, an epoch's mean loss is the full batch's.

    GraphSAGE's mean is over a row's own edges; a GCN's degrees are those in the batch.
    """
    data = small_data()
    still = TrainConfig(epochs=1, patience=None, lr=1e-300, weight_decay=0.0)
    expected = run(data, config=still, family=GraphSAGE).history[0]
    batches = NeighborBatches(data, [-1, -1], batch_size=7)
    got = run(data, batches, still, family=GraphSAGE).history[0]
    assert got["ce"] == pytest.approx(expected["ce"], rel=1e-10)
    assert got["kd"] == pytest.approx(expected["kd"], rel=1e-10)


@pytest.mark.parametrize("kind", ["neighbors", "clusters"])
def test_students_learn_from_batches(kind):
    data = small_data(num_nodes=120)
    if kind == "neighbors":
        batches = NeighborBatches(data, [5, 5], batch_size=32)
    else:
        batches = ClusterBatches(data, 6, parts_per_batch=2)
    result = run(data, batches, TrainConfig(epochs=40, patience=None, lr=0.02), dropout=0.1)
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < 0.9 * first["loss"]
    assert last["val_loss"] < first["val_loss"]


def test_a_resumed_run_draws_the_same_batches(tmp_path):
    data = small_data()
    batches = NeighborBatches(data, [3, 2], batch_size=16, seed=5)
    config = TrainConfig(epochs=6, patience=None, lr=0.02, schedule="onecycle", checkpoint_every=3)
    straight = run(data, batches, config, dropout=0.3)

    class Stop(Exception):
        pass

    class Stopper:
        def on_start(self, distiller, epoch):
            pass

        def on_epoch(self, distiller, record):
            if record["epoch"] == 3:
                raise Stop

        def on_end(self, distiller, result):
            pass

    def distiller(callbacks):
        torch.manual_seed(0)
        teacher, student = GCNII(8, 6, 4, 3, dropout=0.5), GCN(8, 4, 2, 3, dropout=0.3)
        cache = TeacherCache.build(teacher, data)
        objective = KD() + ABKD(attention_dim=8)
        return Distiller(
            cache,
            student,
            data,
            objective,
            config=config,
            out=tmp_path,
            batches=batches,
            callbacks=callbacks,
        )

    with pytest.raises(Stop):
        distiller([Stopper()]).fit()
    resumed = distiller(()).fit()
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in straight.history]
    for name, value in straight.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], value)


def test_batches_must_be_of_the_data():
    with pytest.raises(ValueError, match="batches must be of the data trained on"):
        run(small_data(), NeighborBatches(small_data(), [2]))


def test_batches_need_training_nodes():
    data = small_data()
    batches = NeighborBatches(data, [2], nodes=(~data.train_mask).nonzero().flatten())
    with pytest.raises(ValueError, match="must hold training nodes"):
        run(data, batches)


def test_another_seed_of_batches_is_another_run(tmp_path):
    data = small_data()
    run(data, NeighborBatches(data, [2, 2], batch_size=30), out=tmp_path)
    with pytest.raises(ValueError, match="differs in batches"):
        run(data, NeighborBatches(data, [2, 2], batch_size=30, seed=1), out=tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        ["--batches.size", "256", "--batches.num-neighbors", "4", "4", "4", "4"],
        ["--batches.clusters", "8", "--batches.clusters-per-batch", "2"],
    ],
)
def test_batches_from_the_shell(flags, tmp_path):
    command = [
        *("distill", "--teacher", "gcn-2x16", "--teacher-train.epochs", "3"),
        *("--teachers", str(tmp_path / "t"), "--out", str(tmp_path / "out"), *flags),
        *("--train.epochs", "2", "--student", "gcn-2x8"),
    ]
    main(command)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["student"]["parameters"] > 0
    assert metrics["config"]["batches"]["clusters"] == (
        8 if "--batches.clusters" in flags else None
    )


def test_a_size_or_clusters():
    with pytest.raises(ValueError, match="batches must have a size or clusters, got both"):
        BatchConfig(size=4, clusters=2)
