import pytest
import torch
from layer_pair_cases import (
    FORMS,
    leaves,
    random_problem,
    relative_errors,
    requiring,
    results,
    run_form,
)

from abkd_fast import reference
from abkd_fast.ops import Moments, layer_pair, teacher_moments
from abkd_fast.ops import _layer_pair_blocks as blocks
from abkd_fast.ops.layer_pair import prefers_moment_form

OPS = [reference.layer_pair, run_form("moment"), run_form("projection")]
OP_IDS = ["reference", *FORMS]


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


# -- values by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=OP_IDS)
def test_values(op):
    # p = t M = (2, 6), s = h N = (1, 1): D = (1 + 25) / 2.
    problem = requiring(
        {
            "teacher": column(1, 3),
            "widths": [1],
            "student_states": [column(1, 1)],
            "attention": column(0.5),
            "teacher_maps": [column(2)],
            "student_maps": [column(1)],
        },
        torch.float64,
    )
    out = results(op, problem)
    expected = {
        "loss": torch.tensor(6.5).double(),
        "D": column(13),
        "attention": column(13),
        "teacher_maps[0]": column(8),  # 2 A / (N r) * (1 * 1 + 3 * 5)
        "student_maps[0]": column(-3),  # 2 A / (N r) * (1 * -1 + 1 * -5)
        "student_states[0]": column(-0.5, -2.5),  # 2 A / (N r) * (s - p) N
    }
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, rtol=1e-14, atol=0, msg=name)


@pytest.mark.parametrize("op", OPS, ids=OP_IDS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shift": torch.tensor([1.0])}, 5.0),  # p = (0, 4)
        ({"mask": torch.tensor([False, True])}, 25.0),
        ({"weight": torch.tensor([3.0, 1.0])}, 7.0),  # (3 * 1 + 1 * 25) / 4
    ],
    ids=["shift", "mask", "weight"],
)
def test_values_of_options(op, options, expected):
    args = (column(1, 3), [1], [column(1, 1)], column(0.5), [column(2)], [column(1)])
    names = ("teacher", "widths", "student_states", "attention", "teacher_maps", "student_maps")
    loss, dissimilarity = op(**dict(zip(names, args, strict=True)), **options)
    assert dissimilarity.item() == pytest.approx(expected, rel=1e-14)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-14)


@pytest.mark.parametrize("op", OPS, ids=OP_IDS)
def test_rows_are_teacher_layers(op):
    one = column(1)
    loss, dissimilarity = op(
        teacher=torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        widths=[1, 1],
        student_states=[column(3), column(5)],
        attention=torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64),
        teacher_maps=[one, one],
        student_maps=[one, one],
    )
    torch.testing.assert_close(dissimilarity, torch.tensor([[4.0, 16.0], [1.0, 9.0]]).double())
    assert loss.item() == pytest.approx((1 + 12 + 0.5 + 4.5) / 4)


# -- against the definition -------------------------------------------------------------------

CASES = [
    pytest.param(dict(nodes=1, widths=[3], student_widths=[2], r=2), id="one-node"),
    pytest.param(dict(nodes=40, widths=[5], student_widths=[4], r=3), id="one-pair"),
    pytest.param(dict(nodes=150, widths=[7, 3, 3, 9], student_widths=[2, 5], r=4), id="unequal"),
    pytest.param(dict(nodes=150, widths=[3, 3, 3], student_widths=[2, 2], r=17), id="r>d"),
    pytest.param(dict(nodes=64 * 3 + 5, widths=[6, 6], student_widths=[4, 3], r=5), id="blocks"),
]
OPTIONS = ["plain", "mask", "weight", "shift", "mask+shift", "weight+shift"]


