"""Every op on a GPU, values and gradients, against the reference in float64 on the CPU."""

import pytest
import torch
from conv_cases import LAYERS, cast, labels, leaves, results

import abkd_fast
from abkd_fast import CSRGraph, backend_of, reference
from abkd_fast._backend import BY_TORCH, SCHEMAS
from abkd_fast.ops import (
    conv,
    dropout,
    kl_div,
    layer_pair,
    linear,
    segment_csr,
    spmm,
    teacher_moments,
)
from abkd_fast.reference.spmm import op_spmm_extremum
from abkd_fast.testing import GRAPHS, assert_no_worse, random_graph, sample_graph, wide_indices

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["sum", "mean", "max", "min"]


def hub_graph(dtype):
    """Rows that a few lanes, a block and several blocks sum; hubs at both ends."""
    degrees = torch.tensor([5000, 3, 300, 0, 1, 4096, 2048, 256, 257, 2, 9000])
    col = torch.randint(70, (int(degrees.sum()),))
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    value = None if dtype is None else torch.randn(len(col)).to(dtype)
    return CSRGraph.from_csr(rowptr, col, value, 70)


def spmm_results(graph, x, dout, reduce, trains):
    """[out, dx] and dvalue where there are weights."""
    x = x.clone().requires_grad_()
    given = [x]
    if trains and graph.value is not None:
        graph = graph.with_value(graph.value.clone().requires_grad_())
        given.append(graph.value)
    out = spmm(graph, x, reduce) if x.is_cuda else reference.spmm(graph, x, reduce)
    return [out.detach(), *torch.autograd.grad(out, given, dout)]


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_spmm(backend, dtype, reduce, weighted):
    kind = dtype if weighted else None
    for graph in (hub_graph(kind), *(sample_graph(name, kind) for name in GRAPHS)):
        assert_spmm_matches(graph, dtype, reduce, weighted)


def assert_spmm_matches(graph, dtype, reduce, weighted):
    exact_graph = graph.to(dtype=torch.float64)
    for width in (1, 7, 64, 300) if graph.num_edges > 3000 else (0, 5, 64):
        x = torch.randn(graph.num_src, width).to(dtype)
        dout = torch.randn(graph.num_dst, width).to(dtype)
        exact = spmm_results(exact_graph, x.double(), dout.double(), reduce, weighted)
        plain = spmm_results(graph, x, dout, reduce, weighted)
        for this in (graph, wide_indices(graph)) if width == 7 else (graph,):
            got = spmm_results(this.to("cuda"), x.cuda(), dout.cuda(), reduce, weighted)
            for what, a, b, c in zip(("out", "dx", "dvalue"), got, exact, plain, strict=False):
                assert_no_worse(a.cpu(), b, c, f"{what}, F={width}")


