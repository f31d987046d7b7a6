"""Triton's loss on class scores against the float64 oracle, in the interpreter or on a GPU."""

import pytest
import torch
from triton_cases import DEVICE, needs_triton

import abkd_fast
from abkd_fast import reference
from abkd_fast.ops import kl_div
from abkd_fast.testing import assert_no_worse

pytestmark = needs_triton
# Rows of one program and of several; one class, a block's, and more than one block's.
SIZES = [(1, 1), (3, 2), (7, 40), (270, 7), (1, 1025), (4, 2500)]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def on_triton():
    with abkd_fast.backend("triton"):
        yield


def case(nodes, classes, dtype, soft, masked):
    logits = 3 * torch.randn(nodes, classes).to(dtype)
    target = torch.randint(classes, (nodes,))
    if soft:
        target = (2 * torch.randn(nodes, classes, dtype=torch.float64)).log_softmax(1).to(dtype)
    mask = torch.rand(nodes) < 0.4 if masked else None
    if masked:
        mask[nodes // 2] = True
        if not soft:
            target[~mask] = -1
    return logits.to(DEVICE), target.to(DEVICE), mask if mask is None else mask.to(DEVICE)


def results(loss, logits, target, mask, temperature, dtype):
    """[loss, correct, dlogits]"""
    logits = logits.to(dtype).requires_grad_()
    target = target.to(dtype) if target.is_floating_point() else target
    mean, correct = loss(logits, target, mask, temperature)
    return mean.detach(), correct, *torch.autograd.grad(mean, logits, mean.new_tensor(1.5))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_reference(size, soft, masked):
    for dtype in DTYPES:
        given = *case(*size, dtype, soft, masked), 1.7
        exact = results(reference.kl_div, *given, torch.float64)
        plain = results(reference.kl_div, *given, dtype)
        got = results(kl_div, *given, dtype)
        assert torch.equal(got[1], exact[1])
        for what, i in (("loss", 0), ("dlogits", 2)):
            assert_no_worse(got[i], exact[i], plain[i], f"{what} in {dtype}")
        again = results(kl_div, *given, dtype)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("soft", [False, True])
def test_many_programs(soft, monkeypatch):
    from abkd_fast.kernels import kl_div as kernels

    chosen = kernels.score_blocks
    monkeypatch.setattr(kernels, "score_blocks", lambda z: chosen(z)._replace(rows=8, programs=16))
    given = *case(270, 5, torch.float32, soft, True), 1.0
    exact = results(reference.kl_div, *given, torch.float64)
    plain = results(reference.kl_div, *given, torch.float32)
    got = results(kl_div, *given, torch.float32)
    assert torch.equal(got[1], exact[1])
    assert_no_worse(got[0], exact[0], plain[0], "loss")
    assert_no_worse(got[2], exact[2], plain[2], "dlogits")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_scores_are_computed_in_float32(dtype):
    logits, target, mask = case(9, 6, dtype, True, True)
    loss, correct = kl_div(logits, target, mask)
    exact, right = reference.kl_div(logits.double(), target.double(), mask)
    assert loss.dtype == torch.float32 and int(correct) == int(right)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(soft):
    logits, target, mask = case(5, 3, torch.float64, soft, True)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kl_div(z, target, mask, 0.7)[0], (logits,))


@pytest.mark.parametrize("classes", [3, 1100])
def test_extreme_scores(classes):
    logits = torch.full((6, classes), -torch.inf)
    logits[0, :3] = torch.tensor([1e4, 0.0, -1e4])
    logits[1, 1:3] = torch.tensor([0.0, 1.0])
    logits[2, classes - 1] = -1e4
    logits[3, :2] = torch.tensor([0.0, torch.nan])
    logits[4, :2] = torch.tensor([0.0, torch.inf])
    labels = torch.tensor([0, 2, classes - 1, 1, 1, 0])
    for row in range(6):
        mask = torch.arange(6) == row
        given = (logits.to(DEVICE), labels.to(DEVICE), mask.to(DEVICE), 1.0)
        expected = results(reference.kl_div, *given, torch.float64)
        got = results(kl_div, *given, torch.float32)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.to(b.dtype), b, equal_nan=True)


def test_targets_without_mass_and_targets_that_are_certain():
    target = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf] * 3]).to(DEVICE)
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [1.0, 2.0, 3.0]]).to(DEVICE)
    got = results(kl_div, logits, target, None, 1.0, torch.float32)
    expected = results(reference.kl_div, logits, target, None, 1.0, torch.float64)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b)


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_that_is_no_class_gives_nan(label):
    logits = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    labels = torch.tensor([0, label, 1, 2], device=DEVICE)
    loss, correct = kl_div(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isnan() and gradient[1].isnan().all() and gradient[[0, 2, 3]].isfinite().all()
    assert int(correct) == int((logits.argmax(1) == labels).sum())


def test_no_rows_and_strides():
    nothing = torch.zeros(0, 3, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    loss, correct = kl_div(*nothing)
    assert loss.isnan() and int(correct) == 0
    logits, target, mask = case(12, 5, torch.float32, True, True)
    got = results(kl_div, logits, target, torch.zeros_like(mask), 1.0, torch.float32)
    assert got[0].isnan() and int(got[1]) == 0 and not got[2].any()
    spread = torch.randn(5, 24).to(DEVICE).t()[::2]
    masks = torch.stack([mask, ~mask], 1)[:, 0]
    target = target.t().contiguous().t()
    got = results(kl_div, spread, target, masks, 1.0, torch.float32)
    expected = results(kl_div, spread.contiguous(), target.contiguous(), mask, 1.0, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
