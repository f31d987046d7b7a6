"""G-CRD and STRIDE against their formulas, written out node by node in float64."""

import pytest
import torch
from objective_cases import N, assert_same, cache, capture, unit

from abkd_fast import ABKD, TeacherCache
from abkd_fast.capture import Capture
from abkd_fast.distill import GCRD, STRIDE

pytestmark = pytest.mark.usefixtures("double")


def infonce(u, w, temperature):
    """Mean over v of -log softmax_x(<u_v, w_x> / tau) at x = v, in double loops."""
    total = 0.0
    for v in range(len(u)):
        scores = torch.stack([u[v] @ w[x] for x in range(len(w))]) / temperature
        total = total - scores.log_softmax(0)[v]
    return total / len(u)


def by_hand_gcrd(objective, teacher, student):
    u = unit(student.states[-1] @ objective.student_map)
    w = unit(teacher.layer(-1) @ objective.teacher_map)
    return objective.weight * infonce(u, w, objective.temperature)


def by_hand_stride(objective, teacher, student):
    """The embedding term is ABKD's; its own tests hold it to its formula."""
    widths = objective.teacher_widths, objective.student_widths
    attention = objective.attention_map(student)
    maps = [
        stacked.split(width)
        for stacked, width in zip(
            (objective.teacher_structure, objective.student_structure), widths, strict=True
        )
    ]
    embedding = [m.split(w) for m, w in zip(map(torch.cat, objective.maps()), widths, strict=True)]
    total = 0.0
    for i in range(teacher.num_layers):
        w, p = unit(teacher.layer(i) @ maps[0][i]), teacher.layer(i) @ embedding[0][i]
        for j, h in enumerate(student.states):
            structure = infonce(unit(h @ maps[1][j]), w, objective.structure_temperature)
            distance = (p - h @ embedding[1][j]).square().mean()
            total = total + attention[i, j] * (distance + objective.structure_weight * structure)
    return objective.beta * total / teacher.num_layers


def part_of(teacher, nodes):
    states = [teacher.layer(i)[nodes] for i in range(teacher.num_layers)]
    return TeacherCache.from_states(states, teacher.logits[nodes], dtype=torch.float64)