def test_every_op_has_a_kernel_on_the_gpu():
    served_by_torch = {op for op in SCHEMAS if backend_of(op, "cuda")[0] == "torch"}
    assert served_by_torch == set(BY_TORCH)
    for op in set(SCHEMAS) - served_by_torch:
        assert backend_of(op, "cuda")[0] in ("triton", "cuda"), backend_of(op, "cuda")
    for name in ("triton", "cuda"):
        with abkd_fast.backend(name):
            assert backend_of("spmm", "cuda")[0] == name


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nan_infinities_and_ties(backend, reduce):
    graph = hub_graph(None)
    x = torch.randn(70, 33).round()
    x[7, 5], x[:, 6], x[:, 7] = torch.nan, -torch.inf, torch.inf
    out = spmm(graph.to("cuda"), x.cuda(), reduce).cpu()
    expected = reference.spmm(graph, x, reduce)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4, equal_nan=True)
    if reduce in ("max", "min"):
        on = graph.to("cuda")
        arguments = (on.rowptr, on.col, None, x.cuda(), reduce == "max", True)
        arg = torch.ops.abkd_fast.spmm_extremum(*arguments)[1].cpu()
        arguments = (graph.rowptr, graph.col, None, x, reduce == "max", True)
        assert torch.equal(arg, op_spmm_extremum(*arguments)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", list(LAYERS))
@pytest.mark.parametrize("name", ["power-law", "hubs"])
def test_conv(backend, name, case, dtype):
    graph = hub_graph(dtype) if name == "hubs" else sample_graph(name, dtype)
    tensors, rest = leaves(graph, *LAYERS[case], dtype)
    exact_graph = graph.to(dtype=torch.float64)
    exact = results(reference.conv, exact_graph, cast(tensors, torch.float64), rest)
    plain = results(reference.conv, graph, cast(tensors, torch.float32), rest)
    if dtype == torch.float64:
        plain = results(reference.conv, graph, tensors, rest)
    moved = [None if t is None else t.detach().cuda().requires_grad_() for t in tensors]
    got = results(conv_on_cpu_noise, graph.to("cuda"), moved, rest)
    for what, a, b, c in zip(labels(tensors), got, exact, plain, strict=True):
        assert_no_worse(a.cpu(), b, c.to(a.dtype), what)


def conv_on_cpu_noise(*arguments, **options):
    """Conv; ``results`` draws its gradients on the CPU and must find the outputs there."""
    return tuple(out.cpu() for out in conv(*arguments, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_draws_the_mask_of_the_cpu(backend, dtype):
    for shape in ((1,), (7, 3), (513, 33)):
        x = torch.randn(shape).to(dtype)
        expected = dropout(x, 0.3, 2**62 + 5, layer=3, step=7)
        assert torch.equal(dropout(x.cuda(), 0.3, 2**62 + 5, layer=3, step=7).cpu(), expected)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_segment_csr(backend, dtype, reduce):
    indptr = torch.tensor([0, 3, 3, 900, 901])
    for width in (1, 9, 64):
        src = torch.randn(901, width).to(dtype)
        out = segment_csr(src.cuda(), indptr.cuda(), reduce).cpu()
        exact = reference.segment_csr(src.double(), indptr, reduce)
        assert_no_worse(out, exact, reference.segment_csr(src, indptr, reduce))


@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(backend, dtype, act):
    for shape in ((1, 1, 1), (5000, 64, 7), (3001, 33, 64), (700, 16, 500), (90, 500, 600)):
        rows, width, width_out = shape
        given = torch.randn(rows, width), torch.randn(width_out, width), torch.randn(width_out)
        dout = torch.randn(rows, width_out)

        def run(layer, device, dtype, given=given, dout=dout):
            leaves = [t.to(device, dtype).requires_grad_() for t in given]
            out = layer(*leaves, act=act)
            gradients = torch.autograd.grad(out, leaves, dout.to(device, dtype))
            return [t.detach().cpu() for t in (out, *gradients)]

        given, dout = [t.to(dtype) for t in given], dout.to(dtype)
        exact = run(reference.linear, "cpu", torch.float64)
        plain = run(reference.linear, "cpu", dtype)
        got, again = run(linear, "cuda", dtype), run(linear, "cuda", dtype)
        for what, a, b, c in zip(("out", "dx", "dweight", "dbias"), got, exact, plain, strict=True):
            assert_no_worse(a, b, c, f"{what} of {shape}")
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_div(backend, dtype, soft):
    for rows, classes in ((1, 1), (9000, 7), (20_000, 40), (300, 1000), (7, 5000)):
        logits = 3 * torch.randn(rows, classes, dtype=dtype)
        target = torch.randn(rows, classes, dtype=dtype).log_softmax(1)
        target = target if soft else torch.randint(classes, (rows,))
        mask = torch.rand(rows) < 0.4
        mask[0] = True

        def run(loss, device, dtype, logits=logits, target=target, mask=mask):
            leaf = logits.to(device, dtype).requires_grad_()
            given = target.to(device, dtype if soft else torch.int64), mask.to(device)
            mean, correct = loss(leaf, *given, 1.7)
            found = (mean.detach(), correct, *torch.autograd.grad(mean, leaf))
            return [t.cpu() for t in found]

        exact = run(reference.kl_div, "cpu", torch.float64)
        plain = run(reference.kl_div, "cpu", dtype)
        got, again = run(kl_div, "cuda", dtype), run(kl_div, "cuda", dtype)
        assert int(got[1]) == int(exact[1])
        assert_no_worse(got[0], exact[0], plain[0], f"loss of {rows} x {classes}")
        assert_no_worse(got[2], exact[2], plain[2], f"dlogits of {rows} x {classes}")
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["moment", "projection"])
def test_layer_pair(backend, form, teacher_dtype):
    widths, student_widths, nodes, r = [16, 8, 33], [4, 5], 700, 12
    teacher = (torch.randn(nodes, sum(widths)) + 0.5).to(teacher_dtype)
    given = {
        "student_states": [torch.randn(nodes, d) for d in student_widths],
        "teacher_maps": [torch.randn(d, r) for d in widths],
        "student_maps": [torch.randn(d, r) for d in student_widths],
    }
    attention = torch.randn(3, 2).softmax(1)

    def run(device, dtype):
        on = {k: [t.to(device, dtype).requires_grad_() for t in v] for k, v in given.items()}
        kept = teacher.to(device) if dtype == torch.float32 else teacher.to(device, dtype)
        moments = teacher_moments(kept, widths) if form == "moment" else None
        loss, d = layer_pair(
            kept, widths, attention=attention.to(device, dtype), **on, moments=moments
        )
        parts = [leaf for group in on.values() for leaf in group]
        return [t.detach().cpu() for t in (loss, d, *torch.autograd.grad(loss, parts))]

    exact, plain = run("cpu", torch.float64), run("cpu", torch.float32)
    for a, b, c in zip(run("cuda", torch.float32), exact, plain, strict=True):
        assert_no_worse(a, b, c)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_twice_the_same_bits(backend, reduce):
    graph = random_graph(3000, mean_degree=40, power_law=True, dtype=torch.float32).to("cuda")
    for width in (3, 64, 256):
        x = torch.randn(3000, width, device="cuda", requires_grad=True)
        runs = []
        for _ in range(2):
            out = spmm(graph, x, reduce)
            runs.append([out, *torch.autograd.grad(out, x, torch.ones_like(out))])
        for a, b in zip(*runs, strict=True):
            assert torch.equal(a, b)


def test_twice_the_same_bits_in_a_layer(backend):
    graph = random_graph(3000, mean_degree=40, power_law=True, dtype=torch.float32).to("cuda")
    tensors, rest = leaves(graph, 64, 64, {"residual": 0.1, "p": 0.5, "act": "relu"}, torch.float32)
    moved = [None if t is None else t.detach().cuda().requires_grad_() for t in tensors]
    runs = [results(conv_on_cpu_noise, graph, moved, rest) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
