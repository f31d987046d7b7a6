"""Triton's dropout: the bits of the reference, in the interpreter or on a GPU."""

import pytest
import torch
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import reference
from abkd_fast.ops import dropout

pytestmark = needs_triton
SEED = 0x299F31D0A4093822
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (5, 2**32 - 1), (2**31, 16)], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9999])
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (7, 5), (1, 127), (3, 4, 50)], ids=str)
def test_the_same_elements_as_the_reference(shape, p, place):
    x = torch.randn(shape).to(DEVICE)
    assert torch.equal(dropout(x, p, SEED, *place), reference.dropout(x, p, SEED, *place))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference_to_the_bit(dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("the interpreter of triton truncates to bfloat16, GPUs round")
    x = torch.randn(1500).to(DEVICE, dtype)
    assert torch.equal(dropout(x, 0.3, SEED, 3, 4), reference.dropout(x, 0.3, SEED, 3, 4))


@pytest.mark.parametrize("seed", [0, 1, 16, 2**32 + 5, 2**63 - 1])
def test_seeds_as_numbers_and_on_the_device(seed):
    x = torch.randn(40).to(DEVICE)
    expected = reference.dropout(x, 0.5, seed)
    assert torch.equal(dropout(x, 0.5, seed), expected)
    assert torch.equal(dropout(x, 0.5, torch.tensor([seed], device=DEVICE)), expected)


def test_a_seed_on_another_device_is_passed_as_a_number():
    from abkd_fast.kernels.dropout import Mask, dropout_kernel

    x, out = torch.randn(40), torch.empty(40)
    mask = Mask(0.5, torch.tensor(SEED), 1, 2, torch.device("meta"))
    assert mask.arguments[0] == SEED
    x, out = x.to(DEVICE), out.to(DEVICE)
    from triton.language import float32

    dropout_kernel[(1,)](x, out, 40, *mask.arguments, ACC=float32, BLOCK=16)
    assert torch.equal(out, reference.dropout(x, 0.5, SEED, 1, 2))


def test_gradient_and_strides():
    x = torch.randn(6, 7, device=DEVICE).t().requires_grad_()
    dropout(x, 0.5, 9).sum().backward()
    ones = torch.ones(7, 6, device=DEVICE)
    assert torch.equal(x.grad, reference.dropout(ones, 0.5, 9))
