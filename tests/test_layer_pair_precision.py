"""Precision, memory and determinism of layer_pair."""

import pytest
import torch
from layer_pair_cases import FORMS, random_problem, relative_errors, requiring, results, run_form
from torch.profiler import profile

from abkd_fast import reference
from abkd_fast.ops import _layer_pair_blocks as blocks
from abkd_fast.ops import teacher_moments


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_teacher_costs_no_more_than_its_rounding(form, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_ELEMENTS", 1)  # blocks of 64 nodes
    problem = random_problem(300, [6, 6, 4], [3, 3], 8, torch.float32)
    problem["teacher"] = problem["teacher"].bfloat16()
    widened = requiring(problem, torch.float64) | {"teacher": problem["teacher"].double()}
    exact = results(reference.layer_pair, widened)
    errors = relative_errors(results(run_form(form), problem), exact)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("form", FORMS)
def test_deterministic(form):
    problem = random_problem(500, [6, 4, 4], [3, 5], 8, torch.float32)
    first, second = (results(run_form(form), problem) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def coinciding_problem(distance, mean, all_pairs, nodes=1000, d=16):
    """Projections with |p - s| = distance * |p| for one teacher layer per student, or for all.

    ``mean`` adds one vector of length mean * |p| (after projection) to every state.
    """
    t = [torch.randn(nodes, d) for _ in range(3)]
    maps = [torch.randn(d, d) / d**0.5 for _ in range(3)]
    if all_pairs:
        t = [t[0] + distance / 2 * torch.randn(nodes, d) for _ in range(3)]
        maps = [maps[0]] * 3
    states = [t[j] + distance * torch.randn(nodes, d) for j in range(2)]
    common = torch.randn(d)
    common *= mean * d**0.5 / (common @ maps[0]).norm()
    return {
        "teacher": torch.cat(t, 1) + common.repeat(3),
        "widths": [d] * 3,
        "student_states": [state + common for state in states],
        "attention": torch.randn(3, 2).softmax(1),
        "teacher_maps": maps,
        "student_maps": maps[:2],
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("all_pairs", [False, True], ids=["some-near", "all-near"])
@pytest.mark.parametrize("mean", [0, 10])
@pytest.mark.parametrize("distance", [1e-2, 1e-3])
def test_near_pairs_are_no_worse_than_direct_differences(distance, mean, all_pairs, form):
    made = coinciding_problem(distance, mean, all_pairs)
    exact = results(reference.layer_pair, requiring(made, torch.float64))
    problem = requiring(made, torch.float32)
    plain = relative_errors(results(reference.layer_pair, problem), exact)
    out = results(run_form(form), problem)
    floor = 4 * torch.finfo(torch.float32).eps  # of the value itself
    for name, error in relative_errors(out, exact).items():
        assert error <= 2 * plain[name] + floor, name
    entries = ((out["D"] - exact["D"]) / exact["D"]).abs()
    direct = ((results(reference.layer_pair, problem)["D"] - exact["D"]) / exact["D"]).abs()
    assert entries.max() <= 2 * direct.max() + floor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", [0.05, 0.1, 0.3])
def test_expanded_square_just_above_the_switch(distance, form):
    # D keeps four digits where the terms it is a difference of are up to 1000 times larger.
    made = coinciding_problem(distance, 1, all_pairs=True)
    exact = results(reference.layer_pair, requiring(made, torch.float64))
    errors = relative_errors(results(run_form(form), requiring(made, torch.float32)), exact)
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("form", FORMS)
def test_equal_projections_give_zero_within_rounding(form):
    made = coinciding_problem(0.0, 1, all_pairs=True)
    out = results(run_form(form), requiring(made, torch.float32))
    square = (made["teacher"][:, :16] @ made["teacher_maps"][0]).square().mean()
    assert out["D"].min() >= 0
    assert out["D"].max() <= (4 * torch.finfo(torch.float32).eps) ** 2 * square


@pytest.mark.parametrize("options", ["mask", "weight", "shift"])
@pytest.mark.parametrize("form", FORMS)
def test_near_pairs_with_options(form, options, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_ELEMENTS", 1)
    made = requiring(coinciding_problem(1e-3, 1, all_pairs=False), torch.float64)
    options = {
        "mask": {"mask": torch.arange(1000) % 3 != 1},
        "weight": {"weight": torch.rand(1000).double()},
        "shift": {"shift": torch.full((48,), 1e-4).double()},
    }[options]
    exact = results(reference.layer_pair, made, **options)
    errors = relative_errors(results(run_form(form), made, **options), exact)
    assert max(errors.values()) <= 1e-11, errors


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_million_nodes_lose_no_digits(form):
    problem = random_problem(1_000_000, [8, 8], [4], 8, torch.float32)
    exact = results(reference.layer_pair, requiring(problem, torch.float64))
    errors = relative_errors(results(run_form(form), problem), exact)
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_bounded_by_blocks(form):
    nodes, num_teacher, num_student, r = 20_000, 16, 16, 64
    problem = random_problem(nodes, [64] * num_teacher, [2] * num_student, r, torch.float32)
    op = run_form(form, teacher_moments(problem["teacher"], problem["widths"]))
    with profile(profile_memory=True) as record:
        op(**problem)[0].backward()
    allocated = max(event.self_cpu_memory_usage for event in record.events())
    assert 0 < allocated < 4 * nodes * num_teacher * num_student < 4 * nodes * num_teacher * r
