"""Objectives against their formulas; method facts of ABKD."""

import pytest
import torch
import torch.nn.functional as F
from helpers import small_data

from abkd_fast import ABKD, KD, TeacherCache
from abkd_fast.capture import Capture, Recorder
from abkd_fast.nn import GCNII

T, S, N = 5, 3, 40


pytestmark = pytest.mark.usefixtures("double")


def problem(student_widths=(4, 4, 4), teacher_widths=(6,) * T, classes=3):
    teacher = TeacherCache.from_states(
        [torch.randn(N, d) + 1 for d in teacher_widths],
        torch.randn(N, classes),
        dtype=torch.float64,
    )
    states = [(torch.randn(N, d) + 0.5).requires_grad_() for d in student_widths]
    logits = torch.randn(N, classes, requires_grad=True)
    return teacher, Capture(states, logits, ["?"] * len(states))


def ready(teacher, student, **options):
    objective = ABKD(attention_dim=7, **options)
    objective.setup(teacher, student.widths, None)
    return objective


def by_hand(objective, teacher, student, normalize="none"):
    """ABKD from its definition, one pair after the other."""
    t_maps, s_maps = objective.maps()
    a = objective.attention_dim
    d = torch.zeros(teacher.num_layers, len(student.states))
    scores = torch.zeros_like(d)
    queries = objective.query.split(teacher.widths)
    keys = objective.key.split(student.widths)
    for i in range(teacher.num_layers):
        for j, h in enumerate(student.states):
            t = teacher.layer(i)
            q, k = t.mean(0) @ queries[i], h.mean(0) @ keys[j]
            scores[i, j] = (q @ k) / a**0.5
            if normalize == "standardize":
                t = t - t.mean(0)
            p, s = t @ t_maps[i], h @ s_maps[j]
            if normalize == "rows":
                p, s = F.normalize(p, dim=1), F.normalize(s, dim=1)
            d[i, j] = (p - s).square().sum() / (N * p.size(1))
    attention = scores.softmax(1)
    return len(student.states) * (attention * d).mean(), attention, d


