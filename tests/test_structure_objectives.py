"""LSP, GSP, SP, RKD and CKA against their formulas, written out node by node in float64."""

import pytest
import torch
from objective_cases import N, assert_same, cache, capture, graph, kl, unit
from thread_counts import at_thread_counts

from abkd_fast import CSRGraph, TeacherCache
from abkd_fast._backend import backend_of
from abkd_fast.capture import Capture
from abkd_fast.distill import AT, CKA, GSP, LSP, RKD, SP
from abkd_fast.subgraph import induced_subgraph

SOME = torch.tensor([3, 39, 0, 17, 8, 21, 5, 33, 2, 11, 30, 1])
KERNELS = {
    "rbf": ({}, lambda a, b: (-0.5 * (a - b).square().sum()).exp()),
    "cosine": ({"kernel": "cosine"}, lambda a, b: unit(a) @ unit(b)),
    "poly": ({"kernel": "poly"}, lambda a, b: (a @ b) ** 2),
    "poly-cubed": (
        {"kernel": "poly", "c": 0.5, "power": 3},
        lambda a, b: (a @ b + 0.5) ** 3,
    ),
    "l2": ({"kernel": "l2"}, lambda a, b: (a - b).square().sum()),
}


pytestmark = pytest.mark.usefixtures("double")


def part_of(teacher, nodes):
    """The teacher as if there were no other nodes."""
    if nodes is None:
        return teacher
    states = [teacher.layer(i)[nodes] for i in range(teacher.num_layers)]
    return TeacherCache.from_states(states, dtype=torch.float64)


def matrix(h, k):
    return torch.stack([torch.stack([k(a, b) for b in h]) for a in h])


def by_hand_lsp(k, edges, teacher, student):
    total, pair = 0.0, (teacher.layer(-1), student.states[-1])
    for v in range(len(pair[0])):
        near = edges.col[edges.rowptr[v] : edges.rowptr[v + 1]].long()
        if len(near):
            p, q = (torch.stack([k(h[v], h[u]) for u in near]).log_softmax(0) for h in pair)
            total = total + kl(p, q)
    return total / len(pair[0])


def by_hand_sp(teacher, student):
    grams = [matrix(h, torch.dot) for h in (teacher.layer(-1), student.states[-1])]
    t, s = (torch.stack([row / row.square().sum().sqrt() for row in g]) for g in grams)
    return (t - s).square().sum() / len(t) ** 2


def by_hand_rkd(objective, teacher, student):
    distances, angles = [], []
    for h in (teacher.layer(-1), student.states[-1]):
        n = len(h)
        apart = [[(h[u] - h[v]).square().sum().sqrt() for v in range(n)] for u in range(n)]
        mean = sum(apart[u][v] for u in range(n) for v in range(n) if u != v) / (n * (n - 1))
        distances.append(
            torch.stack([apart[u][v] / mean if u != v else h.new_zeros(())
                         for u in range(n) for v in range(n)])
        )  # fmt: skip
        zero = torch.zeros_like(h[0])
        e = [[(h[u] - h[v]) / apart[u][v] if u != v else zero for v in range(n)] for u in range(n)]
        angles.append(
            torch.stack([e[u][v] @ e[w][v]
                         for v in range(n) for u in range(n) for w in range(n)])
        )  # fmt: skip

    def huber(x):
        return torch.where(x.abs() < 1.0, 0.5 * x**2, x.abs() - 0.5).mean()

    distance, angle = (huber(pair[0] - pair[1]) for pair in (distances, angles))
    return objective.distance_weight * distance + objective.angle_weight * angle


def by_hand_cka(pairs, teacher, student):
    def gram(h):
        center = torch.eye(len(h)) - 1.0 / len(h)
        return center @ h @ h.t() @ center

    total = 0.0
    for i in range(teacher.num_layers):
        for j, h in enumerate(student.states):
            x, y = gram(teacher.layer(i)), gram(h)
            total = total + pairs[i, j] * (1.0 - (x * y).sum() / (x.norm() * y.norm()))
    return total / teacher.num_layers


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("nodes", [None, SOME], ids=["all", "some"])
def test_lsp_equals_its_formula(kernel, nodes):
    options, k = KERNELS[kernel]
    objective, teacher, edges = LSP(**options, weight=3.0), cache(), graph()
    student, leaves = capture(nodes=nodes)
    objective.setup(teacher, student.widths, edges)
    loss = objective(student, teacher, nodes)
    edges = edges if nodes is None else induced_subgraph(edges, nodes)
    assert_same(loss, 3.0 * by_hand_lsp(k, edges, part_of(teacher, nodes), student), leaves)
    assert torch.equal(3.0 * objective.scalars["lsp"], loss.detach())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("nodes", [None, SOME, SOME[:1]], ids=["all", "some", "one"])
