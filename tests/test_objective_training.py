"""Training with every objective, from Python and from the settings of the shell."""

from dataclasses import replace

import pytest
import torch
from helpers import small_data
from step_cases import StaticDistiller

from abkd_fast import Distiller, TeacherCache, TrainConfig
from abkd_fast._baseline_settings import MSKDConfig
from abkd_fast.batches import ClusterBatches, NeighborBatches
from abkd_fast.capture import Capture
from abkd_fast.config import DistillConfig, ModelConfig, TeacherConfig
from abkd_fast.distill import AFD, AT, GCRD, GLNN, MSKD, STRIDE, FitNets, GraphAKD, MustaD, SemCKD
from abkd_fast.nn import GCNII, MLP
from abkd_fast.objective_settings import OBJECTIVES
from abkd_fast.runs import distill, train_teacher

QUICK = TrainConfig(epochs=30, patience=None, lr=0.01)


def labels(data):
    return torch.where(data.train_mask, data.y, -1)


def other(data):
    torch.manual_seed(5)
    return [TeacherCache.build(GCNII(8, 5, 2, 3), data)]


MAKE = {
    "at": lambda data: AT(),
    "fitnets": lambda data: FitNets(projection_dim=16),
    "glnn": lambda data: GLNN(),
    "afd": lambda data: AFD(attention_dim=8, samples=50),
    "semckd": lambda data: SemCKD(attention_dim=8, samples=32),
    "mskd": lambda data: MSKD(other(data), attention_dim=8, scale=2.0, weight=1e3),
    "graphakd": lambda data: GraphAKD(labels=labels(data)),
    "mustad": lambda data: MustaD(hidden_weight=1.0),
    "gcrd": lambda data: GCRD(projection_dim=16, samples=50, weight=1.0),
    "stride": lambda data: STRIDE(1.0, structure_dim=16, samples=32, attention_dim=8),
}
LOGGED = {name: [name] for name in MAKE} | {"mustad": ["mustad_logits", "mustad_hidden"]}


def run(name, data, student=None, config=QUICK, **options):
    torch.manual_seed(0)
    teacher = TeacherCache.build(GCNII(8, 6, 4, 3).eval(), data)
    model = student or GCNII(8, 4, 2, 3, dropout=0.0, init="xavier")
    objective = MAKE[name](data)
    result = Distiller(
        teacher, model, data, objective, config=config, callbacks=[], **options
    ).fit()
    return result, objective


@pytest.mark.parametrize("name", MAKE)
def test_training_lowers_the_loss(name):
    result, _ = run(name, small_data())
    first, last = ([sum(r[k] for k in LOGGED[name]) for r in result.history][i] for i in (0, -1))
    assert last < 0.95 * first, (first, last)


def test_the_discriminators_of_graphakd_learn_too():
    _, objective = run("graphakd", small_data())
    assert not torch.equal(objective.of_edges.scale, torch.tensor([0.5]))
    assert not torch.equal(objective.of_graph.diagonal, torch.ones(6))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("kind", ["neighbours", "clusters"])
def test_training_on_batches(name, kind):
    data = small_data()
    batches = {
        "neighbours": lambda: NeighborBatches(data, (3, 3), 16),
        "clusters": lambda: ClusterBatches(data, num_parts=3),
    }[kind]()
    result, _ = run(name, data, config=replace(QUICK, epochs=2), batches=batches)
    assert all(record["loss"] == record["loss"] for record in result.history)
    assert len(result.history) == 2


@pytest.mark.parametrize("name", MAKE)
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path):
    short = replace(QUICK, epochs=6, checkpoint_every=3)
    whole, _ = run(name, small_data(), config=short)

    class Stop:
        def on_start(self, run, epoch):
            pass

        def on_epoch(self, run, record):
            if record["epoch"] == 3:
                raise KeyboardInterrupt

        def on_end(self, run, result):
            pass

    torch.manual_seed(0)
    data = small_data()
    teacher = TeacherCache.build(GCNII(8, 6, 4, 3).eval(), data)
    model = GCNII(8, 4, 2, 3, dropout=0.0, init="xavier")
    first = Distiller(
        teacher, model, data, MAKE[name](data), config=short, out=tmp_path, callbacks=[Stop()]
    )
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    rest, _ = run(name, data, config=short, out=tmp_path)
    assert [r["loss"] for r in rest.history] == [r["loss"] for r in whole.history]
    for got, want in zip(
        rest.student.state_dict().values(), whole.student.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want)


