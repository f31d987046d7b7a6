"""Triton's InfoNCE against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from test_pair_infonce import NAMES, assert_equal_bits, case, results
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import reference
from abkd_fast.ops import pair_infonce
from abkd_fast.testing import assert_no_worse

pytestmark = needs_triton
# One row; several pairs and blocks of rows; more columns than a program has.
SIZES = [(1, 1, 1, 1), (2, 3, 35, 20), (1, 1, 17, 130)]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_the_reference(size, masked):
    dtype = torch.float64 if masked else torch.float32
    given = [x if x is None else x.to(DEVICE) for x in case(*size, dtype, masked)]
    exact = results(reference.pair_infonce, *given, dtype=torch.float64)
    plain = results(reference.pair_infonce, *given)
    found = results(pair_infonce, *given)
    for name, got, want, rough in zip(NAMES, found, exact, plain, strict=True):
        assert_no_worse(got, want, rough, name)
    if size[2] == 1:
        assert_equal_bits(results(pair_infonce, *given), found)


def test_small_temperatures_and_no_rows():
    u, w, attention, _ = (x if x is None else x.to(DEVICE) for x in case(1, 2, 20, 8))
    found = results(pair_infonce, 100 * u, w, attention, None, 1e-3)
    exact = results(reference.pair_infonce, 100 * u, w, attention, None, 1e-3)
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))
    none = torch.zeros(20, dtype=torch.bool, device=DEVICE)
    assert results(pair_infonce, u, w, attention, none)[1].isnan().all()