def make_options(names, problem):
    nodes, width = problem["teacher"].shape
    made = {
        "mask": torch.arange(nodes) % 3 != 1,
        "weight": torch.rand(nodes, dtype=torch.float64),
        "shift": torch.randn(width, dtype=torch.float64),
    }
    return {name: made[name] for name in names.split("+") if name != "plain"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(case, options, form, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_ELEMENTS", 1)  # blocks of 64 nodes
    problem = random_problem(**case)
    options = make_options(options, problem)
    exact = results(reference.layer_pair, problem, **options)
    errors = relative_errors(results(run_form(form), problem, **options), exact)
    assert max(errors.values()) <= 1e-12, errors

    plain = requiring(problem, torch.float32)
    exact = results(reference.layer_pair, requiring(plain, torch.float64), **options)
    out = results(run_form(form), plain, **options)
    assert all(value.dtype == torch.float32 for value in out.values())
    errors = relative_errors(out, exact)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("form", FORMS)
def test_strided_and_mapped_inputs(form, tmp_path):
    problem = random_problem(300, [6, 4], [3, 3], 8, torch.float32)
    expected = results(run_form(form), problem)
    states = [state.detach().t().contiguous().t() for state in problem["student_states"]]
    wide = torch.zeros(300, 24)
    wide[:, ::2][:, :10] = problem["teacher"]
    problem["teacher"].numpy().tofile(tmp_path / "teacher.bin")
    mapped = torch.from_file(str(tmp_path / "teacher.bin"), size=3000).view(300, 10)
    for teacher in (wide[:, ::2][:, :10], problem["teacher"].t().contiguous().t(), mapped):
        other = problem | {
            "teacher": teacher,
            "student_states": [state.requires_grad_() for state in states],
        }
        errors = relative_errors(results(run_form(form), other), expected)
        assert max(errors.values()) <= 1e-6, errors


def test_masked_out_nodes_may_hold_nan():
    problem = random_problem(30, [4, 4], [3], 5)
    mask = torch.arange(30) < 20
    expected = results(layer_pair, problem, mask=mask)
    problem["teacher"][20:] = torch.nan
    with torch.no_grad():
        problem["student_states"][0][20:] = torch.nan
    out = results(layer_pair, problem, mask=mask)
    assert all(torch.equal(out[name], expected[name]) for name in expected)
    assert not out["student_states[0]"][20:].any()


# -- the choice of form -----------------------------------------------------------------------


def test_cost_model():
    assert prefers_moment_form(64, 4, 64 * 64, 64, 16)  # PubMed, 64 x 64 -> 4 x 4
    assert not prefers_moment_form(16, 4, 16 * 256, 64, 256)  # 16 x 256 -> 4 x 64
    assert prefers_moment_form(16, 4, 16 * 256, 64, 48)
    assert not prefers_moment_form(16, 4, 16 * 256, 64, 48, frozen=True)  # no product for dM


@pytest.mark.parametrize(("student_width", "uses"), [(1, True), (9, False)])
def test_moments_are_used_where_cheaper(student_width, uses):
    problem = random_problem(50, [6, 6], [student_width], 3)
    moments = teacher_moments(problem["teacher"], [6, 6])
    doubled = Moments(moments.mean, [4 * second for second in moments.second], moments.count)
    _, plain = layer_pair(**problem, moments=moments)
    _, changed = layer_pair(**problem, moments=doubled)
    assert torch.equal(plain, changed) != uses


@pytest.mark.parametrize("options", ["plain", "mask", "weight"])
def test_teacher_moments(options):
    problem = random_problem(70, [3, 5], [2], 2)
    teacher, options = problem["teacher"], make_options(options, problem)
    weight = options.get("weight", options.get("mask", torch.ones(70))).double()
    moments = teacher_moments(teacher.float(), [3, 5], **options, block=16)
    teacher = teacher.float().double()
    assert moments.count == pytest.approx(weight.sum().item())
    mean = (weight[:, None] * teacher).sum(0) / weight.sum()
    second = (weight[:, None] * teacher).t() @ teacher / weight.sum()
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.second[0], second[:3, :3])
    torch.testing.assert_close(moments.second[1], second[3:, 3:])


# -- autograd, compile ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("near", [False, True], ids=["far", "near"])
def test_gradcheck(form, near):
    problem = random_problem(4, [2, 1], [2, 1], 2)
    if near:  # both pairs of one student layer come from the direct sum
        states = problem["teacher"][:, :2] + 1e-3 * torch.randn(4, 2, dtype=torch.float64)
        problem["student_states"][0] = states.requires_grad_()
        problem["student_maps"][0] = problem["teacher_maps"][0].detach().clone().requires_grad_()
    moments = teacher_moments(problem["teacher"], problem["widths"])
    named = leaves(problem)

    def loss(*values):
        given = dict(zip(named, values, strict=True))
        lists = {
            key: [given[f"{key}[{i}]"] for i in range(2)]
            for key in ("teacher_maps", "student_maps", "student_states")
        }
        changed = problem | lists | {"attention": given["attention"]}
        return run_form(form, moments)(**changed)[0]

    assert torch.autograd.gradcheck(loss, tuple(named.values()))


def test_gradients_scale_and_add_up():
    problem = random_problem(40, [4, 4], [3], 5)
    once = results(layer_pair, problem)
    loss, dissimilarity = layer_pair(**problem)
    assert not dissimilarity.requires_grad
    (3 * loss).backward(retain_graph=True)
    loss.backward()
    for name, leaf in leaves(problem).items():
        torch.testing.assert_close(leaf.grad, 4 * once[name])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", ["attention", "teacher_maps", "student_maps", "student_states"])
def test_each_gradient_alone(form, wanted):
    problem = random_problem(40, [4, 4], [3, 2], 5)
    expected = results(run_form(form), problem)
    named = leaves(problem)
    chosen = [name for name in named if name.startswith(wanted)]
    for name, leaf in named.items():
        leaf.requires_grad_(name in chosen)
    loss, _ = run_form(form)(**problem)
    for name, gradient in zip(
        chosen, torch.autograd.grad(loss, [named[name] for name in chosen]), strict=True
    ):
        assert torch.equal(gradient, expected[name])


def test_no_gradient_without_grad_mode():
    problem = random_problem(40, [4, 4], [3], 5)
    expected = results(layer_pair, problem)
    with torch.no_grad():
        loss, dissimilarity = layer_pair(**problem)
    assert not loss.requires_grad
    assert torch.equal(loss, expected["loss"]) and torch.equal(dissimilarity, expected["D"])


def test_no_second_derivative():
    problem = random_problem(10, [2], [2], 2)
    loss, _ = layer_pair(**problem)
    with pytest.raises(RuntimeError, match="layer_pair has no second derivative"):
        torch.autograd.grad(loss, problem["student_states"], create_graph=True)


def test_autocast_changes_nothing():
    problem = random_problem(40, [4, 4], [3], 5, torch.float32)
    expected = results(layer_pair, problem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = results(layer_pair, problem)
    assert all(torch.equal(out[name], expected[name]) for name in expected)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form, grad):
    problem = random_problem(12, [3, 2], [2, 2], 3, torch.float32, grad=False)
    moments = teacher_moments(problem["teacher"], [3, 2])
    given = (moments.mean, moments.second) if form == "moment" else (None, [])
    args = (
        problem["teacher"], [3, 2], problem["student_states"], problem["attention"],
        torch.cat(problem["teacher_maps"]), torch.cat(problem["student_maps"]),
        *given, moments.count, moments.mean, None, torch.rand(12) * 0 + 1, grad, grad,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.abkd_fast.layer_pair.default, args)


# torch.compile itself instantiates the Function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("student_width", [1, 9])
def test_compiles_to_one_graph(student_width):
    problem = random_problem(30, [6, 6], [student_width], 3, torch.float32)
    moments = teacher_moments(problem["teacher"], [6, 6])

    def step(**arguments):
        return layer_pair(**arguments, moments=moments)

    expected = results(step, problem)
    out = results(torch.compile(step, fullgraph=True, backend="aot_eager"), problem)
    assert all(torch.equal(out[name], expected[name]) for name in expected)
