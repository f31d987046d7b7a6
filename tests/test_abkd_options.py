"""ABKD's heads, temperature, shared maps and identity P against the definition."""

import pytest
import torch
from objective_cases import assert_same
from test_distill import N, T, problem, ready

from abkd_fast import ABKD, KD
from abkd_fast.capture import Capture
from abkd_fast.distill import STRIDE

pytestmark = pytest.mark.usefixtures("double")

WIDTHS = [(6,) * T, (6, 5, 6, 5, 5)]


def layers(stacked, widths, shared):
    """The map of every layer out of the stacked ones, one by one."""
    kept = list(dict.fromkeys(widths)) if shared else list(widths)
    parts, start = [], 0
    for width in kept:
        parts.append(stacked[start : start + width])
        start += width
    assert start == len(stacked)
    return [parts[kept.index(width)] for width in widths] if shared else parts


def by_hand(objective, teacher, student):
    """beta S mean(A D), pair by pair; and A."""
    shared, a = objective.shared_maps, objective.attention_dim
    t_widths, s_widths = teacher.widths, student.widths
    queries, keys = (
        layers(stacked, widths, shared)
        for stacked, widths in ((objective.query, t_widths), (objective.key, s_widths))
    )
    t_maps = layers(objective.teacher_embedding, t_widths, shared)
    s_maps = layers(objective.student_embedding, s_widths, shared)
    p_student = torch.eye(a) if objective.identity_subspace else objective.subspace
    p_teacher = p_student
    if objective.freeze_teacher_map and not objective.identity_subspace:
        p_teacher = objective.teacher_subspace
    scores = torch.zeros(objective.heads, T, len(s_widths))
    d = torch.zeros(T, len(s_widths))
    for i in range(T):
        for j, h in enumerate(student.states):
            t = teacher.layer(i)
            for head in range(objective.heads):
                part = slice(head * a, (head + 1) * a)
                q, k = t.mean(0) @ queries[i][:, part], h.mean(0) @ keys[j][:, part]
                scores[head, i, j] = (q @ k) / (a**0.5 * objective.temperature)
            difference = t @ t_maps[i] @ p_teacher - h @ s_maps[j] @ p_student
            d[i, j] = difference.square().sum() / (N * difference.size(1))
    if objective.softmax_over == "student":
        attention = scores.softmax(2).mean(0)
    else:
        attention = scores.softmax(1).mean(0) * T / len(s_widths)
    return len(s_widths) * (attention * d).mean(), attention


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(
    "options",
    [
        {"heads": 3},
        {"temperature": 0.2},
        {"heads": 2, "temperature": 3.0, "softmax_over": "teacher"},
        {"shared_maps": True},
        {"identity_subspace": True},
        {"identity_subspace": True, "freeze_teacher_map": True},
        {"shared_maps": True, "heads": 2, "subspace_dim": 3, "freeze_teacher_map": True},
    ],
    ids=str,
)
def test_option_equals_its_definition(options, widths):
    teacher, student = problem((4, 3, 4), widths)
    objective = ready(teacher, student, **options)
    expected, attention = by_hand(objective, teacher, student)
    inputs = [*student.states, *(p for p in objective.parameters() if p.requires_grad)]
    loss = objective(student, teacher)
    torch.testing.assert_close(objective.attention, attention.detach(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(objective.attention.sum(), torch.tensor(float(T)))
    assert_same(loss, expected, inputs)


def test_parameters_that_options_take_and_give():
    teacher, student = problem((4, 3, 4))
    count = {
        name: sum(p.numel() for p in ready(teacher, student, **options).parameters())
        for name, options in {
            "usual": {},
            "identity": {"identity_subspace": True},
            "shared": {"shared_maps": True},
            "heads": {"heads": 3},
        }.items()
    }
    a, each = 7, 6 * T + 11
    assert count["usual"] == 2 * each * a + a * a
    assert count["identity"] == count["usual"] - a * a
    assert count["shared"] == 2 * (6 + 4 + 3) * a + a * a
    assert count["heads"] == count["usual"] + 2 * each * a


def test_options_work_together_with_the_others():
    """Standardized teacher, rows, pooling and masks, with shared maps and without P."""
    teacher, student = problem((4, 3, 4))
    for more in ({"normalize": "standardize"}, {"normalize": "rows"}, {"pool": True}):
        objective = ready(teacher, student, shared_maps=True, identity_subspace=True, **more)
        kept = {k: v.clone() for k, v in objective.state_dict().items()}
        objective(student, teacher).backward()
        assert bool(objective.student_embedding.grad.isfinite().all())
        assert all(
            torch.equal(v, kept[k]) for k, v in objective.state_dict().items() if "mean" not in k
        )


def test_usual_settings_are_named_as_before():
    """A run's checkpoint belongs to the objective that this text describes."""
    assert "heads" not in repr(ABKD()) and repr(ABKD()).endswith("beta=1.0)")
    assert repr(ABKD(heads=2, temperature=0.5)).endswith("beta=1.0, temperature=0.5, heads=2)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
        (
            {"identity_subspace": True, "subspace_dim": 3, "attention_dim": 4},
            "subspace_dim must be attention_dim=4 with identity_subspace, got 3",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ABKD(**options)


def part(student, nodes):
    return Capture([state[nodes] for state in student.states], student.logits[nodes], student.names)


@pytest.mark.parametrize("normalize", ["none", "standardize", "rows"])
def test_batches_of_a_masked_objective_average_to_the_whole(normalize):
    """A batch with few nodes that count weighs little; one without any, nothing."""
    teacher, student = problem()
    mask = torch.rand(N) < 0.4
    mask[: N // 4] = False
    objective = ready(teacher, student, mask=mask, map="uniform", normalize=normalize)
    batches = torch.arange(N).tensor_split([N // 4, N // 2, N - 3])
    losses = [objective(part(student, nodes), teacher, nodes) for nodes in batches]
    mean = sum(len(nodes) / N * loss for nodes, loss in zip(batches, losses, strict=True))
    torch.testing.assert_close(mean, objective(student, teacher))
    assert losses[0] == 0.0 < losses[1]


@pytest.mark.parametrize(
    "make", [ABKD, STRIDE, lambda **rest: ABKD(pool=True, **rest)], ids=["abkd", "stride", "pool"]
)
def test_a_batch_in_which_no_node_counts_has_no_gradient(make):
    teacher, student = problem()
    mask = torch.arange(N) < 5
    objective = make(attention_dim=4, mask=mask)
    objective.setup(teacher, student.widths, None)
    nodes = torch.arange(5, N)
    loss = objective(part(student, nodes), teacher, nodes)
    loss.backward()
    assert loss == 0.0 and objective.dissimilarity.shape == (T, 3)
    assert all(not state.grad.any() for state in student.states)


def test_a_batch_weighs_what_counts_among_the_nodes_of_an_epoch():
    """Seeds that are the nodes of the mask: every batch counts whole."""
    teacher, student = problem()
    mask = torch.arange(N) < 6
    objective = KD(alpha=0.5) + ready(teacher, student, mask=mask, map="uniform")
    objective.setup(teacher, student.widths, None)
    objective.set_epoch(mask.nonzero().flatten())
    nodes = torch.arange(3)
    (abkd,) = [term for term in objective.terms() if isinstance(term, ABKD)]
    abkd(part(student, nodes), teacher, nodes)
    assert abkd.batch_weight == 1.0
    with pytest.raises(ValueError, match="mask must let nodes of the epoch's batches count"):
        objective.set_epoch((~mask).nonzero().flatten())
