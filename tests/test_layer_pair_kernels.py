"""The kernels of layer_pair: against their torch twins, for every size of block and vector."""

import pytest
import torch
from layer_pair_cases import FORMS, random_problem, relative_errors, requiring, results, run_form

from abkd_fast import reference
from abkd_fast._backend import backend_of
from abkd_fast.ops import _layer_pair_maps as maps
from abkd_fast.ops import _layer_pair_passes as passes

OPS = torch.ops.abkd_fast
needs_kernels = pytest.mark.skipif(
    backend_of("layer_pair")[0] != "cpu", reason=f"no kernels: {backend_of('layer_pair')[1]}"
)
SIZES = [  # nodes, teacher widths, student widths, r
    pytest.param(1, [5, 3], [2], 3, id="one-node"),
    pytest.param(11, [4, 4, 4, 4, 4], [1, 1, 1], 16, id="less-than-a-tile"),
    pytest.param(241, [16, 33, 7, 300], [4, 4, 4, 4], 17, id="block-plus-one"),
    pytest.param(250, [64] * 3, [5, 8, 4, 13, 7], 64, id="37-columns"),
    pytest.param(130, [520, 2], [64, 1], 40, id="wide-layers"),
    pytest.param(2500, [9, 24], [6, 11], 20, id="two-groups"),
    pytest.param(4099, [7, 5], [3], 5, id="four-groups"),
]
OPTIONS = ["plain", "mask", "weight", "shift", "mask+shift", "weight+shift"]
TEACHERS = [torch.bfloat16, torch.float32, torch.float64]


def make_options(names, nodes, width):
    made = {
        "mask": torch.arange(nodes) % 3 != 1,
        "weight": torch.rand(nodes, dtype=torch.float64) * (torch.arange(nodes) % 5 != 2) + 1e-3,
        "shift": torch.randn(width, dtype=torch.float64),
    }
    return {name: made[name] for name in names.split("+") if name != "plain"}


def strided(problem):
    """The same values in states and a teacher whose rows and columns are not neighbours."""
    teacher = problem["teacher"]
    wide = torch.zeros(teacher.size(0), 2 * teacher.size(1) + 3, dtype=teacher.dtype)
    wide[:, 1::2][:, : teacher.size(1)] = teacher
    states = [state.detach().t().contiguous().t() for state in problem["student_states"]]
    states = [state.requires_grad_() for state in states]
    return problem | {
        "teacher": wide[:, 1::2][:, : teacher.size(1)],
        "student_states": states,
    }


# -- the op against its definition ------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("nodes", "widths", "student_widths", "r"), SIZES)
def test_sizes(nodes, widths, student_widths, r, options, form):
    problem = random_problem(nodes, widths, student_widths, r)
    options = make_options(options, nodes, sum(widths))
    exact = results(reference.layer_pair, problem, **options)
    errors = relative_errors(results(run_form(form), problem, **options), exact)
    assert max(errors.values()) <= 1e-12, errors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", ["plain", "mask", "weight+shift"])
@pytest.mark.parametrize("teacher", TEACHERS, ids=str)
@pytest.mark.parametrize("layout", ["rows", "strided"])
def test_float32_and_teacher_dtypes(layout, teacher, options, form):
    problem = random_problem(300, [16, 33, 7, 40], [4, 4, 5], 24, torch.float32)
    problem["teacher"] = problem["teacher"].to(teacher)
    options = make_options(options, 300, 96)
    widened = requiring(problem, torch.float64) | {"teacher": problem["teacher"].double()}
    exact = results(reference.layer_pair, widened, **options)
    problem = strided(problem) if layout == "strided" else problem
    errors = relative_errors(results(run_form(form), problem, **options), exact)
    assert max(errors.values()) <= 1e-5, errors


# -- determinism ------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", ["plain", "mask", "weight+shift"])
@pytest.mark.parametrize("teacher", [torch.bfloat16, torch.float32], ids=str)
def test_bits_do_not_depend_on_threads_or_turn(teacher, options, form):
    problem = random_problem(4500, [16, 33, 7], [4, 9], 24, torch.float32)
    problem["teacher"] = problem["teacher"].to(teacher)
    options = make_options(options, 4500, 56)
    threads = torch.get_num_threads()
    try:
        out = []
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            out.append(results(run_form(form), problem, **options))
    finally:
        torch.set_num_threads(threads)
    for other in out[1:]:
        assert all(torch.equal(out[0][name], other[name]) for name in out[0])


# -- each kernel against its twin -------------------------------------------------------------


