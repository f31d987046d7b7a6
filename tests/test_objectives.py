"""Objectives of the field against their formulas, written out node by node in float64."""

import pytest
import torch
from objective_cases import (
    SOME,
    N,
    assert_same,
    cache,
    capture,
    graph,
    kl,
    part_of,
    standardized,
    unit,
)

from abkd_fast import KD, TeacherCache
from abkd_fast.capture import Capture
from abkd_fast.distill import AFD, AT, GLNN, MSKD, FitNets, GraphAKD, MustaD, SemCKD
from abkd_fast.objective_settings import MustaDConfig, RunFacts

pytestmark = pytest.mark.usefixtures("double")


def by_hand_at(objective, teacher, student):
    energies = [h.square().sum(1) for h in (student.states[-1], teacher.layer(-1))]
    a, b = (e / e.square().sum().sqrt() for e in energies)
    return objective.weight * sum((a[v] - b[v]) ** 2 for v in range(len(a))) / len(a)


def by_hand_fitnets(objective, teacher, student):
    u = unit(standardized(student.states[-1], objective.student_projection))
    w = unit(standardized(teacher.layer(-1), objective.teacher_projection))
    total = sum(((u[v] - w[v]) ** 2).sum() for v in range(len(u)))
    return objective.weight * total / (len(u) * objective.projection_dim)


def by_hand_mustad(objective, teacher, student):
    target = (teacher.logits / objective.temperature).log_softmax(1)
    scores = kl(target, student.logits.log_softmax(1)).mean()
    hidden = objective.match(student.states[-1])
    kernel = torch.stack([(a - b).norm() for a, b in zip(hidden, teacher.layer(-1), strict=True)])
    if objective.kernel == "kl":
        kernel = kl(teacher.layer(-1).log_softmax(1), hidden.log_softmax(1))
    return objective.logit_weight * scores + objective.hidden_weight * kernel.mean()


def by_hand_glnn(objective, teacher, student):
    divergence = kl(teacher.logits.log_softmax(1), student.logits.log_softmax(1)).mean()
    return (1.0 - objective.label_weight) * divergence


def by_hand_afd(objective, teacher, student):
    a, total = objective.attention_dim, 0.0
    queries = [
        standardized(teacher.layer(i), objective.query[i]) for i in range(teacher.num_layers)
    ]
    keys = [standardized(h, key) for h, key in zip(student.states, objective.key, strict=True)]
    for v in range(len(student.logits)):
        for i, query in enumerate(queries):
            position = objective.teacher_position[i]
            scores = torch.stack(
                [
                    query[v] @ (objective.bilinear[i] @ key[v]) + position @ where
                    for key, where in zip(keys, objective.student_position, strict=True)
                ]
            )
            attention, t = (scores / a**0.5).softmax(0), teacher.layer(i)[v]
            maps = objective.values[str(t.numel())]
            for weight, value, h in zip(attention, maps, student.states, strict=True):
                s = value(h[v])
                total = total + weight * (unit(s) - unit(t)).square().mean()
    return objective.weight * total / len(student.logits)


def by_hand_semckd(objective, teacher, student):
    states, width = [teacher.layer(i) for i in range(teacher.num_layers)], objective.width

    def embedded(maps, layers):
        rows = []
        for f, h in zip(maps, layers, strict=True):
            similarity = torch.zeros(len(h), width)
            for v in range(len(h)):
                for u in range(len(h)):
                    similarity[v, u] = h[v] @ h[u]
            rows.append(unit(f(similarity)))
        return rows

    queries, keys = embedded(objective.query, student.states), embedded(objective.key, states)
    total = 0.0
    for j, h in enumerate(student.states):
        for i, t in enumerate(states):
            moved = objective.regressors[str(t.size(1))][j]
            hidden = standardized(standardized(h, moved[0]), moved[1])
            found = hidden @ moved[2].weight.t() + moved[2].bias
            for v in range(len(h)):
                weights = torch.stack([queries[j][v] @ key[v] for key in keys]).softmax(0)
                total = total + weights[i] * (found[v] - t[v]).square().mean()
    return objective.weight * total / (len(student.logits) * len(student.states))


PLAIN = {
    "at": (lambda: AT(weight=3.0), by_hand_at),
    "fitnets": (lambda: FitNets(projection_dim=7, weight=2.0), by_hand_fitnets),
    "mustad": (lambda: MustaD(hidden_weight=0.3), by_hand_mustad),
    "mustad-distance": (lambda: MustaD(temperature=1.5, kernel="distance"), by_hand_mustad),
    "glnn": (lambda: GLNN(labels_weight=0.25), by_hand_glnn),
    "afd": (lambda: AFD(attention_dim=5), by_hand_afd),
    "semckd": (lambda: SemCKD(attention_dim=4), by_hand_semckd),
}


@pytest.mark.parametrize("nodes", [None, SOME, SOME[:1]], ids=["all", "some", "one"])
@pytest.mark.parametrize("name", PLAIN)
def test_objective_equals_its_formula(name, nodes):
    make, by_hand = PLAIN[name]
    objective, teacher = make(), cache()
    student, leaves = capture(nodes=nodes)
    objective.setup(teacher, student.widths, None)
    part = teacher if nodes is None else part_of(teacher, nodes)
    inputs = [*leaves, *objective.parameters()]
    assert_same(objective(student, teacher, nodes), by_hand(objective, part, student), inputs)
    assert all(bool(value.isfinite()) for value in objective.scalars.values())


