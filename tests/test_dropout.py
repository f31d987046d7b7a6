"""Philox dropout: published vectors, equal bits everywhere, gradients, compilation."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from abkd_fast import reference
from abkd_fast.ops import dropout
from abkd_fast.ops.dropout import draw_seed
from abkd_fast.reference.dropout import philox

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(0,), (1,), (3,), (7, 5), (1, 127), (129,), (3, 4, 50), (61, 64)]
SEED = 0x299F31D0A4093822


ZEROS, ONES = "00000000 00000000", "ffffffff ffffffff"
PI = ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (f"{ZEROS} {ZEROS}", ZEROS, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (f"{ONES} {ONES}", ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (*PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_answers(counter, key, expected):
    words = [torch.tensor([int(word, 16) for word in text.split()]) for text in (counter, key)]
    assert [f"{word:08x}" for word in philox(*words).tolist()] == expected.split()


def test_values():
    # The first published answer; as shares of 2^32 its words are 0.40, 0.88, 0.74 and 0.61.
    assert dropout(torch.ones(4), 0.5, seed=0).tolist() == [0, 2, 2, 2]
    assert dropout(torch.ones(4), 0.75, seed=0).tolist() == [0, 4, 0, 0]
    words = philox(torch.tensor([2, 0, 7, 9]), torch.tensor([0xA4093822, 0x299F31D0]))
    kept = dropout(torch.ones(16), 0.5, SEED, layer=7, step=9)[8:12] != 0
    assert kept.tolist() == (words >= 2**31).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference_to_the_bit(shape, dtype):
    x = torch.randn(shape).to(dtype)
    for p in (0.1, 0.5, 0.9999):
        for place in ((0, 0), (5, 0), (5, 2**32 - 1)):
            out = dropout(x, p, SEED, *place)
            assert out.dtype == dtype
            assert torch.equal(out, reference.dropout(x, p, SEED, *place))


def test_non_contiguous_and_dropped_nan():
    x = torch.randn(9, 14)
    assert torch.equal(dropout(x.t(), 0.5, 1), dropout(x.t().contiguous(), 0.5, 1))
    assert torch.equal(dropout(x[::2, 3:], 0.5, 1), dropout(x[::2, 3:].clone(), 0.5, 1))
    assert set(dropout(torch.full((100,), torch.nan), 0.5, 1).isnan().tolist()) == {True, False}


def test_probability_zero_is_the_identity():
    x = torch.randn(3)
    assert dropout(x, 0.0, 1) is x


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_share_and_independence_of_the_dropped(p):
    masks = [dropout(torch.ones(200_000), p, 3, *place) == 0 for place in ((0, 0), (1, 0), (0, 1))]
    masks.append(dropout(torch.ones(200_000), p, 4) == 0)
    deviation = (p * (1 - p) / 200_000) ** 0.5
    for mask in masks:
        assert abs(mask.double().mean() - p) < 5 * deviation
    correlation = torch.corrcoef(torch.stack(masks).double()).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 200_000**0.5


def test_runs_and_thread_counts_agree_to_the_bit():
    x = torch.randn(700, 301)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(dropout(x, 0.5, SEED))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_gradients():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: dropout(x, 0.4, 11, 2, 1), (x,))
    assert gradgradcheck(lambda x: dropout(x, 0.4, 11, 2, 1).square(), (x,))
    (dx,) = torch.autograd.grad(dropout(x, 0.4, 11).sum(), x)
    assert torch.equal(dx, dropout(torch.ones_like(x), 0.4, 11))


def test_drawn_seeds_follow_torch_s_generator():
    torch.manual_seed(5)
    state, first, second = torch.get_rng_state(), draw_seed(), draw_seed()
    assert int(first) >= 0 and first != second
    torch.set_rng_state(state)
    assert torch.equal(draw_seed(), first)


def test_checkpointing_recomputes_the_same_mask():
    x = torch.randn(50, requires_grad=True)
    out = checkpoint(lambda x: dropout(x.sin(), 0.5, draw_seed()), x, use_reentrant=False)
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(dx != 0, out != 0)


def test_opcheck():
    seed = torch.tensor(SEED)
    for x in (torch.randn(5, 3), torch.randn(4, 6).t().double()):
        torch.library.opcheck(torch.ops.abkd_fast.dropout.default, (x, 0.5, seed, 1, 2))


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    x, seed = torch.randn(6, 5, requires_grad=True), torch.tensor(3)
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager")
    out = compiled(x, 0.5, seed, 1)
    assert torch.equal(out, dropout(x, 0.5, seed, 1))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0] != 0, out != 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], 0.5, 1), "x must be a torch.Tensor, got list"),
        ((torch.ones(2, dtype=torch.int64), 0.5, 1), "x must be float16 or .*, got int64"),
        ((torch.ones(2), 1.0, 1), r"p must be in \[0, 1\), got 1.0"),
        ((torch.ones(2), float("nan"), 1), r"p must be in \[0, 1\), got nan"),
        ((torch.ones(2), 0.5, -1), r"seed must be in \[0, 2\^63\), got -1"),
        ((torch.ones(2), 0.5, torch.ones(2, dtype=torch.int64)), r"one element, got shape \[2\]"),
        ((torch.ones(2), 0.5, torch.ones(1)), "seed must be int64, got float32"),
        ((torch.ones(2), 0.5, 1, -1), r"layer must be in \[0, 2\^32\), got -1"),
        ((torch.ones(2), 0.5, 1, 0, 2**32), r"step must be in \[0, 2\^32\), got 4294967296"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        dropout(*arguments)
