"""Triton's layer_pair against the float64 oracle, in the interpreter or on a GPU."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layer_pair_cases import FORMS, random_problem, relative_errors, requiring, results, run_form
from test_layer_pair_precision import coinciding_problem
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import reference
from abkd_fast.ops import _layer_pair_passes as passes
from abkd_fast.ops._layer_pair_direct import correct_near_pairs, near_squares

pytestmark = needs_triton
BENCH = Path(__file__).parent.parent / "bench"
SIZES = [  # nodes, teacher widths, student widths, r
    pytest.param(1, [5, 3], [2], 3, id="one-node"),
    pytest.param(37, [16, 33, 7], [4, 4, 5], 17, id="ragged"),
    pytest.param(35, [48, 5], [20, 1], 19, id="wider-than-a-block"),
    pytest.param(150, [9, 24], [6, 3], 5, id="some-chunks"),
]
OPTIONS = ["plain", "mask+shift", "weight"]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def make_options(names, nodes, width):
    made = {
        "mask": torch.arange(nodes) % 3 != 1,
        "weight": torch.rand(nodes, dtype=torch.float64) * (torch.arange(nodes) % 5 != 2) + 1e-3,
        "shift": torch.randn(width, dtype=torch.float64),
    }
    return {name: made[name].to(DEVICE) for name in names.split("+") if name != "plain"}


def on_device(problem):
    """The problem with all of its tensors on the device, the leaves leaves again."""

    def move(value):
        return value.detach().to(DEVICE).requires_grad_(value.requires_grad)

    names = ("student_states", "teacher_maps", "student_maps")
    lists = {name: [move(value) for value in problem[name]] for name in names}
    return problem | lists | {k: move(problem[k]) for k in ("teacher", "attention")}


def errors_of(form, problem, teacher, options):
    """Relative errors of one form with the teacher in some dtype, against float64."""
    problem["teacher"] = problem["teacher"].to(teacher)
    problem = on_device(problem)
    exact = requiring(problem, torch.float64) | {"teacher": problem["teacher"].double()}
    exact = results(reference.layer_pair, exact, **options)
    return relative_errors(results(run_form(form), problem, **options), exact)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("nodes", "widths", "student_widths", "r"), SIZES)
def test_values_and_gradients_in_float64(nodes, widths, student_widths, r, options, form):
    problem = random_problem(nodes, widths, student_widths, r)
    options = make_options(options, nodes, sum(widths))
    errors = errors_of(form, problem, torch.float64, options)
    assert max(errors.values()) <= 1e-12, errors


@pytest.mark.parametrize("major", [8, 9, 10])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", ["plain", "weight+shift"])
@pytest.mark.parametrize("teacher", [torch.bfloat16, torch.float32], ids=str)
def test_float32_with_the_blocks_of_every_architecture(teacher, options, form, major, monkeypatch):
    from abkd_fast.kernels import _layer_pair_blocks as blocks

    monkeypatch.setattr(blocks, "capability", lambda device: major)
    aligned, odd = (70, [48, 272], [8, 40], 72), (50, [5, 70], [3], 9)
    for nodes, widths, student_widths, r in (aligned, odd):
        problem = random_problem(nodes, widths, student_widths, r, torch.float32)
        made = make_options(options, nodes, sum(widths))
        errors = errors_of(form, problem, teacher, made)
        assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("form", FORMS)
def test_strided_teacher_and_states(form):
    problem = on_device(random_problem(80, [16, 40], [4, 9], 24))
    exact = results(reference.layer_pair, problem)
    wide = torch.zeros(80, 115, dtype=torch.float64, device=DEVICE)
    wide[:, 1::2][:, :56] = problem["teacher"]
    states = [x.detach().t().contiguous().t().requires_grad_() for x in problem["student_states"]]
    problem |= {"teacher": wide[:, 1::2][:, :56], "student_states": states}
    errors = relative_errors(results(run_form(form), problem), exact)
    assert max(errors.values()) <= 1e-12, errors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", ["plain", "mask", "weight+shift"])
def test_twice_the_same_bits(options, form):
    problem = random_problem(300, [16, 7], [4, 9], 24, torch.float32)
    problem["teacher"] = problem["teacher"].bfloat16()
    problem, options = on_device(problem), make_options(options, 300, 23)
    first, second = (results(run_form(form), problem, **options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", ["plain", "mask", "weight"])
def test_several_passes_give_what_one_gives(options, monkeypatch):
    from abkd_fast.kernels import _layer_pair_blocks as blocks

    problem = on_device(random_problem(70, [16, 9], [4], 24))
    options = make_options(options, 70, 25)
    for form in FORMS:
        whole = results(run_form(form), problem, **options)
        monkeypatch.setattr(blocks, "_SCRATCH", 1)  # a pass of one chunk
        parts = results(run_form(form), problem, **options)
        monkeypatch.undo()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def moment_arguments(teacher, want):
    given, (widths, states) = teacher, ([16, 33], [torch.randn(90, 4), torch.randn(90, 9)])
    products, attention = torch.randn(49, 13).double(), torch.rand(2, 2).double()
    rows = torch.randn(13), torch.randn(13, 13), torch.randn(1, 13)
    return given, widths, states, None, None, *rows, products, attention, want


@pytest.mark.parametrize("want", [True, False])
def test_float16_teacher_and_no_gradient(want):
    from abkd_fast.kernels.layer_pair import layer_pair_moment

    given = moment_arguments(torch.randn(90, 49).half(), want)
    moved = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in given]
    moved[2] = [x.to(DEVICE) for x in moved[2]]
    out, exact = layer_pair_moment(*moved), passes.moment_pass(*moved)
    for value, other in zip(out, exact, strict=True):
        assert value.shape == other.shape and value.dtype == other.dtype
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-4)


COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import compile_kernels
from abkd_fast.kernels import _layer_pair_blocks as blocks
blocks.capability = lambda device: int(sys.argv[3]) // 10
sys.exit(compile_kernels.table([sys.argv[2]], (int(sys.argv[3]),))[1] > 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("op", ["layer_pair_moment", "layer_pair_projection", "layer_pair_near"])
@pytest.mark.parametrize("arch", ["90", "100"])
def test_blocks_chosen_for_an_architecture_do_not_spill_on_it(arch, op, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(BENCH), op, arch],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "/ 0 /" in done.stdout


def corrected(problem, form):
    """D of near pairs, and the gradients, as a device computes them: no host takes part."""
    layer_pair = importlib.import_module("abkd_fast.ops.layer_pair")

    def run(given, attention, mean, second, wanted):
        totals = layer_pair.run_projection(given, attention, wanted)
        if mean is not None:
            totals = layer_pair.run_moment(given, attention, wanted, mean, second)
        near = totals.dissimilarity < layer_pair._NEAR * totals.magnitude
        assert bool(near.any())
        correct_near_pairs(given, near, totals)
        return totals

    before, layer_pair._run = layer_pair._run, run
    try:
        return results(run_form(form), problem)
    finally:
        layer_pair._run = before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("distance", "mean", "all_pairs"), [(1e-2, 10, False), (1e-3, 0, True)], ids=["some", "all"]
)
def test_near_pairs_on_a_device_are_no_worse_than_direct_differences(
    distance, mean, all_pairs, form
):
    made = coinciding_problem(distance, mean, all_pairs, nodes=128)
    exact = results(reference.layer_pair, requiring(made, torch.float64))
    problem = requiring(made, torch.float32)
    plain = results(reference.layer_pair, problem)
    out = corrected(problem, form)
    floor = 4 * torch.finfo(torch.float32).eps
    direct = ((plain["D"] - exact["D"]) / exact["D"]).abs().max()
    assert ((out["D"] - exact["D"]) / exact["D"]).abs().max() <= 2 * direct + floor
    # The moment form has no differences to take: its gradients are off by the rounding of p.
    factor = 2 if form == "projection" else 4
    bounds = relative_errors(plain, exact)
    for name, error in relative_errors(out, exact).items():
        bound = 2 * direct if name == "loss" else factor * bounds[name]
        assert error <= bound + floor, name


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, "mask"), (torch.float32, "plain"), (torch.float64, "weight")],
    ids=str,
)
def test_near_squares(dtype, options):
    from abkd_fast.kernels.layer_pair_near import layer_pair_near

    given = make_options(options, 40, 22)
    widths, states = [20, 2], [torch.randn(40, 18), torch.randn(40, 1), torch.randn(40, 5)]
    mask, weight = given.get("mask"), given.get("weight")
    nodes = None if mask is None else mask.nonzero().flatten()
    near = torch.tensor([[True, False, True], [False, True, True]])
    floats = (
        torch.randn(22), torch.randn(24), torch.randn(22, 19), torch.randn(24, 19),
        torch.randn(2, 3, 19),
    )  # fmt: skip
    for teacher in (torch.randn(40, 22).bfloat16(), torch.randn(22, 40).t()):
        arguments = (
            teacher.to(DEVICE), widths, [h.to(DEVICE, dtype) for h in states], nodes,
            None if weight is None else weight.to(dtype),
            *(x.to(DEVICE, dtype) for x in floats), near.to(DEVICE),
        )  # fmt: skip
        got, exact = layer_pair_near(*arguments), near_squares(*arguments)
        assert torch.equal(got == 0, ~near.to(DEVICE)) and torch.equal(exact == 0, got == 0)
        tolerance = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=0.0)
        assert torch.equal(layer_pair_near(*arguments), got)


def test_near_squares_of_no_pair_are_zero():
    from abkd_fast.kernels.layer_pair_near import layer_pair_near

    x = torch.full((40, 8), torch.nan, device=DEVICE)
    rows = torch.zeros(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    maps = torch.zeros(8, 4, device=DEVICE), torch.zeros(8, 4, device=DEVICE)
    offset, near = torch.zeros(1, 1, 4, device=DEVICE), torch.zeros(1, 1, device=DEVICE).bool()
    assert layer_pair_near(x, [8], [x], None, None, *rows, *maps, offset, near).item() == 0.0