CASES = {
    "gcrd": (lambda: GCRD(projection_dim=5, temperature=0.3, weight=0.7), by_hand_gcrd),
    "stride": (
        lambda: STRIDE(0.4, structure_dim=5, structure_temperature=0.3, attention_dim=6, beta=0.7),
        by_hand_stride,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_its_formula(name):
    teacher, (student, leaves) = cache(), capture()
    make, by_hand = CASES[name]
    objective = make()
    objective.setup(teacher, student.widths, None)
    inputs = [*leaves, *objective.parameters()]
    loss = objective(student, teacher)
    assert_same(loss, by_hand(objective, teacher, student), inputs)
    assert name in objective.scalars


def test_gcrd_on_some_of_the_nodes():
    teacher, nodes = cache(), torch.tensor([5, 3, 20, 21, 7])
    student, leaves = capture(nodes=nodes)
    objective = GCRD(projection_dim=5)
    objective.setup(teacher, student.widths, None)
    loss = objective(student, teacher, nodes)
    expected = by_hand_gcrd(objective, part_of(teacher, nodes), student)
    assert_same(loss, expected, [*leaves, *objective.parameters()])


@pytest.mark.parametrize("batch", [False, True], ids=["all", "batch"])
@pytest.mark.parametrize("masked", [False, True], ids=["every", "masked"])
def test_stride_on_some_of_the_nodes(masked, batch):
    """The structure of the nodes that count, with ABKD's own choice of nodes for the rest."""
    teacher, mask = cache(), torch.rand(N) < 0.5 if masked else None
    nodes = torch.randperm(N)[:25] if batch else None
    student, leaves = capture(nodes=nodes)
    options = {"attention_dim": 6, "mask": mask, "map": "uniform"}
    objective = STRIDE(0.4, structure_dim=5, **options)
    objective.setup(teacher, student.widths, None)
    plain = ABKD(**options)
    plain.setup(teacher, student.widths, None)
    for name, parameter in plain.named_parameters():
        parameter.data = dict(objective.named_parameters())[name].data
    loss = objective(student, teacher, nodes)
    at = torch.arange(N) if nodes is None else nodes
    counted = torch.arange(len(at)) if mask is None else mask[at].nonzero().flatten()
    few = [h[counted] for h in student.states]
    part = part_of(teacher, at[counted])
    total = 0.0
    maps = objective.teacher_structure.split([6, 6, 5]), objective.student_structure.split([4, 3])
    for i in range(3):
        for h, m in zip(few, maps[1], strict=True):
            total = total + infonce(unit(h @ m), unit(part.layer(i) @ maps[0][i]), 0.075) / 2
    weight = 1.0 if mask is None else mask[at].double().mean() / mask.double().mean()
    expected = plain(student, teacher, nodes) + weight * 0.4 * total / 3
    inputs = [*leaves, objective.teacher_structure, objective.student_structure]
    assert_same(loss, expected, inputs)


def test_attention_learns_from_structure():
    """With the embedding term's share taken away, queries and keys still have a gradient."""
    teacher, (student, _) = cache(), capture()
    objective = STRIDE(1e9, structure_dim=5, attention_dim=6)
    objective.setup(teacher, student.widths, None)
    loss = objective(student, teacher)
    gradients = torch.autograd.grad(loss / 1e9, [objective.query, objective.key])
    attention = objective.attention_map(student)
    expected = torch.autograd.grad(
        (attention * objective.structure).mean() * 2, [objective.query, objective.key]
    )
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
        assert want.abs().max() > 1e-4
    assert objective.structure.shape == objective.dissimilarity.shape == (3, 2)


@pytest.mark.parametrize("make", [lambda: GCRD(samples=9), lambda: STRIDE(samples=9)])
def test_a_sample_is_drawn_anew_from_the_seed(make):
    teacher, (student, leaves) = cache(), capture()
    objective = make()
    objective.setup(teacher, student.widths, None)
    torch.manual_seed(3)
    losses = [objective(student, teacher) for _ in range(2)]
    torch.manual_seed(3)
    assert torch.equal(objective(student, teacher), losses[0])
    assert not torch.equal(*losses)
    torch.manual_seed(3)
    rows = torch.randperm(N)[:9].sort().values
    if isinstance(objective, GCRD):
        few = Capture([h[rows] for h in student.states], student.logits[rows], student.names)
        assert_same(losses[0], objective(few, teacher, rows), [*leaves, *objective.parameters()])
    else:
        torch.manual_seed(3)
        found, _ = objective._sampled(student, teacher, None, None)
        touched = torch.autograd.grad(found.sum(), leaves[0])[0].any(1)
        assert torch.equal(touched.nonzero().flatten(), rows)


def test_layers_of_one_width_may_share_their_maps():
    teacher, (student, _) = cache(), capture((4, 4))
    objective = STRIDE(structure_dim=5, shared_maps=True)
    objective.setup(teacher, student.widths, None)
    assert objective.teacher_structure.shape == (11, 5)
    assert objective.student_structure.shape == (4, 5)
    whole = STRIDE(structure_dim=5)
    whole.setup(teacher, student.widths, None)
    state = objective.state_dict()
    for name in whole.state_dict():
        side = objective.teacher_widths if name in TEACHER_SIDE else objective.student_widths
        if name in (*TEACHER_SIDE, *STUDENT_SIDE):
            state[name] = objective._every(state[name], side)
    whole.load_state_dict(state)
    torch.testing.assert_close(objective(student, teacher), whole(student, teacher))


TEACHER_SIDE = ("query", "teacher_embedding", "teacher_structure")
STUDENT_SIDE = ("key", "student_embedding", "student_structure")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GCRD(projection_dim=0), "projection_dim must be >= 1, got 0"),
        (lambda: GCRD(samples=0), "samples must be >= 1, got 0"),
        (lambda: GCRD(temperature=0.0), "temperature must be > 0 and finite, got 0.0"),
        (lambda: GCRD(weight=-1.0), "weight must be >= 0 and finite, got -1.0"),
        (lambda: STRIDE(structure_weight=-1.0), "structure_weight must be >= 0 and finite"),
        (lambda: STRIDE(structure_dim=0), "structure_dim must be >= 1, got 0"),
        (lambda: STRIDE(structure_temperature=-2.0), "structure_temperature must be > 0"),
        (lambda: STRIDE(samples=0), "samples must be >= 1, got 0"),
        (lambda: STRIDE(map="best"), "map must be one of attention, uniform, last, diagonal"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_they_need_is_named():
    teacher, (student, _) = cache(), capture()
    for make in (GCRD, STRIDE):
        with pytest.raises(ValueError, match="needs at least one captured student layer, got none"):
            make().setup(teacher, [], None)
        objective = make()
        objective.setup(teacher, [4, 4], None)
        with pytest.raises(ValueError, match=r"student states must have widths \[4, 4\] as in set"):
            objective(student, teacher)
