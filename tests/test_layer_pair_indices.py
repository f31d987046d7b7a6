"""Indices in the place of a mask."""

import pytest
import torch
from layer_pair_cases import FORMS, random_problem, results, run_form

from abkd_fast.ops import layer_pair, teacher_moments


@pytest.mark.parametrize("form", FORMS)
def test_indices_give_the_bits_of_the_mask(form):
    problem = random_problem(200, [6, 4], [3, 5], 8, torch.float32)
    mask = torch.arange(200) % 3 != 1
    index = mask.nonzero().flatten()
    expected, got = (results(run_form(form), problem, mask=m) for m in (mask, index))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    moments = teacher_moments(problem["teacher"], problem["widths"], index)
    assert moments.count == float(len(index))


@pytest.mark.parametrize(
    "index", [[3, 2], [1, 1], [-1, 4], [0, 20]], ids=["order", "twice", "negative", "beyond"]
)
def test_indices_out_of_order_or_range_are_rejected(index):
    problem = random_problem(20, [6], [3], 8)
    with pytest.raises(ValueError, match=r"mask must hold increasing indices in \[0, N=20\)"):
        layer_pair(**problem, mask=torch.tensor(index))
    with pytest.raises(ValueError, match="mask must hold at least one True"):
        layer_pair(**problem, mask=torch.tensor([], dtype=torch.int64))
