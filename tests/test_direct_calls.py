"""Calls of torch.ops.abkd_fast past the public functions: refused where memory would be misread."""

import pytest
import torch
from torch import tensor

from abkd_fast._backend import backend_of

BUILT, WHY = backend_of("spmm")
pytestmark = pytest.mark.skipif(BUILT != "cpu", reason=f"no C++ extension: {WHY}")

o = torch.ops.abkd_fast
RELATION = [tensor([0, 1]), tensor([0]), tensor([0]), tensor([0])]  # one edge, 0 to 0
X, W = torch.ones(2, 3), torch.ones(1, 3, 4)


def relational(roots=(0, 0, 2), x=X, weight=W, root=None, bias=None, pairs=(0, 1), x_root=None):
    pairs = list(pairs)
    return o.relational(
        RELATION, RELATION, pairs, [0, 1], list(roots), x, x_root, weight, root, bias, False, False,
        [0],
    )  # fmt: skip


def relational_backward(roots=(0, 0, 2), x=X, weight=W, value_t=None):
    rows = sum(roots[2::3])
    return o.relational_backward(
        RELATION, RELATION, value_t, [0, 1], [0, 1], list(roots), torch.ones(rows, 4), None, x,
        None, weight, None, False, [0], True, False, True, False, True,
    )  # fmt: skip


def attention_backward(edges_t):
    heads = torch.ones(1, 1)
    return o.edge_attention_backward(
        tensor([0, 1]), tensor([0]), tensor([0, edges_t]), torch.zeros(edges_t, dtype=torch.int64),
        torch.arange(edges_t), torch.ones(1, 1, 2), torch.ones(1, 1, 2), None, torch.ones(1, 2),
        torch.ones(1, 2), None, torch.ones(1, 2, 1), heads, heads, 0.2, 0.0, None, 0, 0, False,
    )  # fmt: skip


REFUSED = {
    "spmm's rows behind col": (
        lambda: o.spmm(tensor([0, 10**8]), tensor([0]), None, X, False),
        "rowptr must go from 0 to 1, the size of col, or less, got 0 to 100000000",
    ),
    "edges of no row": (
        lambda: o.sddmm(tensor([0, 0]), tensor([0, 0, 0]), torch.ones(1, 3), torch.ones(1, 3)),
        "rowptr must end at 3, the size of col, got 0",
    ),
    "rows before the first edge": (
        lambda: o.spmm(tensor([-5, 1]), tensor([0]), None, X, False),
        "rowptr must go from 0 to 1, the size of col, or less, got -5 to 1",
    ),
    "a bias of no types": (lambda: relational(bias=torch.zeros(0)), "bias must be .types, out."),
    "a type beyond the biases": (
        lambda: relational((10**9, 0, 2), bias=torch.ones(1, 4)),
        "bias must be .types, out.",
    ),
    "a type beyond the roots": (
        lambda: relational((7, 0, 2), root=torch.ones(1, 3, 4)),
        "root must be .types, in, out.",
    ),
    "roots beyond the rows": (
        lambda: relational((0, 10**9, 2), root=torch.ones(1, 3, 4)),
        "roots must lie within the 2 rows that are transformed, got 2 from row 1000000000",
    ),
    "descending pairs": (
        lambda: relational(pairs=(1, 0, 1), weight=W.expand(2, 3, 4)),
        "pairs must ascend from 0",
    ),
    "no roots": (lambda: relational_backward(()), "roots must hold a type"),
    "another dtype of x": (lambda: relational_backward(x=X.double()), "x must have the dtype"),
    "too few values": (
        lambda: relational_backward(value_t=torch.ones(0)),
        "value_t must be .E. of the dtype of x",
    ),
    "bytes": (
        lambda: o.segment_csr_extremum_dsrc(
            torch.zeros(1, 64, dtype=torch.int64), torch.ones(1, 64, dtype=torch.uint8),
            tensor([0, 1]), 1,
        ),
        "dout must be float16, bfloat16, float32 or float64",
    ),
    "a transpose with more edges": (
        lambda: attention_backward(4),
        "rowptr_t and col_t must be of the transpose",
    ),
    "a neighbour that is no node": (
        lambda: o.neighborhood(
            tensor([0, 1, 1]), tensor([10**10]), None, tensor([0]), 1, torch.full((2,), -1)
        ),
        r"col must lie in \[0, 2\), got 10000000000",
    ),
    "a sampled neighbour that is no node": (
        lambda: o.sample_neighbors(
            tensor([0, 1, 1]), tensor([10**10]), tensor([0]), [1, 1], False, tensor([0]), 0
        ),
        r"nodes must lie in \[0, 2\), got 10000000000",
    ),
    "more bytes than int64 counts": (
        lambda: o.empty_output(torch.zeros(1), [2**62 + 16]),
        "sizes must be >= 0 and their bytes at most 2\\^62",
    ),
    "bytes that no rounding has room for": (
        lambda: o.empty_output(torch.zeros(1), [2**60 + 1]),
        "sizes must be >= 0 and their bytes at most 2\\^62",
    ),
    "positions from elsewhere": (
        lambda: o.neighborhood(
            tensor([0, 1, 1]), tensor([1]), None, tensor([0]), 1, tensor([-1, 99])
        ),
        "positions must be -1 before, got another value of node 1",
    ),
    "a size below zero": (lambda: o.empty_output(torch.zeros(1), [-1]), "sizes must be >= 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(RuntimeError, match=message):
        call()


def test_well_formed_calls_pass():
    """The same calls with nothing wrong: what is refused above is refused for its reason."""
    root, bias = torch.ones(1, 3, 4), torch.ones(1, 4)
    assert relational(root=root, bias=bias).tolist() == [[7.0] * 4, [4.0] * 4]
    dx, _, dweight, _, dbias = relational_backward()
    assert dx.tolist() == [[4.0] * 3, [0.0] * 3] and dweight.shape == W.shape
    assert dbias.tolist() == [[2.0] * 4]
    assert attention_backward(1)[0].shape == (1, 1, 2)


def test_no_pairs_of_layers_have_no_gradient():
    """pair_infonce without teacher layers: zeros, not what the memory held before."""
    for _ in range(3):
        o.empty_output(torch.zeros(1), [2, 8, 4]).fill_(7.0)
        student = torch.ones(2, 8, 4)
        _, dstudent, _ = o.pair_infonce(
            student, torch.ones(0, 8, 4), torch.ones(0, 2), 0.1, True, True
        )
        assert not dstudent.any()
