"""InfoNCE of layer pairs: values, every gradient, masks, extreme scores, threads, autograd."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from abkd_fast import reference
from abkd_fast._backend import backend_of
from abkd_fast.ops import pair_infonce
from abkd_fast.testing import assert_no_worse

# S, T, B, d: one row; fewer rows and columns than a vector; odd; several panels, blocks and spans.
SIZES = [(1, 1, 1, 1), (1, 2, 2, 3), (2, 3, 37, 20), (2, 1, 65, 130), (1, 1, 500, 64)]
DTYPES = [torch.float32, torch.float64]
NAMES = ("loss", "D", "du", "dw", "dA")


def case(students, teachers, rows, width, dtype=torch.float64, masked=False):
    u = F.normalize(torch.randn(students, rows, width, dtype=dtype), dim=2)
    w = F.normalize(torch.randn(teachers, rows, width, dtype=dtype) + u[:1], dim=2)
    mask = torch.rand(rows) < 0.6 if masked else None
    if masked:
        mask[rows // 2] = True
    return u, w, torch.rand(teachers, students, dtype=dtype), mask


def results(op, u, w, attention, mask, temperature=0.075, dtype=None):
    """[loss, D, du, dw, dA] with an upstream gradient that is not 1."""
    inputs = [x.to(dtype or x.dtype).detach().requires_grad_() for x in (u, w, attention)]
    loss, found = op(*inputs, temperature=temperature, mask=mask)
    assert not found.requires_grad and list(found.shape) == list(attention.shape)
    return loss.detach(), found, *torch.autograd.grad(loss, inputs, loss.new_tensor(1.5))


def assert_equal_bits(found, others):
    assert all(torch.equal(a, b) for a, b in zip(found, others, strict=True))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("temperature", [0.075, 1.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_the_reference(size, dtype, temperature, masked):
    given = case(*size, dtype, masked)
    exact = results(reference.pair_infonce, *given, temperature, torch.float64)
    rough = results(reference.pair_infonce, *given, temperature)
    found = results(pair_infonce, *given, temperature)
    for name, got, want, plain in zip(NAMES, found, exact, rough, strict=True):
        assert_no_worse(got, want, plain, name)
    assert_equal_bits(results(pair_infonce, *given, temperature), found)


def test_values():
    """Written out node by node; one pair is the cross-entropy of the scores."""
    u, w, attention, _ = case(2, 2, 5, 3)
    _, found = pair_infonce(u, w, temperature=0.5)
    for i in range(2):
        for j in range(2):
            total = 0.0
            for v in range(5):
                scores = [float(u[j, v] @ w[i, x]) / 0.5 for x in range(5)]
                total += math.log(sum(math.exp(s) for s in scores)) - scores[v]
            assert float(found[i, j]) == pytest.approx(total / 5)
    loss, one = pair_infonce(u[0], w[1], attention[:1, :1], temperature=0.5)
    torch.testing.assert_close(loss, attention[0, 0] * found[1, 0])
    torch.testing.assert_close(one[0, 0], F.cross_entropy(2 * u[0] @ w[1].t(), torch.arange(5)))


def test_a_mask_leaves_the_other_rows_out():
    u, w, attention, mask = case(2, 3, 40, 6, masked=True)
    found = results(pair_infonce, u, w, attention, mask)
    few = results(pair_infonce, u[:, mask], w[:, mask], attention, None)
    indices = results(pair_infonce, u, w, attention, mask.nonzero().flatten())
    assert_equal_bits(found, indices)
    for i in (0, 1, 4):
        assert torch.equal(found[i], few[i])
    for i in (2, 3):
        assert torch.equal(found[i][:, mask], few[i]) and not found[i][:, ~mask].any()


@pytest.mark.parametrize("temperature", [1e-4, 1e-2, 30.0])
def test_scores_of_any_range(temperature):
    """Lengths from 1e-3 to 1e3: exponents up to 1e10, and rows whose own score is the least."""
    u, w, attention, _ = case(1, 2, 70, 8)
    u = u * torch.logspace(-3, 3, 70, dtype=torch.float64)[:, None]
    w[0] = -w[0]
    found = results(pair_infonce, u, w, attention, None, temperature)
    exact = results(reference.pair_infonce, u, w, attention, None, temperature)
    for name, got, want in zip(NAMES, found, exact, strict=True):
        assert bool(got.isfinite().all()), name
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))


def test_a_row_that_is_told_from_the_others_has_no_loss():
    rows = torch.eye(5).repeat(1, 3).requires_grad_()
    loss, _ = pair_infonce(rows, rows, temperature=1e-3)
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, rows)[0].any()


def test_wrong_numbers_show():
    for bad in (math.nan, math.inf):
        u, w, *_ = case(1, 1, 70, 8, torch.float32)
        w[0, 69, 7] = bad
        assert pair_infonce(u, w)[0].isnan()


def test_no_rows():
    u, w, attention, _ = case(2, 1, 4, 3)
    none = torch.zeros(4, dtype=torch.bool)
    found = results(pair_infonce, u, w, attention, none)
    assert found[0].isnan() and found[1].isnan().all()
    assert not found[2].any() and not found[3].any()


def test_strides():
    u, w, attention, _ = case(2, 2, 30, 7)
    spread = [x.transpose(0, 1).repeat(1, 1, 2).transpose(0, 1)[:, :, :7] for x in (u, w)]
    assert not spread[0].is_contiguous()
    expected = results(pair_infonce, u, w, attention, None)
    found = results(pair_infonce, *spread, attention.t().contiguous().t(), None)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.skipif(
    backend_of("pair_infonce")[0] == "reference", reason="torch's products depend on the threads"
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_agree_to_the_bit(dtype):
    given = case(2, 2, 850, 33, dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(pair_infonce, *given))
    finally:
        torch.set_num_threads(threads)
    assert_equal_bits(found[1], found[0])
    assert_equal_bits(found[2], found[0])


def test_only_wanted_gradients():
    u, w, attention, _ = case(2, 2, 20, 5)
    full = results(pair_infonce, u, w, attention, None)
    for i, name in enumerate(("student", "teacher", "attention")):
        inputs = [u, w, attention]
        inputs[i] = inputs[i].detach().requires_grad_()
        loss, _ = pair_infonce(*inputs)
        (gradient,) = torch.autograd.grad(loss, inputs[i], loss.new_tensor(1.5))
        assert torch.equal(gradient, full[2 + i]), name
    assert not pair_infonce(u, w)[0].requires_grad


def test_gradcheck_and_no_second_derivative():
    u, w, attention, _ = case(2, 2, 4, 3)
    inputs = [x.requires_grad_() for x in (u, w, attention)]
    assert gradcheck(lambda *x: pair_infonce(*x, temperature=0.4)[0], inputs)
    loss, _ = pair_infonce(*inputs)
    with pytest.raises(RuntimeError, match="pair_infonce has no second derivative"):
        torch.autograd.grad(loss, u, create_graph=True)


def test_sixteen_bits_and_autocast():
    u, w, attention, _ = case(1, 2, 30, 8, torch.bfloat16)
    expected = pair_infonce(u.float(), w.float(), attention.float())
    assert_equal_bits(pair_infonce(u, w, attention), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_bits(pair_infonce(u.float(), w.float(), attention.float()), expected)


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_opcheck_and_compile():
    u, w, attention, _ = case(2, 3, 9, 4, torch.float32)
    for wanted in ((True, True), (False, True), (False, False)):
        arguments = (u, w, attention, 0.1, *wanted)
        torch.library.opcheck(torch.ops.abkd_fast.pair_infonce.default, arguments)
    u.requires_grad_()
    compiled = torch.compile(pair_infonce, fullgraph=True, backend="aot_eager")
    for op in (compiled, pair_infonce):
        loss, _ = op(u, w, attention)
        gradient = torch.autograd.grad(loss, u)[0]
        torch.testing.assert_close(gradient, results(pair_infonce, u, w, attention, None)[2] / 1.5)


U = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((U[0, 0], U), r"student must be \[layers >= 1, B, d >= 1\] or \[B, d >= 1\], got \[3\]"),
        ((U, U[:0]), r"teacher must be \[layers >= 1, B, d >= 1\].*got \[0, 4, 3\]"),
        ((U[:, :, :0], U), r"student must be .*got \[2, 4, 0\]"),
        ((U, U[:, :2]), r"teacher must have rows \[B, d\] = \[4, 3\].*\[2, 3\]; project both"),
        ((U, U.double()), "teacher must be float32, got float64"),
        ((U.int(), U), "student must be float16 or bfloat16 or float32 or float64, got int32"),
        ((U, U[:1], U[0, :2, :2]), r"attention must be \[T, S\] = \[1, 2\], got \[2, 2\]"),
        ((U, U, U[0, :2, :2].double()), "attention must be float32, got float64"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        pair_infonce(*arguments)


def test_rejects_options():
    with pytest.raises(ValueError, match=r"temperature must be finite and > 0, got 0.0"):
        pair_infonce(U, U, temperature=0.0)
    with pytest.raises(ValueError, match=r"mask must be \[B=4\], got \[3\]"):
        pair_infonce(U, U, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be bool or int64, got float32"):
        pair_infonce(U, U, mask=torch.ones(4))
