"""Objectives that look at edges (MSKD, GraphAKD) against their formulas in float64."""

import pytest
import torch
from objective_cases import (
    CLASSES,
    SOME,
    N,
    assert_same,
    assert_same_gradients,
    cache,
    capture,
    graph,
    kl,
    part_of,
    unit,
)

from abkd_fast import CSRGraph
from abkd_fast.distill import MSKD, GraphAKD
from abkd_fast.subgraph import induced_subgraph

pytestmark = pytest.mark.usefixtures("double")


def neighbour_distribution(edges, h, v, scale):
    near = edges.col[edges.rowptr[v] : edges.rowptr[v + 1]].long()
    return torch.stack([(-(h[v] - h[u]).abs().sum() / scale).exp() for u in near]).log_softmax(0)


def by_hand_mskd(objective, teacher, student, edges, others):
    a, everyone, h = objective.attention_dim, [teacher, *others], student.states[-1]
    total = 0.0
    for v in range(len(h)):
        if edges.rowptr[v] == edges.rowptr[v + 1]:
            continue
        query = objective.query(h[v])
        scores = [k(t.layer(-1)[v]) @ query for k, t in zip(objective.key, everyone, strict=True)]
        weights = (torch.stack(scores) / a**0.5).softmax(0)
        found = neighbour_distribution(edges, h, v, objective.scale)
        for weight, each in zip(weights, everyone, strict=True):
            wanted = neighbour_distribution(edges, each.layer(-1), v, objective.scale)
            total = total + weight * kl(wanted, found)
    return objective.weight * total / len(h)


@pytest.mark.parametrize("nodes", [None, SOME], ids=["all", "some"])
def test_mskd_equals_its_formula(nodes):
    teacher, others, edges = cache(), [cache((7,)), cache((3, 2))], graph()
    objective = MSKD(others, attention_dim=5, scale=2.0)
    student, leaves = capture(nodes=nodes)
    objective.setup(teacher, student.widths, edges)
    inputs, loss = [*leaves, *objective.parameters()], objective(student, teacher, nodes)
    if nodes is not None:
        edges = induced_subgraph(edges, nodes)
        teacher, others = part_of(teacher, nodes), [part_of(each, nodes) for each in others]
    assert_same(loss, by_hand_mskd(objective, teacher, student, edges, others), inputs)


def test_a_batch_with_its_own_graph_needs_no_other():
    teacher, edges = cache(), graph()
    inside = induced_subgraph(edges, SOME)
    for objective in (MSKD([cache((7,))]), GraphAKD()):
        student, _ = capture(nodes=SOME)
        objective.setup(teacher, student.widths, edges)
        expected = objective(student, teacher, SOME)
        student.graph = inside
        torch.testing.assert_close(objective(student, teacher, SOME), expected, rtol=0, atol=0)


def by_hand_graphakd(objective, teacher, student, edges, labels):
    """(student's loss, critics' loss), from the probabilities that they give."""
    z_t, z_s = teacher.logits, student.logits
    h_t, h_s = teacher.layer(-1), objective.match(student.states[-1])
    critic, edge, whole = objective.of_logits, objective.of_edges, objective.of_graph

    def say(z):
        return ((z + critic.lin(z)).relu() @ critic.out.weight.t()).split([CLASSES, 1], 1)

    def class_loss(z):
        scores = say(z)[0].log_softmax(1)
        losses = [-scores[v, labels[v]] for v in range(len(z)) if labels[v] >= 0]
        return sum(losses) / max(len(losses), 1)

    def cross_entropy(logits, truth):
        p = torch.sigmoid(logits)
        return -(p if truth else 1.0 - p).log().mean()

    def edges_of(h):
        e = unit(h)
        rows = [edges.row().tolist(), edges.col.tolist()]
        scores = [(e[v] * edge.diagonal) @ e[u] * edge.scale for v, u in zip(*rows, strict=True)]
        return torch.cat(scores)

    def in_graph(h, of):
        return unit(h) @ torch.diag(whole.diagonal) @ of.mean(0).sigmoid() * whole.scale

    bce = cross_entropy
    critics = (bce(say(z_t)[1], 1) + bce(say(z_s)[1], 0) + class_loss(z_t) + class_loss(z_s)) / 2
    critics = critics + bce(edges_of(h_t), 1) + bce(edges_of(h_s), 0)
    critics = critics + bce(in_graph(h_t, h_t), 1) + bce(in_graph(h_s, h_t), 0)
    critics = critics + bce(in_graph(h_s, h_s), 1) + bce(in_graph(h_t, h_s), 0)
    ours = (bce(say(z_s)[1], 1) + class_loss(z_s)) / 2 + (z_s - z_t).abs().sum() / len(z_s)
    ours = ours + bce(edges_of(h_s), 1) + bce(in_graph(h_s, h_t), 1)
    return ours + bce(in_graph(h_t, h_s), 1) + bce(in_graph(h_s, h_s), 0), critics


@pytest.mark.parametrize("width", [4, 5], ids=["mapped", "as wide"])
@pytest.mark.parametrize("nodes", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("labelled", [True, False])
def test_graphakd_trains_each_side_on_its_own_loss(width, nodes, labelled):
    teacher, edges = cache(), graph()
    labels = torch.where(torch.rand(N) < 0.3, torch.arange(N) % CLASSES, -1)
    objective = GraphAKD(weight=2.0, labels=labels if labelled else None)
    student, leaves = capture((3, width), nodes=nodes)
    objective.setup(teacher, student.widths, edges)
    loss = objective(student, teacher, nodes)
    labels = labels if labelled else torch.full((N,), -1)
    if nodes is not None:
        labels, edges = labels[nodes], induced_subgraph(edges, nodes)
        teacher = part_of(teacher, nodes)
    ours, critics = by_hand_graphakd(objective, teacher, student, edges, labels)
    torch.testing.assert_close(loss, 2.0 * (ours + critics), rtol=1e-10, atol=0)
    mine = [*leaves, *objective.match.parameters()]
    theirs = [p for part in ("logits", "edges", "graph") for p in _critic(objective, part)]
    assert len(mine) + len(theirs) == len(leaves) + len(list(objective.parameters()))
    assert_same_gradients(loss, 2.0 * ours, mine, mine)
    assert_same_gradients(loss, 2.0 * critics, theirs, theirs)


def _critic(objective, part):
    return getattr(objective, f"of_{part}").parameters()


def test_a_graph_without_edges_counts_nothing():
    teacher, student = cache(), capture()[0]
    empty = CSRGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.long), N)
    mskd = MSKD([cache((7,))])
    mskd.setup(teacher, student.widths, empty)
    assert mskd(student, teacher).item() == 0.0
    graphakd = GraphAKD()
    graphakd.setup(teacher, student.widths, empty)
    assert bool(graphakd(student, teacher).isfinite())