def test_an_mlp_learns_from_the_teacher():
    result, _ = run("glnn", small_data(), MLP(8, 16, 2, 3, dropout=0.0))
    assert result.history[-1]["glnn"] < result.history[0]["glnn"]


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr("abkd_fast.data.load", lambda name, root: small_data())
    return small_data()


def test_the_shell_sums_every_objective(data, tmp_path):
    """All at once, with a further teacher for MSKD and a shared layer for MustaD."""
    train = TrainConfig(epochs=4, patience=None)
    shallow = TeacherConfig(dataset="cora", model="gcn-2x5", train=train, out=tmp_path / "shallow")
    train_teacher(shallow)
    config = DistillConfig(
        dataset="cora",
        teacher="gcnii-3x8",
        student="gcnii-3x4",
        student_options=ModelConfig(shared=True),
        objective="+".join(OBJECTIVES[1:]),
        mskd=MSKDConfig(teachers=(tmp_path / "shallow",)),
        train=train,
        teacher_train=train,
        teachers=tmp_path / "teachers",
        out=tmp_path / "out",
    )
    metrics = distill(config)
    assert metrics["objective"] == config.objective
    assert metrics["config"]["mskd"]["teachers"] == [str(tmp_path / "shallow")]
    assert metrics["student"]["parameters"] == 8 * 4 + 4 + 16 + 4 * 3 + 3
    again = distill(config)  # reads the checkpoint of the finished run
    assert again["student"] == metrics["student"]


def test_the_shell_names_a_missing_further_teacher(data, tmp_path):
    config = DistillConfig(
        dataset="cora",
        teacher="gcn-2x4",
        student="gcn-2x3",
        objective="mskd",
        mskd=MSKDConfig(teachers=(tmp_path / "absent.safetensors",)),
        train=QUICK,
        teacher_train=replace(QUICK, epochs=1),
        teachers=tmp_path / "teachers",
        out=tmp_path / "out",
    )
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors"):
        distill(config)
    assert not (tmp_path / "teachers").exists()  # named before the run's own teacher is trained


@pytest.mark.parametrize("name", MAKE)
def test_a_static_step_is_the_eager_one(name):
    """What a CUDA graph would replay; an objective that draws nodes runs eagerly instead."""
    config, losses = replace(QUICK, epochs=6), []
    for kind in (Distiller, StaticDistiller):
        torch.manual_seed(0)
        data = small_data()
        teacher = TeacherCache.build(GCNII(8, 6, 4, 3).eval(), data)
        model = GCNII(8, 4, 2, 3, dropout=0.3, init="xavier")
        objective = MAKE[name](data)
        result = kind(teacher, model, data, objective, config=config, callbacks=[]).fit()
        losses.append([record["loss"] for record in result.history])
    assert losses[0] == losses[1]


def test_states_on_disk_are_read_as_those_in_memory(tmp_path):
    data, edges = small_data(), small_data().graph
    model = GCNII(8, 6, 4, 3).eval()
    kept = TeacherCache.build(model, data)
    mapped = TeacherCache.build(model, data, storage="mmap", path=tmp_path / "states.safetensors")
    nodes = torch.tensor([5, 3, 40, 41])
    torch.manual_seed(2)
    states, logits = [torch.randn(60, 4) for _ in range(2)], torch.randn(60, 3)
    for name, make in MAKE.items():
        losses = []
        for cache in (kept, mapped):
            torch.manual_seed(1)
            objective = make(data)
            objective.setup(cache, [4, 4], edges)
            whole = objective(Capture(states, logits, ["?"] * 2), cache)
            part = Capture([h[nodes] for h in states], logits[nodes], ["?"] * 2)
            losses.append(torch.stack([whole, objective(part, cache, nodes)]))
        assert torch.equal(*losses), name
