"""What layer_pair refuses, and what it says."""

import pytest
import torch
from layer_pair_cases import random_problem

from abkd_fast.ops import Moments, layer_pair, teacher_moments


def good():
    problem = random_problem(5, [2, 3], [2, 4], 3, torch.float32)
    moments = teacher_moments(problem["teacher"], [2, 3])
    return problem | {"moments": moments, "shift": None, "mask": None, "weight": None}


def replaced(moments, **changes):
    parts = {"mean": moments.mean, "second": moments.second, "count": moments.count}
    return Moments(**(parts | changes))


REJECTS = [
    ("teacher", lambda p: p["teacher"].requires_grad_(), "teacher must not require grad"),
    ("teacher", lambda p: p["teacher"].half(), "teacher must be bfloat16 or float32 or float64"),
    ("teacher", lambda p: p["teacher"][0], "teacher must have 2 dimension"),
    ("teacher", lambda p: p["teacher"][:0], "teacher must hold at least one node"),
    ("teacher", lambda p: p["teacher"][:4], "got .5, 2.: mismatched teacher and graph"),
    ("teacher", lambda p: p["teacher"] * torch.nan, "teacher must be finite"),
    ("teacher", lambda p: p["teacher"].tolist(), "teacher must be a torch.Tensor"),
    ("widths", lambda p: [2, 2], "widths must sum to teacher.size.1.=5, got"),
    ("widths", lambda p: [5, 0], "widths must hold a width >= 1"),
    ("widths", lambda p: [], "widths must hold a width >= 1"),
    ("student_states", lambda p: [], "student_states must hold at least one layer"),
    ("student_states", lambda p: [h.bfloat16() for h in p["student_states"]], "must be float32"),
    ("student_states", lambda p: [h[:, :0] for h in p["student_states"]], "at least one column"),
    ("student_states", lambda p: [p["student_states"][0], torch.zeros(5, 4).double()],
     r"student_states\[1\] must be torch.float32 like student_states\[0\]"),
    ("student_states", lambda p: [p["student_states"][0], torch.full((5, 4), torch.inf)],
     r"student_states\[1\] must be finite, got 20"),
    ("student_states", lambda p: [torch.zeros(5, 2, device="meta")] * 2, "must be on cpu"),
    ("attention", lambda p: p["attention"].t()[:1], r"attention must be \[T=2, S=2\]"),
    ("attention", lambda p: p["attention"].double(), "attention must be torch.float32"),
    ("teacher_maps", lambda p: p["teacher_maps"][:1], "teacher_maps must hold one map per layer"),
    ("teacher_maps", lambda p: p["teacher_maps"][::-1], r"teacher_maps\[0\] must be \[d=2, r=3\]"),
    ("teacher_maps", lambda p: [m.detach() * torch.nan for m in p["teacher_maps"]],
     "teacher_maps must be finite"),
    ("student_maps", lambda p: [m[:, :2] for m in p["student_maps"]],
     r"student_maps\[0\] must be \[d=2, r=3\], got \[2, 2\]"),
    ("mask", lambda p: torch.zeros(5, dtype=torch.bool), "mask must hold at least one True"),
    ("mask", lambda p: torch.ones(5), "mask must be bool, got float32"),
    ("mask", lambda p: torch.ones(4, dtype=torch.bool), r"mask must be \[N=5\], got \[4\]"),
    ("mask", lambda p: torch.arange(5) < 3, "moments.count must be the number .* 3.0, got 5.0"),
    ("weight", lambda p: torch.tensor([1.0, 1, 1, 1, -1]), "weight must be >= 0"),
    ("weight", lambda p: torch.zeros(5), "with a positive sum"),
    ("weight", lambda p: torch.full((5,), torch.nan), "weight must be finite"),
    ("weight", lambda p: torch.ones(5, requires_grad=True), "weight must not require grad"),
    ("shift", lambda p: torch.zeros(4), r"shift must be \[sum\(widths\)=5\], got \[4\]"),
    ("shift", lambda p: torch.full((5,), torch.nan), "shift must be finite"),
    ("moments", lambda p: replaced(p["moments"], count=4.0), "moments.count must be the number"),
    ("moments", lambda p: replaced(p["moments"], mean=torch.zeros(5)),
     "moments.mean must be float64"),
    ("moments", lambda p: replaced(p["moments"], mean=torch.zeros(4).double()),
     r"moments.mean must be \[sum\(widths\)=5\]"),
    ("moments", lambda p: replaced(p["moments"], second=p["moments"].second[:1]),
     "moments.second must hold T=2 matrices"),
    ("moments", lambda p: replaced(p["moments"], second=p["moments"].second[::-1]),
     r"moments.second\[0\] must be \[2, 2\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bad", "message"), REJECTS)
def test_rejects(name, bad, message):
    problem = good()
    problem[name] = bad(problem)
    with pytest.raises(ValueError, match=message):
        layer_pair(**problem)


def test_rejects_mask_with_weight():
    problem = good() | {"mask": torch.ones(5, dtype=torch.bool), "weight": torch.ones(5)}
    with pytest.raises(ValueError, match="mask and weight must not both be given"):
        layer_pair(**problem)


def test_moments_reject_a_bad_block():
    with pytest.raises(ValueError, match="block must be >= 1, got 0"):
        teacher_moments(torch.ones(3, 2), [2], block=0)
