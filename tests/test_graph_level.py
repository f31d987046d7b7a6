"""Data of many graphs: batches, pooling, training and distillation with a score for each graph."""

from dataclasses import replace

import pytest
import torch
from helpers import small_data

from abkd_fast import (
    ABKD,
    KD,
    CSRGraph,
    Distiller,
    TeacherCache,
    TrainConfig,
    latency,
    load_model,
    predict,
)
from abkd_fast.config import DistillConfig
from abkd_fast.data import GraphLevelData
from abkd_fast.data.graph_level import block_diagonal
from abkd_fast.nn import GCN, GCNII, GraphClassifier, ModelSpec
from abkd_fast.runs import distill

SIZES = [4, 1, 6, 3, 5, 2, 7, 4, 3]


def graphs(count=36, task="multiclass", sparse=False, seed=0):
    """Graphs of 1 to 7 nodes whose class shows in the mean of their features."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([SIZES[i % len(SIZES)] for i in range(count)])
    label = torch.arange(count) % 2
    x = torch.randn(int(sizes.sum()), 4, generator=generator)
    x[:, 0] += 2.0 * label.repeat_interleave(sizes)
    edges = 2 * sizes
    ends = [torch.randint(n, (2, 2 * n), generator=generator) for n in sizes.tolist()]
    source, target = torch.cat(ends, dim=1)
    masks = torch.zeros(3, count, dtype=torch.bool)
    for mask, part in zip(masks, torch.randperm(count, generator=generator).chunk(3), strict=True):
        mask[part] = True
    if sparse:
        x = CSRGraph.from_torch((x * (x > 0)).to_sparse_csr())
    return GraphLevelData(
        x=x,
        graph=block_diagonal(source, target, edges, sizes),
        y=label if task == "multiclass" else label[:, None].float(),
        train_mask=masks[0],
        val_mask=masks[1],
        test_mask=masks[2],
        name="graphs",
        task=task,
        graph_ptr=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
    )


def classifier(width=8, depth=2, classes=2, pool="mean", dropout=0.0):
    encoder = GCN(4, width, depth, width, dropout=dropout)
    return GraphClassifier(encoder, width, classes, pool, dropout)


def nodes_of(data, graph):
    return slice(int(data.graph_ptr[graph]), int(data.graph_ptr[graph + 1]))


@pytest.mark.parametrize("sparse", [False, True])
def test_batches_are_block_diagonal(sparse):
    data = graphs(sparse=sparse)
    chosen = torch.tensor([7, 0, 13, 1])
    batch = data.subset(chosen)
    blocks = [data.graph.to_dense()[nodes_of(data, g), nodes_of(data, g)] for g in chosen.tolist()]
    assert torch.equal(batch.graph.to_dense(), torch.block_diag(*blocks))
    rows = torch.cat([data.dense_x[nodes_of(data, g)] for g in chosen.tolist()])
    assert torch.equal(batch.dense_x, rows)
    assert torch.equal(batch.y, data.y[chosen])
    assert batch.batch.tolist() == [i for i, b in enumerate(blocks) for _ in range(len(b))]
    assert batch.training is batch
    for bad in ([0, 36], [-1], [3, 3]):
        with pytest.raises(ValueError, match="graphs must"):
            data.subset(torch.tensor(bad))


def test_the_training_graphs():
    data = graphs()
    training = data.training
    assert training.num_rows == int(data.train_mask.sum()) and training.train_mask.all()
    assert training.name == data.name and training.task == data.task
    assert data.inductive() is data
    assert "num_graphs=36" in repr(data)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_scores_are_pooled_by_graph(pool):
    data, model = graphs(), classifier(pool=pool).double().eval()
    data = replace(data, x=data.x.double())
    scores = predict(model, data)
    states = model.act(model.encoder(data.x, data.graph))
    for g in range(data.num_rows):
        rows = states[nodes_of(data, g)]
        pooled = rows.mean(0) if pool == "mean" else rows.sum(0)
        torch.testing.assert_close(scores[g], model.lin(pooled[None])[0], rtol=1e-12, atol=1e-12)
    # a graph's scores do not depend on the others
    chosen = torch.tensor([5, 2])
    torch.testing.assert_close(predict(model, data.subset(chosen)), scores[chosen])


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_gradients_of_the_classifier(pool):
    data, model = graphs(6), classifier(width=3, pool=pool).double()
    x = data.x.double().requires_grad_()
    inputs = (x, *model.parameters())
    found = torch.autograd.grad(model(x, data.graph, data.graph_ptr).square().sum(), inputs)
    states = model.act(model.encoder(x, data.graph))
    parts = [states[nodes_of(data, g)] for g in range(6)]
    pooled = torch.stack([getattr(part, pool)(0) for part in parts])
    expected = torch.autograd.grad(model.lin(pooled).square().sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_pool_is_checked():
    with pytest.raises(ValueError, match="pool must be one of mean, sum"):
        classifier(pool="max")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph_ptr": torch.tensor([0])}, "graph_ptr must hold"),
        ({"graph_ptr": torch.tensor([0, 5, 3])}, "graph_ptr must be pointers"),
        ({"graph_ptr": torch.tensor([0.0, 5.0])}, "graph_ptr must be"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, "y must have N=36 rows"),
        ({"val_mask": torch.zeros(36, dtype=torch.bool)}, "select at least one graph"),
    ],
)
def test_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(graphs(), **changes)


def test_edges_between_graphs_are_refused():
    data = graphs()
    edge_index = torch.cat([data.edge_index, torch.tensor([[0], [30]])], dim=1)
    with pytest.raises(ValueError, match="graph must be block-diagonal"):
        replace(data, graph=CSRGraph.from_edge_index(edge_index, data.num_nodes))
    with pytest.raises(ValueError, match="target must be a node of its graph, got 2 in edge 1"):
        block_diagonal(*torch.tensor([[0, 0], [1, 2]]), torch.tensor([2]), torch.tensor([2]))


def test_fingerprints_tell_graphs_apart():
    data = graphs()
    ptr = data.graph_ptr.clone()
    assert data.fingerprint() == graphs().fingerprint()
    assert data.to("cpu").fingerprint() == data.fingerprint()
    lonely = CSRGraph.from_edge_index(torch.empty(2, 0, dtype=torch.int64), data.num_nodes)
    ptr[1] += 1
    moved = replace(data, graph=lonely, graph_ptr=ptr)
    assert moved.fingerprint() != replace(data, graph=lonely).fingerprint()


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_distilling_graph_classifiers(task):
    data = graphs(90, task)
    classes = data.num_classes
    config = TrainConfig(epochs=40, patience=None, lr=0.03)
    teacher = classifier(16, 3, classes)
    Distiller(None, teacher, data, config=config, callbacks=()).fit()
    activation = "softmax" if task == "multiclass" else "sigmoid"
    loss = KD(activation=activation) + ABKD(attention_dim=8)
    student = classifier(4, 2, classes)
    run = Distiller(teacher, student, data, loss, config=config, callbacks=()).fit()
    assert run.attention.shape == (3, 2)  # hidden layers, the pooled one among them
    assert run.metrics["student"]["test"] > 75 and run.metrics["teacher"]["test"] > 75
    assert run.history[-1]["abkd"] < run.history[0]["abkd"]
    cache = TeacherCache.build(teacher, data.training)
    assert cache.num_nodes == data.training.num_nodes
    assert cache.logits.size(0) == int(data.train_mask.sum())
    alone = Distiller(teacher, student, data, KD(activation=activation), config=config)
    assert alone.teacher.widths == []  # scores alone need no states


def test_steps_see_the_training_graphs_only():
    data = graphs()
    noise = torch.randn(data.x.shape) * (~data.train_mask)[data.batch][:, None]
    losses = []
    for given in (data, replace(data, x=data.x + noise)):
        torch.manual_seed(0)
        loss, config = KD() + ABKD(attention_dim=4), TrainConfig(epochs=4, patience=None)
        run = Distiller(classifier(), classifier(4), given, loss, config=config, callbacks=()).fit()
        losses.append([record["loss"] for record in run.history])
    assert losses[0] == losses[1]


def test_models_that_take_pygs_batch():
    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(4, 2)

        def forward(self, x, edge_index, batch=None):
            assert (batch is None) == (x.size(0) == 60)
            return (
                self.lin(x)
                if batch is None
                else self.lin(x).new_zeros(36, 2).index_add(0, batch, self.lin(x))
            )

    data = graphs()
    assert predict(Pooled(), data).shape == (36, 2)
    nodes = small_data()
    assert predict(Pooled(), replace(nodes, x=nodes.x[:, :4].contiguous())).shape == (60, 2)


def test_specs_of_classifiers():
    model = ModelSpec.parse("gcnii-3x5").build(4, 2, pool="sum", dropout=0.1)
    assert isinstance(model, GraphClassifier) and isinstance(model.encoder, GCNII)
    assert model.hidden_layers == ("encoder.convs.*", "act") and model.pool == "sum"


def test_the_command_line_distils_graphs(tmp_path, monkeypatch):
    data = graphs()
    monkeypatch.setattr("abkd_fast.runs.load_data", lambda config: data)
    train = TrainConfig(epochs=3, patience=None)
    config = DistillConfig(
        teacher="gcn-2x16",
        compression="3x",
        train=train,
        teacher_train=train,
        teachers=tmp_path / "teachers",
        out=tmp_path / "out",
    )
    metrics = distill(config)
    assert metrics["compression_ratio"] >= 3
    model, about = load_model(tmp_path / "out" / "seed0" / "student.safetensors")
    assert isinstance(model, GraphClassifier) and about.options["pool"] == "mean"
    assert predict(model, data).shape == (36, 2)


def test_graph_level_data_have_no_node_queries_but_a_latency():
    data, model = graphs(), classifier()
    with pytest.raises(ValueError, match="data must be nodes of one type"):
        latency.NodeServer(model, data)
    subject = latency.Subject("classifier", "student", model)
    report = latency.profile([subject], data, samples=2, seconds=0.1)
    row = report["models"][0]
    assert row["queries"]["one node"] == {} and row["throughput"] == []
    assert row["queries"]["full graph"]["eager"]["n"] >= 2
    assert "data must be nodes of one type" in row["server"]["left_out"]