@pytest.mark.parametrize("normalize", ["none", "standardize", "rows"])
@pytest.mark.parametrize("widths", [(4, 4, 4), (2, 5, 3)])
def test_abkd_is_its_definition_with_every_gradient(normalize, widths):
    teacher, student = problem(widths, (6, 3, 6, 2, 4))
    objective = ready(teacher, student, normalize=normalize, subspace_dim=5)
    expected, attention, d = by_hand(objective, teacher, student, normalize)
    inputs = [*student.states, *objective.parameters()]
    wanted = torch.autograd.grad(expected, inputs)
    loss = objective(student, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(objective.attention, attention.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(objective.dissimilarity, d.detach(), rtol=1e-10, atol=1e-14)
    for got, want in zip(torch.autograd.grad(loss, inputs), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)


def test_standardize_gives_teacher_layers_unit_variance():
    teacher, student = problem()
    scaled = TeacherCache.from_states(
        [teacher.layer(i) * (i + 1) + i for i in range(T)], teacher.logits, torch.float64
    )
    losses = []
    for cache in (teacher, scaled):
        torch.manual_seed(1)
        objective = ready(cache, student, normalize="standardize", map="uniform")
        losses.append(objective(student, cache))
    torch.testing.assert_close(*losses)


def test_pooled_version_compares_means():
    teacher, student = problem()
    objective = ready(teacher, student, pool=True)
    t_maps, s_maps = objective.maps()
    objective(student, teacher)
    p = teacher.layer(2).mean(0) @ t_maps[2]
    s = student.states[1].mean(0) @ s_maps[1]
    torch.testing.assert_close(objective.dissimilarity[2, 1], (p - s).square().mean())


def test_theorem_every_teacher_layer_reaches_every_student_layer():
    """The gradient of student layer l depends on every teacher layer and on layers l..S."""
    torch.manual_seed(0)
    data = small_data(num_nodes=N)
    x = data.x.double()
    student = GCNII(8, 4, S, 3, dropout=0.0).double()
    with Recorder(student) as recorder:
        capture = recorder.run(x, data.graph.to(dtype=torch.float64))
    states = [torch.randn(N, 6, requires_grad=True) for _ in range(T)]
    maps = torch.randn(6, 7), [torch.randn(4, 7, requires_grad=True) for _ in range(S)]
    query, key = torch.randn(T, 6, 7), torch.randn(S, 4, 7)
    q = torch.stack([t.mean(0) @ query[i] for i, t in enumerate(states)])
    k = torch.stack([h.mean(0) @ key[j] for j, h in enumerate(capture.states)])
    attention = (q @ k.t() / 7**0.5).softmax(1)
    p = torch.stack([t @ maps[0] for t in states])
    s = torch.stack([h @ n for h, n in zip(capture.states, maps[1], strict=True)])
    d = (p[:, None] - s[None]).square().sum((2, 3)) / (N * 7)
    loss = (attention * d).mean()
    for layer in range(S):
        weight = student.convs[layer].weight1
        (grad,) = torch.autograd.grad(loss, weight, create_graph=True, retain_graph=True)
        probe = (grad * torch.randn_like(grad)).sum()
        through = torch.autograd.grad(probe, [*states, *maps[1]], retain_graph=True)
        for i in range(T):
            assert through[i].abs().max() > 0, f"student layer {layer} ignores teacher layer {i}"
        for j in range(layer, S):
            assert through[T + j].abs().max() > 0, f"layer {layer} ignores student layer {j}"


def test_theorem_holds_for_the_fused_objective():
    """Changing any one teacher layer changes the gradient of every student layer."""
    torch.manual_seed(0)
    data = small_data(num_nodes=N)
    x = data.x.double()
    student = GCNII(8, 4, S, 3, dropout=0.0, init="xavier").double()
    base = [torch.randn(N, 6) for _ in range(T)]

    def gradients(states, changed_student_layer=None):
        cache = TeacherCache.from_states(states, dtype=torch.float64)
        torch.manual_seed(3)
        objective = ABKD(attention_dim=7)
        objective.setup(cache, [4] * S, None)
        if changed_student_layer is not None:
            with torch.no_grad():
                objective.student_embedding.split([4] * S)[changed_student_layer].add_(1)
        with Recorder(student) as recorder:
            capture = recorder.run(x, data.graph.to(dtype=torch.float64))
        weights = [conv.weight1 for conv in student.convs]
        return torch.autograd.grad(objective(capture, cache), weights)

    before = gradients(base)
    for i in range(T):
        changed = [state + (k == i) * torch.randn(N, 6) for k, state in enumerate(base)]
        for layer, (a, b) in enumerate(zip(before, gradients(changed), strict=True)):
            assert not torch.allclose(a, b, rtol=1e-9, atol=0), (i, layer)
    for j in range(S):
        after = gradients(base, changed_student_layer=j)
        for layer in range(j + 1):
            assert not torch.allclose(before[layer], after[layer], rtol=1e-9, atol=0), (j, layer)


def test_fixed_maps():
    teacher, student = problem()
    maps = {
        name: ready(teacher, student, map=name).attention_map(student)
        for name in ("attention", "uniform", "last", "diagonal")
    }
    for name in ("attention", "uniform", "diagonal"):
        torch.testing.assert_close(maps[name].sum(1), torch.ones(T))
    assert torch.equal(maps["uniform"], torch.full((T, S), 1 / S))
    assert maps["last"].sum() == T and maps["last"][-1, -1] == T
    assert maps["diagonal"].argmax(1).tolist() == [0, 0, 1, 1, 2]
    by_teacher = ready(teacher, student, softmax_over="teacher").attention_map(student)
    torch.testing.assert_close(by_teacher.sum(0), torch.full((S,), T / S))
    given = torch.rand(T, S)
    own = ready(teacher, student, map=given).attention_map(student)
    torch.testing.assert_close(own, given * T / given.sum())


def test_uniform_and_last_are_special_cases_of_the_loss():
    teacher, student = problem()
    objective = ready(teacher, student, map="uniform")
    loss = objective(student, teacher)
    torch.testing.assert_close(loss, objective.dissimilarity.mean())
    objective = ready(teacher, student, map="last")
    torch.testing.assert_close(objective(student, teacher), objective.dissimilarity[-1, -1])


def test_frozen_teacher_map_has_no_gradient_and_stays():
    teacher, student = problem()
    objective = ready(teacher, student, freeze_teacher_map=True)
    before = objective.maps()[0][0].clone()
    objective(student, teacher).backward()
    assert objective.teacher_embedding.grad is None
    assert objective.subspace.grad is not None
    with torch.no_grad():
        objective.subspace += 1
    assert torch.equal(objective.maps()[0][0], before)


def test_kd_is_its_formula():
    teacher, student = problem()
    tau = 3.0
    p = (teacher.logits / tau).softmax(1)
    q = (student.logits / tau).softmax(1)
    expected = 0.8 * tau**2 * (p * (p.log() - q.log())).sum() / N
    kd = KD(alpha=0.8, temperature=tau)
    torch.testing.assert_close(kd(student, teacher), expected)
    assert kd.label_weight == pytest.approx(0.2)
    mean = KD(alpha=0.8, temperature=tau, reduction="mean")
    torch.testing.assert_close(mean(student, teacher) * 3, expected)


def test_kd_does_not_round_the_teacher_to_a_16_bit_student():
    teacher, student = problem()
    student.logits = student.logits.detach().bfloat16()
    loss = KD()(student, teacher)
    student.logits = student.logits.to(teacher.logits.dtype)
    torch.testing.assert_close(loss, KD()(student, teacher))
    assert loss.dtype == teacher.logits.dtype


def test_kd_of_equal_scores_is_zero_with_zero_gradient():
    teacher, student = problem()
    student.logits = teacher.logits.clone().requires_grad_()
    loss = KD()(student, teacher)
    assert abs(loss.item()) < 1e-15
    (grad,) = torch.autograd.grad(loss, student.logits)
    assert grad.abs().max() < 1e-15


def test_objectives_add_and_scale():
    teacher, student = problem()
    kd, abkd = KD(alpha=0.7), ABKD(attention_dim=4, beta=2.0)
    total = 0.5 * (kd + 3 * abkd)
    total.setup(teacher, student.widths, None)
    expected = 0.5 * kd(student, teacher) + 1.5 * abkd(student, teacher)
    torch.testing.assert_close(total(student, teacher), expected)
    assert total.label_weight == pytest.approx(0.3)
    assert set(total.scalars) == {"kd", "abkd"}
    assert sum([kd]) is kd and sum([kd, 3 * abkd]).weights == [1.0, 3.0]
    with pytest.raises(TypeError):
        1 + kd
    assert total.terms() == [kd, abkd] and total.needs_states and not (kd + kd).needs_states


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ABKD(map="first"), "map must be one of attention, uniform, last, diagonal"),
        (lambda: ABKD(softmax_over="both"), "softmax_over must be one of student, teacher"),
        (lambda: ABKD(normalize="l2"), "normalize must be one of none, standardize, rows"),
        (lambda: ABKD(attention_dim=0), "attention_dim must be >= 1, got 0"),
        (lambda: KD(alpha=1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: KD(temperature=0), "temperature must be > 0 and finite, got 0"),
        (lambda: KD(reduction="sum"), "reduction must be one of batchmean, mean"),
    ],
)
def test_rejects_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rejects_what_does_not_fit_the_teacher():
    teacher, student = problem()
    with pytest.raises(ValueError, match=r"map must be \[T=5, S=3\], got \[3, 5\]"):
        ready(teacher, student, map=torch.ones(3, 5))
    with pytest.raises(ValueError, match="at least one captured student layer"):
        ABKD().setup(teacher, [], None)
    with pytest.raises(ValueError, match=r"mask must be"):
        ABKD(mask=torch.ones(3, dtype=torch.bool)).setup(teacher, student.widths, None)
    objective = ready(teacher, student)
    with pytest.raises(ValueError, match=r"widths \[4, 4, 4\] as in setup, got \[4, 4\]"):
        objective(Capture(student.states[:2], student.logits, ["?"] * 2), teacher)
    scores = Capture([], torch.randn(N, 2), [])
    with pytest.raises(ValueError, match=r"student logits must be \[40, 3\]"):
        KD()(scores, teacher)
    with pytest.raises(ValueError, match="KD needs the teacher's class scores"):
        KD()(student, TeacherCache.from_states([torch.randn(N, 2)]))