def test_gsp_equals_its_formula(kernel, nodes):
    options, k = KERNELS[kernel]
    objective, teacher = GSP(**options, weight=3.0), cache()
    student, leaves = capture(nodes=nodes)
    objective.setup(teacher, student.widths, None)
    pair = (student.states[-1], part_of(teacher, nodes).layer(-1))
    s, t = (matrix(h, k) for h in pair)
    assert_same(objective(student, teacher, nodes), 3.0 * (s - t).square().mean(), leaves)


@pytest.mark.parametrize("nodes", [None, SOME, SOME[:1]], ids=["all", "some", "one"])
def test_sp_equals_its_formula(nodes):
    objective, teacher = SP(weight=7.0), cache()
    student, leaves = capture(nodes=nodes)
    objective.setup(teacher, student.widths, None)
    expected = 7.0 * by_hand_sp(part_of(teacher, nodes), student)
    assert_same(objective(student, teacher, nodes), expected, leaves)


def test_rkd_equals_its_formula():
    objective, teacher = RKD(), cache()
    student, leaves = capture(nodes=SOME)
    objective.setup(teacher, student.widths, None)
    expected = by_hand_rkd(objective, part_of(teacher, SOME), student)
    assert_same(objective(student, teacher, SOME), expected, leaves)
    assert set(objective.scalars) == {"rkd_distance", "rkd_angle"}


@pytest.mark.parametrize("map", ["uniform", "last", "diagonal", torch.tensor([[1.0, 0], [2, 3]])])
@pytest.mark.parametrize("nodes", [None, SOME], ids=["all", "some"])
def test_cka_equals_its_formula(map, nodes):
    objective, teacher = CKA(map, weight=2.0), cache((6, 5))
    student, leaves = capture(nodes=nodes)
    objective.setup(teacher, student.widths, None)
    loss = objective(student, teacher, nodes)
    expected = 2.0 * by_hand_cka(objective.fixed_map, part_of(teacher, nodes), student)
    assert_same(loss, expected, leaves)
    assert float(objective.fixed_map.sum()) == pytest.approx(2.0)
    assert objective.attention.shape == objective.dissimilarity.shape == (2, 2)


@pytest.mark.parametrize("scale", [1e-13, 1e10])
def test_cka_of_tiny_and_of_huge_states_in_float32(scale):
    torch.set_default_dtype(torch.float32)
    teacher = TeacherCache.from_states([torch.randn(N, 4) for _ in range(2)])
    state = torch.randn(N, 3)
    losses, gradients = [], []
    for factor in (1.0, scale):
        leaf = (state * factor).requires_grad_()
        objective = CKA()
        objective.setup(teacher, [3], None)
        loss = objective(Capture([leaf], torch.zeros(N, 2), ["?"]), teacher)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(leaf.grad * factor)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_cka_is_0_for_what_a_rotation_and_a_scale_make_equal():
    teacher, (student, _) = cache((6,)), capture()
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    student.states = [2.5 * teacher.layer(0) @ turn + 1.0]
    objective = CKA()
    objective.setup(teacher, [6], None)
    assert abs(float(objective(student, teacher))) < 1e-12


@pytest.mark.parametrize("objective", [GSP(samples=9), RKD(samples=9)])
def test_a_sample_is_a_batch_of_these_nodes(objective):
    teacher, (student, leaves) = cache(), capture()
    objective.setup(teacher, student.widths, None)
    torch.manual_seed(3)
    loss = objective(student, teacher)
    torch.manual_seed(3)
    rows = torch.randperm(N)[:9].sort().values
    few = Capture([h[rows] for h in student.states], student.logits[rows], student.names)
    assert_same(loss, objective(few, teacher, rows), leaves)


COSINE = [lambda: LSP("cosine"), lambda: GSP("cosine")]


@pytest.mark.parametrize("make", [LSP, GSP, SP, RKD, CKA, *COSINE])
def test_dead_students_have_small_gradients(make):
    """All rows equal, as after dead ReLUs; and all zero."""
    teacher, edges = cache(), graph()
    for value in (0.0, 1.0):
        leaf = torch.full((N, 4), value, requires_grad=True)
        objective = make()
        objective.setup(teacher, [4], edges)
        loss = objective(Capture([leaf], torch.zeros(N, 3), ["?"]), teacher)
        assert bool(loss.isfinite())
        assert float(torch.autograd.grad(loss, leaf)[0].abs().max()) < 1e6


