"""Triton's segment reductions against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import reference
from abkd_fast.ops import segment_csr
from abkd_fast.testing import assert_no_worse

pytestmark = needs_triton
REDUCTIONS = ["sum", "mean", "max", "min"]
POINTERS = {
    "all-rows": [0, 2, 2, 7],
    "rows-outside": [2, 3, 3, 5],
    "no-segments": [3],
    "only-empty": [4, 4, 4],
    "hubs": [1, 300, 301, 900],
    "hubs-in-one-chunk": [0, 100, 400, 700, 703],
}


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def results(function, src, indptr, dout, reduce):
    leaf = src.clone().requires_grad_()
    out = function(leaf, indptr, reduce)
    return [out.detach(), *torch.autograd.grad(out, leaf, dout)]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", list(POINTERS))
def test_matches_reference(name, reduce):
    indptr = torch.tensor(POINTERS[name], device=DEVICE)
    rows = int(indptr[-1]) + 2
    for dtype, width in ((torch.float32, 5), (torch.float64, 33), (torch.float16, 1)):
        src = torch.randn(rows, width).to(DEVICE, dtype)
        dout = torch.randn(len(indptr) - 1, width).to(DEVICE, dtype)
        exact = results(reference.segment_csr, src.double(), indptr, dout.double(), reduce)
        plain = results(reference.segment_csr, src, indptr, dout, reduce)
        got = results(segment_csr, src, indptr, dout, reduce)
        for what, a, b, c in zip(("out", "dsrc"), got, exact, plain, strict=True):
            assert_no_worse(a, b, c, f"{what} in {dtype}")
        again = results(segment_csr, src, indptr, dout, reduce)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_shapes_strides_and_int32_pointers(reduce):
    indptr = torch.tensor([0, 9, 2, 9, 3, 9, 7, 9], device=DEVICE)[::2]
    for src in (torch.randn(7), torch.randn(7, 2, 3), torch.randn(4, 7).t(), torch.ones(7, 0)):
        src = src.to(DEVICE)
        expected = reference.segment_csr(src, indptr, reduce)
        assert_no_worse(segment_csr(src, indptr, reduce), expected.double(), expected)
        assert torch.equal(segment_csr(src, indptr.int(), reduce), segment_csr(src, indptr, reduce))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck(reduce):
    src = torch.randn(6, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    indptr = torch.tensor([0, 2, 2, 5], device=DEVICE)
    assert torch.autograd.gradcheck(lambda src: segment_csr(src, indptr, reduce), (src,))
