"""The CUDA kernels without a GPU: run on an emulated one, and compiled by nvcc."""

import re
import subprocess
import sys

import pytest
import torch
from conv_cases import LAYERS, NAMES, leaves
from cuda_emulation import ROOT, build

import abkd_fast._cuda as cuda
from abkd_fast import CSRGraph, reference
from abkd_fast.reference.conv import op_conv
from abkd_fast.reference.dropout import op_dropout
from abkd_fast.reference.spmm import op_spmm, op_spmm_extremum
from abkd_fast.testing import GRAPHS, assert_no_worse, random_graph, sample_graph, wide_indices

sys.path.insert(0, str(ROOT / "bench"))
import cuda_kernels  # noqa: E402

pytestmark = pytest.mark.slow
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NVCC = cuda_kernels.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor in CUDA_HOME")


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """The ops of csrc/cuda on CPU tensors."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: tests/gpu runs the kernels on it")
    build(tmp_path_factory.mktemp("cuda"))
    return torch.ops.abkd_fast


def accumulated(value, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return None if value is None else value.to(wide)


def hubs(dtype, weighted=True):
    """Rows of one block, of pieces that begin inside and at a multiple of 2048, and short ones."""
    degrees = torch.tensor([3, 300, 0, 5000, 1, 4096 - (5304 % 2048), 2048 * 2, 256, 257, 2])
    edges = int(degrees.sum())
    generator = torch.Generator().manual_seed(3)
    col = torch.randint(50, (edges,), generator=generator)
    value = torch.randn(edges, generator=generator).to(dtype) if weighted else None
    return CSRGraph.from_csr(torch.cat([torch.zeros(1).long(), degrees.cumsum(0)]), col, value, 50)


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*GRAPHS, "hubs"])
def test_spmm(ops, name, dtype, mean):
    for weighted in (False, True):
        kind = dtype if weighted else None
        graph = hubs(dtype, weighted) if name == "hubs" else sample_graph(name, kind)
        value = accumulated(graph.value, dtype)
        exact_value = None if value is None else value.double()
        for width in (0, 1, 7, 40) if name == "hubs" else (0, 1, 7, 40, 130, 256, 300):
            x = torch.randn(graph.num_src, width).to(dtype)
            out = ops.spmm_cuda(graph.rowptr, graph.col, value, x, mean)
            exact = op_spmm(graph.rowptr, graph.col, exact_value, x.double(), mean)
            assert_no_worse(out, exact, op_spmm(graph.rowptr, graph.col, value, x, mean))
            wide = wide_indices(graph)
            assert torch.equal(ops.spmm_cuda(wide.rowptr, wide.col, value, x, mean), out)


@pytest.mark.parametrize("maximum", [False, True], ids=["min", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*GRAPHS, "hubs"])
def test_spmm_extremum(ops, name, dtype, maximum):
    for weighted in (False, True):
        kind = dtype if weighted else None
        graph = hubs(dtype, weighted) if name == "hubs" else sample_graph(name, kind)
        value = accumulated(graph.value, dtype)
        for width in (1, 7, 40) if name == "hubs" else (0, 1, 7, 40, 130, 256):
            x = torch.randn(graph.num_src, width).to(dtype)
            if width == 40:
                x = x.round()  # ties
                x[graph.num_src // 2 :, :5] = torch.nan
                x[:, 5:8] = -torch.inf if maximum else torch.inf
            for this in (graph, wide_indices(graph)):
                arguments = (this.rowptr, this.col, value, x, maximum, True)
                out, arg = ops.spmm_extremum_cuda(*arguments)
                expected, winners = op_spmm_extremum(*arguments)
                torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(arg, winners)
            alone, none = ops.spmm_extremum_cuda(*arguments[:-1], False)
            torch.testing.assert_close(alone, out, rtol=0, atol=0, equal_nan=True)
            assert none.shape == (0, width)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_draws_the_mask_of_the_reference(ops, dtype):
    seed = torch.tensor(2**62 + 12345)
    for shape in ((0,), (1,), (7, 3), (513, 33)):
        x = torch.randn(shape).to(dtype)
        out = ops.dropout_cuda(x, 0.3, seed, 5, 9)
        assert torch.equal(out, op_dropout(x, 0.3, seed, 5, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drop_output", [False, True], ids=["drops-input", "drops-output"])
def test_conv_aggregate(ops, dtype, drop_output):
    seed = torch.tensor(77)
    graph = random_graph(60, 50, mean_degree=5, power_law=True, dtype=dtype)
    value = accumulated(graph.value, dtype)
    for width in (1, 6, 7, 64, 256):
        x = torch.randn(50, width).to(dtype)
        residual = torch.randn(60, width).to(dtype)

        def expected(x, residual, value, exact):
            x = x if drop_output else op_dropout(x, 0.4, seed, 2, 1)
            mixed = 0.9 * op_spmm(graph.rowptr, graph.col, value, x, False) + 0.1 * residual
            return op_dropout(mixed, 0.4, seed, 2, 1) if drop_output else mixed

        arguments = (graph.rowptr, graph.col, value, x, 0.9, residual, 0.1, 0.4, seed, 2, 1)
        out = ops.conv_aggregate_cuda(*arguments, drop_output)
        exact = expected(x.double(), residual.double(), value.double(), True)
        assert_no_worse(out, exact, expected(x, residual, value, False))


@pytest.mark.parametrize("degree", [2, 9], ids=["drops-while-gathering", "drops-before"])
@pytest.mark.parametrize("case", list(LAYERS))
def test_conv_and_its_backward(ops, case, degree):
    width, width_out, options = LAYERS[case]
    graph = random_graph(40, mean_degree=degree, dtype=torch.float64)
    tensors, rest = leaves(graph, width, width_out, options, torch.float64)
    x, weight, bias, x_0 = (None if t is None else t.detach() for t in tensors)
    transform_first = weight is not None and x_0 is None and width_out <= width
    first = rest.get("order", "transform_first" if transform_first else "aggregate_first")
    mixing = first == "aggregate_first"
    keep = mixing and weight is not None
    seed = torch.tensor(77) if "p" in rest else None
    draw = (rest.get("p", 0.0), seed, 2, 1)
    factors = (rest.get("alpha", 0.0), rest.get("beta", 1.0))
    relu = rest.get("act") == "relu"
    edges = (graph.rowptr, graph.col, graph.value)
    arguments = (*edges, x, weight, bias, x_0, *factors, relu, mixing, keep, *draw)
    got = cuda.conv(*arguments)
    for a, b, name in zip(got, op_conv(*arguments), ("out", "sums", "mixed"), strict=True):
        assert_no_worse(a, b, b, name)
    dout, dsums = torch.randn_like(got[0]), torch.randn_like(got[1])
    features = got[2] if mixing else x
    turned = graph.t()
    backward = (turned.rowptr, turned.col, turned.value, dout, dsums, got[0] if relu else None)
    backward += (features if weight is not None else None, weight, *factors, *draw, keep)
    wanted = (True, weight is not None, x_0 is not None)
    named = {name: t for name, t in zip(NAMES, tensors, strict=True) if t is not None}
    options = {key: option for key, option in rest.items() if key != "order"}
    out = reference.conv(graph, *tensors[:3], x_0=tensors[3], **options)
    expected = dict(
        zip(named, torch.autograd.grad(out, named.values(), (dout, dsums)), strict=True)
    )
    for name, a in zip(NAMES, cuda.conv_backward(*backward, *wanted), strict=True):
        if name in expected:
            assert_no_worse(a, expected[name], expected[name], f"d{name}")


def test_runs_agree_to_the_bit(ops):
    graph = hubs(torch.float32)
    x = torch.randn(50, 37)
    runs = [ops.spmm_cuda(graph.rowptr, graph.col, graph.value, x, False) for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(5, dtype=torch.float32)}, "x must have 2 dimensions"),
        ({"x": torch.ones(5, 2, dtype=torch.int64)}, "x must be float16, bfloat16, float32"),
        ({"value": torch.ones(2)}, r"value must be \[E\]"),
        ({"value": torch.ones(3).double()}, "value must be float32, or float64 where x is"),
        ({"col": torch.zeros(3, dtype=torch.int64)}, "col must have the dtype of rowptr"),
    ],
)
def test_rejects(ops, change, message):
    good = {
        "rowptr": torch.tensor([0, 1, 3], dtype=torch.int32),
        "col": torch.zeros(3, dtype=torch.int32),
        "value": None,
        "x": torch.ones(5, 2),
    }
    with pytest.raises(RuntimeError, match=message):
        ops.spmm_cuda(*(good | change).values(), False)


@needs_nvcc
def test_compiled_kernels_spill_nothing_and_the_page_is_theirs():
    kernels = cuda_kernels.compile_all(NVCC)
    assert {k.arch for k in kernels} == {"sm_80", "sm_90"}
    assert {k.op for k in kernels} == {"dropout", "spmm_extremum", *cuda_kernels.MODES}
    assert not [k for k in kernels if k.spilled]
    assert max(k.shared for k in kernels) <= 48 * 1024
    page = (ROOT / "docs" / "gpu-kernels-cuda.md").read_text()
    release = cuda_kernels.version(NVCC)
    if f"nvcc {release};" not in page:
        pytest.skip(f"the page was written with another nvcc than {release}")
    assert cuda_kernels.table(kernels, release) == page


@needs_nvcc
def test_features_are_read_16_bytes_at_a_time(tmp_path):
    source, target = ROOT / "csrc" / "cuda" / "spmm.cu", tmp_path / "spmm.ptx"
    command = [NVCC, *cuda_kernels.FLAGS, "-arch=sm_90", "-ptx", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = target.read_text().split(".visible .entry ")[1:]
    wide = [e for e in entries if re.match(r"\S*aggregate_kernelI\S*Li(2|4|8)ELi[12]E", e)]
    assert len(wide) >= 16
    for entry in wide:  # four edges under way
        assert len(re.findall(r"ld\.global\.nc\.v4\.\w+", entry)) >= 4, entry[:200]