def pass_arguments(nodes, widths, student_widths, options, dtype):
    """What both passes start with."""
    problem = random_problem(nodes, widths, student_widths, 1, dtype, grad=False)
    chosen = torch.randperm(nodes)[: nodes // 2] if options == "nodes" else None
    count = nodes if chosen is None else chosen.numel()
    weight = torch.rand(count, dtype=dtype) if options == "weight" else None
    centre = torch.randn(sum(student_widths), dtype=dtype)
    return problem["teacher"], widths, problem["student_states"], chosen, weight, centre


def moment_arguments(*given, dtype=torch.float64, want_student=True):
    first, width = pass_arguments(*given, dtype), sum(given[2])
    shape = len(given[1]), len(given[2])
    return (
        *first,
        torch.randn(width, width, dtype=dtype),
        torch.randn(1, width, dtype=dtype),
        torch.randn(sum(given[1]), width, dtype=torch.float64),
        torch.randn(shape, dtype=torch.float64),
        want_student,
    )


def projection_arguments(*given, r=19, dtype=torch.float64, want=(True, True)):
    first, (num_teacher, num_student) = pass_arguments(*given, dtype), map(len, given[1:3])
    rows = sum(given[1]), sum(given[2]), num_teacher
    made = [torch.randn(count, r, dtype=dtype) for count in (*rows, num_teacher, num_student)]
    attention = torch.randn(num_teacher, num_student, dtype=torch.float64)
    return (*first, *made[:3], attention, *made[3:], 0.5, *want)


def maps_arguments(r=19, dtype=torch.float64, want=(True, True)):
    widths, student_widths = [16, 33, 7], [4, 9]
    made = {
        name: torch.randn(shape, dtype=torch.float64)
        for name, shape in {
            "mean": (56,), "rest": (13,), "products": (56, 13), "cross": (56, 13),
            "attention": (3, 2), "offset": (56,), "u": (3, r),
        }.items()
    }  # fmt: skip
    return (
        torch.randn(56, r, dtype=dtype), torch.randn(13, r, dtype=dtype), widths, student_widths,
        [torch.randn(d, d, dtype=torch.float64) for d in widths], made["mean"], made["rest"],
        made["products"], made["cross"], 7.0, made["attention"], made["offset"], made["u"], *want,
    )  # fmt: skip


def assert_same(kernel, twin, args):
    out, expected = kernel(*args), twin(*args)
    out, expected = (x if isinstance(x, tuple) else (x,) for x in (out, expected))
    for value, other in zip(out, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-11, atol=1e-11)


GIVEN = (300, [16, 33, 7], [4, 9])


@needs_kernels
@pytest.mark.parametrize("options", ["plain", "nodes", "weight"])
@pytest.mark.parametrize("want", [True, False])
def test_moment_pass(options, want):
    args = moment_arguments(*GIVEN, options, want_student=want)
    assert_same(OPS.layer_pair_moment, passes.moment_pass, args)


@needs_kernels
@pytest.mark.parametrize("options", ["plain", "nodes", "weight"])
@pytest.mark.parametrize("want", [(True, True), (True, False), (False, True), (False, False)])
def test_projection_pass(options, want):
    args = projection_arguments(*GIVEN, options, want=want)
    assert_same(OPS.layer_pair_projection, passes.projection_pass, args)


@needs_kernels
@pytest.mark.parametrize("want", [(True, True), (True, False), (False, True), (False, False)])
def test_small_products(want):
    args = maps_arguments(want=want)
    assert_same(OPS.layer_pair_moment_maps, maps.combine_moments, args)
    assert_same(OPS.layer_pair_products, maps.multiply_maps, args[:3])
    rows = torch.randn(2, 56, dtype=torch.float64)
    assert_same(OPS.layer_pair_rows, maps.project_rows, (rows, args[0], args[2]))


@pytest.mark.parametrize("want", [(True, True), (False, False)])
def test_opcheck(want):
    float32 = {"dtype": torch.float32}
    calls = {
        "layer_pair_moment": moment_arguments(*GIVEN, "weight", want_student=want[0], **float32),
        "layer_pair_projection": projection_arguments(*GIVEN, "nodes", want=want, **float32),
        "layer_pair_moment_maps": maps_arguments(want=want, **float32),
        "layer_pair_products": maps_arguments(**float32)[:3],
        "layer_pair_rows": (torch.randn(2, 9).double(), torch.randn(9, 4), [4, 5]),
    }
    for name, args in calls.items():
        torch.library.opcheck(getattr(OPS, name).default, args)


@needs_kernels
@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.zeros(300, 55), "widths must sum to teacher.size"),
        (1, [56, 0], "a layer has no width"),
        (2, [torch.zeros(300, 4), torch.zeros(299, 9)], "student_states must be"),
        (3, torch.tensor([300]), "nodes must be in"),
        (4, torch.ones(299), "weight must have an entry per node"),
        (5, torch.zeros(12), "centre.size.0. must be 13, got 12"),
        (8, torch.zeros(56, 13), "products has the wrong dtype"),
        (9, torch.zeros(2, 3).double(), "attention.size.0. must be 3, got 2"),
    ],
)
def test_direct_calls_are_checked(position, bad, message):
    args = list(moment_arguments(*GIVEN, "plain", dtype=torch.float32))
    args[position] = bad
    with pytest.raises(RuntimeError, match=message):
        OPS.layer_pair_moment(*args)
