"""The loss on class scores: cross-entropy, divergence, accuracy, gradients, threads."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import reference
from abkd_fast.ops import kl_div
from abkd_fast.testing import assert_no_worse

SIZES = [(1, 1), (1, 3), (3, 2), (7, 40), (65, 7), (1025, 3), (5, 513), (2050, 17)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def case(nodes, classes, dtype, soft, masked):
    logits = 3 * torch.randn(nodes, classes).to(dtype)
    target = torch.randint(classes, (nodes,))
    if soft:
        target = (2 * torch.randn(nodes, classes, dtype=torch.float64)).log_softmax(1).to(dtype)
    mask = None
    if masked:
        mask = torch.rand(nodes) < 0.4
        mask[nodes // 2] = True
        if not soft:
            target[~mask] = -1
    return logits, target, mask


def test_values():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0], [math.log(4.0), 0.0]])
    loss, correct = kl_div(logits, torch.tensor([1, 0, 1]), torch.tensor([True, False, True]))
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(5)) / 2)
    assert int(correct) == 1
    target = torch.tensor([[0.5, 0.5]]).log()
    loss, correct = kl_div(logits[:1], target, temperature=math.log(3.0) / math.log(2.0))
    assert float(loss) == pytest.approx(
        0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    )


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_matches_the_reference(size, dtype, soft, masked):
    logits, target, mask = case(*size, dtype, soft, masked)
    logits.requires_grad_()
    wide = logits.detach().double().requires_grad_()
    wide_target = target.double() if soft else target
    plain = logits.detach().float() if dtype.itemsize == 2 else logits.detach()
    plain_target = target.to(plain.dtype) if soft else target
    plain.requires_grad_()
    loss, correct = kl_div(logits, target, mask, 1.7)
    exact, exact_correct = reference.kl_div(wide, wide_target, mask, 1.7)
    rough, _ = reference.kl_div(plain, plain_target, mask, 1.7)
    assert_no_worse(loss.detach(), exact.detach(), rough.detach(), "loss")
    assert int(correct) == int(exact_correct)
    gradients = [torch.autograd.grad(a, b)[0] for a, b in ((loss, logits), (rough, plain))]
    (exact_gradient,) = torch.autograd.grad(exact, wide)
    assert_no_worse(gradients[0], exact_gradient, gradients[1].to(dtype), "dlogits")


def test_is_the_cross_entropy_and_the_divergence_of_torch():
    logits, labels, mask = case(300, 7, torch.float64, False, True)
    torch.testing.assert_close(
        kl_div(logits, labels, mask)[0], F.cross_entropy(logits[mask], labels[mask])
    )
    logits, target, _ = case(300, 7, torch.float64, True, False)
    divergence = F.kl_div(logits.log_softmax(1), target, reduction="batchmean", log_target=True)
    torch.testing.assert_close(kl_div(logits, target)[0], divergence)


@pytest.mark.parametrize("soft", [False, True])
def test_threads_and_repeats_agree_to_the_bit(soft):
    logits, target, mask = case(20_000, 7, torch.float32, soft, True)
    logits.requires_grad_()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            loss, correct = kl_div(logits, target, mask)
            found.append((loss, correct, *torch.autograd.grad(loss, logits)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(soft):
    logits, target, mask = case(5, 3, torch.float64, soft, True)
    logits.requires_grad_()

    def loss(z):
        return kl_div(z, target, mask, 0.7)[0]

    assert gradcheck(loss, (logits,)) and gradgradcheck(loss, (logits,))


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("soft", [False, True])
def test_opcheck_and_compile(soft):
    logits, target, mask = case(9, 4, torch.float32, soft, True)
    torch.library.opcheck(torch.ops.abkd_fast.kl_div.default, (logits, target, mask, 2.0))
    arguments = (torch.tensor(1.5), logits, target, mask, 2.0)
    torch.library.opcheck(torch.ops.abkd_fast.kl_div_backward.default, arguments)
    compiled = torch.compile(kl_div, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target, mask), kl_div(logits, target, mask))


def test_extreme_scores():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-torch.inf, 0.0, 1.0]], requires_grad=True)
    loss, correct = kl_div(logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)) / 2) and int(correct) == 2
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all() and gradient[0].tolist() == [0, 0, 0]
    certain = torch.tensor([[0.0, -torch.inf]])
    assert float(kl_div(torch.tensor([[0.0, 0.0]]), certain)[0]) == pytest.approx(math.log(2))
    for bad in (torch.nan, torch.inf):
        assert kl_div(torch.tensor([[0.0, bad]]), torch.tensor([0]))[0].isnan()


def test_no_rows_and_strides():
    nothing = kl_div(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(3) > 0)
    assert nothing[0].isnan() and int(nothing[1]) == 0
    logits, target, mask = case(12, 5, torch.float32, True, True)
    spread = torch.randn(5, 24).t()[::2]
    assert torch.equal(
        kl_div(spread, target, mask)[0], kl_div(spread.contiguous(), target, mask)[0]
    )


Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Z[0], Y), r"logits must have 2 dimension\(s\), got shape \[3\]"),
        ((Z[:, :0], Y), r"logits must be \[N, C >= 1\], got \[4, 0\]"),
        ((Z, Y[:2]), r"target must be \[4\], got \[2\]"),
        ((Z, Z[:, :2]), r"target must be \[4, 3\], got \[4, 2\]"),
        ((Z, Y.int()), "target must be int64 or float32, got int32"),
        ((Z, Y, Y), "mask must be bool, got int64"),
        ((Z, Y, Y[:2] > 0), r"mask must be \[N=4\], got \[2\]"),
        ((Z, Y, None, 0.0), "temperature must be finite and > 0, got 0.0"),
        ((Z, Y + 3), r"target must be labels in \[0, C=3\), got 3 at node 0; leave unlabelled"),
        ((Z, Y - 1, torch.arange(4) > 1), r"got -1 at node 2"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        kl_div(*arguments)
