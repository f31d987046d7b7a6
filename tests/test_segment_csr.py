"""segment_csr and its gradients; test_backend.py runs this file on the other back ends."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import reference
from abkd_fast._backend import backend_of
from abkd_fast.ops import segment_csr
from abkd_fast.testing import assert_no_worse

REDUCTIONS = ["sum", "mean", "max", "min"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = torch.ops.abkd_fast
INDPTRS = {  # segments of 12 or more rows, but for the hub's
    "no-segments": [0],
    "no-rows": [0, 0, 0],
    "empty-segments": [0, 0, 3, 3, 7, 12, 12],
    "one-row-each": list(range(13)),
    "not-all-rows": [2, 5, 5, 9],
    "hub": [0, 1, 2600, 2600, 2603],  # more than two chunks of a shared row
}


def segments(name):
    indptr = torch.tensor(INDPTRS[name])
    return indptr, {"no-rows": 0, "hub": 2603}.get(name, 12)


def results(op, src, indptr, reduce, dout):
    """(out, dsrc)."""
    src = src.detach().requires_grad_()
    out = op(src, indptr, **reduce) if isinstance(reduce, dict) else op(src, indptr, reduce)
    return out.detach(), torch.autograd.grad(out, src, dout.to(src.dtype))[0]


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("sum", [[4.0, 9.0], [0.0, 0.0], [-1.0, 2.0], [0.0, 1.0]]),
        ("mean", [[2.0, 4.5], [0.0, 0.0], [-1.0, 2.0], [0.0, 0.5]]),
        ("max", [[3.0, 5.0], [0.0, 0.0], [-1.0, 2.0], [6.0, 1.0]]),
        ("min", [[1.0, 4.0], [0.0, 0.0], [-1.0, 2.0], [-6.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_values(reduce, expected, index):
    src = torch.tensor([[1.0, 5.0], [3.0, 4.0], [-1.0, 2.0], [-6.0, 0.0], [6.0, 1.0]])
    indptr = torch.tensor([0, 2, 2, 3, 5], dtype=index)
    assert segment_csr(src, indptr, reduce).tolist() == expected


def test_a_tie_sends_the_gradient_to_the_first_row():
    src = torch.ones(5, 1)
    out, dsrc = results(segment_csr, src, torch.tensor([1, 4, 4]), "max", torch.ones(2, 1))
    assert out.tolist() == [[1], [0]]
    assert dsrc.flatten().tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INDPTRS)
def test_matches_reference(name, dtype, reduce):
    indptr, size = segments(name)
    for width in (0, 1, 3, 8, 16, 33, 130, 300):
        src = torch.randn(size, width).to(dtype)
        dout = torch.randn(len(indptr) - 1, width).to(dtype)
        exact = results(reference.segment_csr, src.double(), indptr, reduce, dout)
        plain = results(reference.segment_csr, src, indptr, reduce, dout)
        got = results(segment_csr, src, indptr, reduce, dout)
        assert_no_worse(got[0], exact[0], plain[0])
        assert_no_worse(got[1], exact[1], plain[1], "dsrc")
        assert torch.equal(segment_csr(src, indptr, reduce), got[0])  # no gradient asked for


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("shape", [(12,), (12, 3, 2), (12, 2, 0)])
def test_other_numbers_of_dimensions(shape, reduce):
    src, indptr = torch.randn(shape, dtype=torch.float64), torch.tensor([0, 4, 4, 12])
    out = segment_csr(src, indptr, reduce)
    assert out.shape == (3, *shape[1:])
    flat = segment_csr(src.reshape(12, -1) if src.numel() else src.flatten(1), indptr, reduce)
    assert torch.equal(out.flatten(), flat.flatten())
    torch.testing.assert_close(out, reference.segment_csr(src, indptr, reduce))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_non_contiguous_rows_and_gradients(reduce):
    indptr = torch.tensor([0, 3, 3, 12])
    base = torch.randn(24, 40)
    for src in (base[::2, 3:20], base.t()[:12], base[:1].expand(12, 40)):
        width = src.size(1)
        for dout in (torch.ones(()).expand(3, width), torch.randn(width, 3).t()):
            got = results(segment_csr, src, indptr, reduce, dout)
            expected = results(
                segment_csr, src.clone().contiguous(), indptr, reduce, dout.contiguous()
            )
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_runs_and_thread_counts_agree_to_the_bit(reduce):
    degree = torch.cat([torch.randint(0, 9, (2000,)), torch.tensor([20_000, 0, 5])])
    indptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    src, dout = torch.randn(int(indptr[-1]), 37), torch.randn(len(degree), 37)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            found.append(results(segment_csr, src, indptr, reduce, dout))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_nan_and_infinities(reduce):
    inf, nan = torch.inf, torch.nan
    src = torch.tensor([-inf, -inf, 1.0, nan, 2.0, inf, inf]).unsqueeze(1)
    out = segment_csr(src, torch.tensor([0, 2, 5, 7]), reduce)
    torch.testing.assert_close(out, torch.tensor([[-inf], [nan], [inf]]), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixty_thousand_rows_accumulate_in_float32(dtype):
    out = segment_csr(torch.ones(60_000, 20, dtype=dtype), torch.tensor([0, 60_000]))
    assert torch.equal(out, torch.full((1, 20), 60_000).to(dtype))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck(reduce):
    src = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    indptr = torch.tensor([1, 3, 3, 6])
    assert gradcheck(lambda src: segment_csr(src, indptr, reduce), (src,))
    if reduce in ("sum", "mean"):
        assert gradgradcheck(lambda src: segment_csr(src, indptr, reduce).pow(3), (src,))


def test_second_derivative_of_an_extremum_is_a_clear_error():
    src = torch.randn(4, 2, requires_grad=True)
    out = segment_csr(src, torch.tensor([0, 4]), "max")
    (dsrc,) = torch.autograd.grad(out.square().sum(), src, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dsrc.sum().backward()


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", [name for name in INDPTRS if name != "no-segments"])
def test_parity_with_torch_scatter(name, reduce):
    scatter = pytest.importorskip("torch_scatter", reason="the optional peer is not installed")
    indptr, size = segments(name)
    for shape in ((size,), (size, 5), (size, 3, 2)):
        src = torch.randn(shape, dtype=torch.float64)
        dout = torch.randn((len(indptr) - 1, *shape[1:]), dtype=torch.float64)
        got = results(segment_csr, src, indptr, reduce, dout)
        torch.testing.assert_close(got[0], scatter.segment_csr(src, indptr, reduce=reduce))
        if name == "not-all-rows":
            continue  # the peer has no right gradient there
        peer = results(scatter.segment_csr, src, indptr, {"reduce": reduce}, dout)
        torch.testing.assert_close(got[1], peer[1])


def op_arguments():
    indptr = torch.tensor([1, 3, 3, 6])
    src, dout = torch.randn(7, 4), torch.randn(3, 4)
    arg = OPS.segment_csr_extremum(src, indptr, True, True)[1]
    return {
        "segment_csr": (src, indptr, False),
        "segment_csr-mean": (src.bfloat16(), indptr, True),
        "segment_csr_extremum": (src, indptr, True, True),
        "segment_csr_extremum-alone": (src, indptr, False, False),
        "segment_csr_expand": (dout, indptr, 7),
        "segment_csr_extremum_dsrc": (arg, dout, indptr, 7),
    }


@pytest.mark.parametrize("name", list(op_arguments()))
def test_opcheck(name):
    op = getattr(OPS, name.split("-")[0]).default
    torch.library.opcheck(op, op_arguments()[name])


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_compiles_without_graph_breaks(reduce):
    torch._dynamo.reset()
    indptr = torch.tensor([0, 3, 3, 9])

    def loss(src):
        return segment_csr(src.relu(), indptr, reduce).sin().sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        src = torch.linspace(-1, 1, 54).view(9, 3, 2).requires_grad_()
        value = function(src)
        value.backward()
        found.append((value.detach(), src.grad))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("src", "indptr", "reduce", "message"),
    [
        (torch.ones(4), [0, 5], "sum", r"indptr must lie in \[0, E=4\], got values from 0 to 5"),
        (torch.ones(4), [-1, 3], "sum", r"indptr must lie in \[0, E=4\], got values from -1 to 3"),
        (torch.ones(4), [0, 3, 2], "max", r"must not decrease, got indptr\[1\]=3 > indptr\[2\]=2"),
        (torch.ones(4), [], "sum", r"indptr must hold num_segments \+ 1 entries, got 0"),
        (torch.ones(4), [[0, 4]], "sum", r"indptr must have 1 dimension\(s\), got shape \[1, 2\]"),
        (torch.ones(4), [0.0, 4.0], "sum", "indptr must be int32 or int64, got float32"),
        (torch.ones(()), [0], "sum", r"src must have 1 dimension or more, got shape \[\]"),
        (torch.ones(4).long(), [0, 4], "sum", "src must be float16 or .*, got int64"),
        (torch.ones(4), [0, 4], "mul", "reduce must be one of sum, mean, max, min, got 'mul'"),
        ([1.0], [0, 1], "sum", "src must be a torch.Tensor, got list"),
    ],
)
def test_rejects(src, indptr, reduce, message):
    indptr = torch.tensor(indptr, dtype=None if indptr else torch.int64)
    with pytest.raises(ValueError, match=message):
        segment_csr(src, indptr, reduce)


@pytest.mark.parametrize("indptr", [[0, 5], [-1, 3], [0, 3, 2], [0, 2**62, -(2**62), 4]])
def test_the_kernels_refuse_pointers_of_other_memory(indptr):
    if backend_of("segment_csr")[0] != "cpu":
        pytest.skip("plain torch checks its own indices")
    indptr, src = torch.tensor(indptr), torch.ones(4, 2)
    dout = torch.ones(len(indptr) - 1, 2)
    for call in (
        lambda: OPS.segment_csr(src, indptr, False),
        lambda: OPS.segment_csr_extremum(src, indptr, True, True),
        lambda: OPS.segment_csr_expand(dout, indptr, 4),
        lambda: OPS.segment_csr_extremum_dsrc(dout.long(), dout, indptr, 4),
    ):
        with pytest.raises(RuntimeError, match="indptr must ascend"):
            call()
