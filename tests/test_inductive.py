"""Training that sees the training part of a graph, and students on graphs they have not seen."""

from dataclasses import replace

import pytest
import torch
from helpers import small_data

from abkd_fast import ABKD, KD, CSRGraph, Distiller, TeacherCache, TrainConfig, load_model, predict
from abkd_fast.config import ABKDConfig, DistillConfig
from abkd_fast.nn import GCN, GCNII
from abkd_fast.runs import distill

CONFIG = TrainConfig(epochs=60, patience=None, lr=0.03)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_subgraph_by_dense_matrices(sparse, weighted):
    data = small_data(sparse=sparse)
    if weighted:
        graph = data.graph.with_value(torch.rand(data.graph.num_edges))
        data = replace(data, graph=graph)
    nodes = data.train_mask.nonzero().flatten()[[7, 3, 0, 12, 13]]
    part = data.subgraph(nodes)
    assert torch.equal(part.graph.to_dense(), data.graph.to_dense()[nodes][:, nodes])
    assert torch.equal(part.dense_x, data.dense_x[nodes])
    assert torch.equal(part.y, data.y[nodes])
    assert torch.equal(part.train_mask, data.train_mask[nodes])


@pytest.mark.parametrize("nodes", [[0, 60], [-1, 2], [3, 3]])
def test_subgraphs_check_their_nodes(nodes):
    with pytest.raises(ValueError, match="nodes must"):
        small_data().subgraph(torch.tensor(nodes))


def test_steps_see_the_training_part_only():
    """Whatever the other nodes are and how they are joined, the steps are the same."""
    data = small_data()
    other = ~data.train_mask
    dense = data.graph.to_dense()
    dense[other] = dense[:, other] = 0.0
    dense[other, 0] = 1.0
    graph = CSRGraph.from_torch(dense.to_sparse_csr()).with_value(None)
    changed = replace(data, graph=graph, x=data.x + 3.0 * other[:, None])
    losses = []
    for given in (data, changed):
        torch.manual_seed(0)
        teacher, student = GCNII(8, 6, 3, 3), GCN(8, 4, 2, 3, dropout=0.3)
        given = given.inductive()
        loss = KD() + ABKD(attention_dim=8)
        config = replace(CONFIG, epochs=5)
        run = Distiller(teacher, student, given, loss, config=config, callbacks=()).fit()
        losses.append([record["loss"] for record in run.history])
    assert losses[0] == losses[1]


def test_inductive_students_learn():
    data = small_data(num_nodes=120).inductive()
    teacher = GCN(8, 16, 2, 3, dropout=0.0)
    Distiller(None, teacher, data, config=CONFIG, callbacks=()).fit()
    student = GCN(8, 4, 2, 3, dropout=0.0)
    run = Distiller(teacher, student, data, KD() + ABKD(), config=CONFIG, callbacks=()).fit()
    assert run.metrics["student"]["test"] > 60
    scores = data.kind.scores(predict(teacher, data), data.y, data.test_mask)
    assert run.metrics["teacher"]["test"] == pytest.approx(scores["acc"])
    assert data.fingerprint() != small_data(num_nodes=120).fingerprint()  # another run
    cache = TeacherCache.build(teacher, data.training)
    again = GCN(8, 4, 2, 3, dropout=0.0)
    run = Distiller(cache, again, data, KD(), config=replace(CONFIG, epochs=2), callbacks=()).fit()
    assert run.metrics["teacher"] is None  # its scores on the whole graph are not known
    whole = TeacherCache.build(teacher, data)
    with pytest.raises(ValueError, match="build the cache on this graph"):
        Distiller(whole, again, data, KD(), config=CONFIG, callbacks=())


def test_students_on_a_changed_graph():
    """New nodes and edges: far nodes keep their scores, the new ones get theirs."""
    data = small_data().inductive()
    student = GCN(8, 4, 2, 3, dropout=0.5)
    Distiller(None, student, data, config=replace(CONFIG, epochs=20), callbacks=()).fit()
    student.train()
    before = predict(student, data)
    assert student.training
    # two new nodes of class 1, joined to each other and to node 5
    x = torch.cat([data.x, torch.eye(8)[1].repeat(2, 1) * 3])
    new = torch.tensor([[60, 61, 5, 60], [61, 60, 60, 5]])
    edge_index = torch.cat([data.edge_index, new], dim=1)
    graph = CSRGraph.from_edge_index(edge_index, 62)
    grown = replace(
        small_data(),
        x=x,
        graph=graph,
        y=torch.cat([data.y, torch.tensor([-1, -1])]),
        **{
            f"{s}_mask": torch.cat([getattr(data, f"{s}_mask"), torch.zeros(2).bool()])
            for s in ("train", "val", "test")
        },
    )
    after = predict(student, grown)
    assert after.shape == (62, 3)
    near = {5}
    for _ in range(2):  # as far as two layers see
        near |= {int(t) for s, t in data.edge_index.t().tolist() if s in near}
    far = [node for node in range(60) if node not in near]
    assert far
    torch.testing.assert_close(after[far], before[far])
    assert not torch.allclose(after[5], before[5])
    student.eval()
    torch.testing.assert_close(after, student(x, graph))


def test_the_command_line_trains_inductively(tmp_path, monkeypatch):
    seen = []

    def read(name, root):
        seen.append(name)
        return small_data()

    monkeypatch.setattr("abkd_fast.data.load", read)
    train = TrainConfig(epochs=3, patience=None)
    config = DistillConfig(
        dataset="cora",
        inductive=True,
        teacher="gcn-2x8",
        student="gcn-2x2",
        abkd=ABKDConfig(nodes="train"),
        train=train,
        teacher_train=train,
        teachers=tmp_path / "teachers",
        out=tmp_path / "out",
    )
    metrics = distill(config)
    assert seen and metrics["config"]["inductive"]
    (folder,) = (tmp_path / "teachers").iterdir()
    teacher, about = load_model(folder / "teacher.safetensors")
    data = small_data().inductive()
    assert about.fingerprint == data.fingerprint()
    scores = data.kind.scores(predict(teacher, data), data.y, data.test_mask)
    assert metrics["teacher"]["test"]["mean"] == pytest.approx(scores["acc"])