@pytest.mark.parametrize("objective", [AFD(samples=9), SemCKD(samples=9)])
def test_a_sample_is_a_batch_of_these_nodes(objective):
    teacher, (student, leaves) = cache(), capture()
    objective.setup(teacher, student.widths, None)
    torch.manual_seed(3)
    loss = objective(student, teacher)
    torch.manual_seed(3)
    rows = torch.randperm(N)[:9].sort().values
    few = Capture([h[rows] for h in student.states], student.logits[rows], student.names)
    assert_same(loss, objective(few, teacher, rows), [*leaves, *objective.parameters()])
    assert objective.attention.shape == objective.dissimilarity.shape == (3, 2)
    axis = 1 if isinstance(objective, AFD) else 0
    torch.testing.assert_close(objective.attention.sum(axis), torch.ones(3 if axis else 2))


def test_a_narrow_cache_is_read_in_float32():
    """A teacher in bfloat16 and a student in float32 meet in float32."""
    torch.set_default_dtype(torch.float32)
    wide, edges = cache(), graph()
    states = [wide.layer(i).float() for i in range(3)]
    teacher = TeacherCache.from_states(states, wide.logits.float(), dtype=torch.bfloat16)
    rounded = TeacherCache.from_states(
        [teacher.layer(i).float() for i in range(3)], teacher.logits, dtype=torch.float32
    )
    for make in (AT, FitNets, AFD, SemCKD, MustaD, GraphAKD, lambda: MSKD([rounded])):
        student, _ = capture()
        student = Capture([h.float() for h in student.states], student.logits.float(), ["?"] * 2)
        losses = []
        for each in (teacher, rounded):
            torch.manual_seed(1)
            objective = make()
            objective.setup(each, student.widths, edges)
            losses.append(objective(student, each))
        torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
        assert losses[0].dtype == torch.float32


def test_glnn_is_kd_with_the_labels_left_out():
    teacher, (student, _) = cache(), capture()
    assert GLNN().label_weight == 0.0
    torch.testing.assert_close(
        GLNN(labels_weight=0.25)(student, teacher), KD(alpha=0.75)(student, teacher)
    )


def test_objectives_add_and_scale():
    teacher, (student, leaves) = cache(), capture()
    parts = [AT(), FitNets(projection_dim=3), KD(alpha=0.5), MustaD()]
    total = 0.5 * parts[0] + parts[1] + 2.0 * parts[2] + parts[3]
    total.setup(teacher, student.widths, None)
    expected = sum(
        w * part(student, teacher) for w, part in zip((0.5, 1, 2, 1), parts, strict=True)
    )
    assert_same(total(student, teacher), expected, [*leaves, *total.parameters()])
    assert total.label_weight == 0.5
    assert set(total.scalars) == {"at", "fitnets", "kd", "mustad_logits", "mustad_hidden"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AT(weight=-1.0), "weight must be >= 0 and finite, got -1.0"),
        (lambda: FitNets(projection_dim=0), "projection_dim must be >= 1, got 0"),
        (lambda: FitNets(weight=float("nan")), "weight must be >= 0 and finite, got nan"),
        (lambda: AFD(samples=0), "samples must be >= 1, got 0"),
        (lambda: SemCKD(attention_dim=0), "attention_dim must be >= 1, got 0"),
        (lambda: MSKD(scale=0.0), "scale must be > 0 and finite, got 0.0"),
        (lambda: GLNN(labels_weight=1.5), r"labels_weight must be in \[0, 1\], got 1.5"),
        (lambda: MustaD(kernel="lin"), "kernel must be one of kl, distance, got 'lin'"),
        (lambda: MustaD(temperature=0.0), "temperature must be > 0 and finite, got 0.0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_an_objective_needs_is_named():
    teacher, (student, _) = cache(), capture()
    silent = TeacherCache.from_states([torch.randn(N, 4)], dtype=torch.float64)
    with pytest.raises(ValueError, match="AT needs at least one captured student layer, got none"):
        AT().setup(teacher, [], None)
    with pytest.raises(ValueError, match="teachers must hold further teachers, got none"):
        MSKD().setup(teacher, [4], graph())
    with pytest.raises(ValueError, match="teachers must have states of the 40 nodes, got Teacher"):
        MSKD([cache(num_nodes=7)]).setup(teacher, [4], graph())
    with pytest.raises(ValueError, match="MSKD needs the graph in setup, got None"):
        MSKD([teacher]).setup(teacher, [4], None)
    with pytest.raises(ValueError, match="GraphAKD needs the teacher's class scores"):
        GraphAKD().setup(silent, [4], graph())
    objective = AFD()
    objective.setup(teacher, [4, 4], None)
    with pytest.raises(ValueError, match=r"student states must have widths \[4, 4\] as in setup"):
        objective(student, teacher)
    mustad = MustaD()
    mustad.setup(teacher, [3], None)
    student.logits = torch.randn(N, 2)
    with pytest.raises(ValueError, match=r"student logits must be \[40, 3\] as the teacher's are"):
        mustad(student, teacher)
    student.logits = torch.randn(N, 1)
    teacher.logits = torch.randn(N, 1)
    with pytest.raises(ValueError, match="teacher logits must have two columns or more for a soft"):
        mustad(student, teacher)
    with pytest.raises(ValueError, match="must have classes that exclude each other, got task b"):
        MustaDConfig().build(RunFacts(task="binary"))