def test_a_batch_with_its_own_graph_needs_no_other():
    teacher, edges = cache(), graph()
    student, _ = capture(nodes=SOME)
    objective = LSP()
    objective.setup(teacher, student.widths, edges)
    expected = objective(student, teacher, SOME)
    student.graph = induced_subgraph(edges, SOME)
    assert torch.equal(objective(student, teacher, SOME), expected)


def test_a_graph_without_edges_counts_nothing():
    teacher, student = cache(), capture()[0]
    objective = LSP()
    empty = CSRGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.long), N)
    objective.setup(teacher, student.widths, empty)
    assert objective(student, teacher).item() == 0.0


def test_objectives_add_and_scale():
    teacher, edges, (student, leaves) = cache(), graph(), capture()
    parts = [LSP(), AT(), GSP(), SP(), RKD(samples=50), CKA()]
    total = 0.5 * parts[0] + parts[1] + 2.0 * parts[2] + parts[3] + parts[4] + parts[5]
    total.setup(teacher, student.widths, edges)
    values = [part(student, teacher) for part in parts]
    expected = sum(w * value for w, value in zip((0.5, 1, 2, 1, 1, 1), values, strict=True))
    assert_same(total(student, teacher), expected, leaves)


def test_a_narrow_cache_is_read_in_float32():
    """A teacher in bfloat16 and a student in float32 meet in float32."""
    torch.set_default_dtype(torch.float32)
    states, edges = [torch.randn(N, d) for d in (6, 5)], graph()
    teacher = TeacherCache.from_states(states, dtype=torch.bfloat16)
    rounded = TeacherCache.from_states([teacher.layer(i).float() for i in range(2)])
    student = Capture([torch.randn(N, 4)], torch.randn(N, 3), ["?"])
    for make in (LSP, GSP, SP, RKD, CKA):
        losses = []
        for each in (teacher, rounded):
            torch.manual_seed(1)
            objective = make()
            objective.setup(each, [4], edges)
            losses.append(objective(student, each))
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        assert losses[0].dtype == torch.float32


def products_depend_on_threads():
    """Whether torch shares the terms of a long sum out, as MKL does on some processors."""
    a, b = torch.randn(6, 40_000), torch.randn(40_000, 9)
    one, two, *_ = at_thread_counts(lambda: a @ b)
    return not torch.equal(one, two)


@pytest.mark.parametrize("make", [LSP, GSP, SP, RKD, CKA])
def test_the_same_bits_on_any_number_of_threads(make):
    torch.set_default_dtype(torch.float32)
    nodes, threads, runs = 40_000, torch.get_num_threads(), []
    states = [torch.randn(nodes, 5), torch.randn(nodes, 9)]
    teacher, edges = TeacherCache.from_states(states), graph(nodes)
    leaf = torch.randn(nodes, 6, requires_grad=True)
    if make is LSP and backend_of("neighbor_kl")[0] != "cpu":
        pytest.skip("torch's index_add does not share out its rows")
    if make in (GSP, SP, CKA) and products_depend_on_threads():
        pytest.skip("products of torch depend on the number of threads on this processor")
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            objective = make()
            objective.setup(teacher, [6], edges)
            loss = objective(Capture([leaf], torch.zeros(nodes, 3), ["?"]), teacher)
            runs.append([loss.detach(), *torch.autograd.grad(loss, leaf)])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSP(weight=-1.0), "weight must be >= 0 and finite, got -1.0"),
        (lambda: LSP(kernel="gauss"), "kernel must be one of rbf, cosine, poly, l2, got 'gauss'"),
        (lambda: GSP(power=0), "power must be an integer >= 1, got 0"),
        (lambda: LSP(power=2.5), "power must be an integer >= 1, got 2.5"),
        (lambda: GSP(samples=0), "samples must be >= 1, got 0"),
        (lambda: RKD(angle_weight=float("nan")), "angle_weight must be >= 0 and finite, got nan"),
        (lambda: CKA("attention"), "map must be one of uniform, last, diagonal, got 'attention'"),
        (lambda: SP().setup(cache(), [], None), "SP needs at least one captured student layer"),
        (lambda: LSP().setup(cache(), [4], None), "LSP needs the graph in setup, got None"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_of_all_pairs_is_kept():
    """SP and CKA on as many nodes as would make a matrix of all pairs too large to allocate."""
    nodes = 400_000  # 640 GB
    states = [torch.randn(nodes, 2, dtype=torch.float32)]
    teacher = TeacherCache.from_states(states)
    student = Capture([torch.randn(nodes, 2).float()], torch.zeros(nodes, 1), ["?"])
    for make in (SP, CKA, lambda: GSP(samples=20), lambda: RKD(samples=20)):
        objective = make()
        objective.setup(teacher, [2], None)
        assert bool(objective(student, teacher).isfinite())
