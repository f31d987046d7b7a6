"""spmm and segment_csr where sizes make a difference: hubs that threads share, 64-bit offsets."""

import subprocess
import sys

import pytest
import torch

from abkd_fast import CSRGraph, reference
from abkd_fast.ops import spmm
from abkd_fast.testing import assert_no_worse

REDUCTIONS = ["sum", "mean", "max", "min"]
DEGREES = {  # of rows; sums of more than 1024 edges are made of chunks
    "one-row": [40_000],
    "first": [30_000, 5, 0, 3],
    "last": [3, 0, 5, 30_000],
    "neighbours": [7, 9_000, 1_024, 1_025, 9_000, 0, 2],
    "among-many": [4] * 700 + [25_000] + [4] * 700,
}


def draw(*shape, dtype):
    """Random numbers; small integers in float64, whose sums no wider dtype could check."""
    if dtype == torch.float64:
        return torch.randint(-4, 5, shape).to(dtype)
    return torch.randn(shape).to(dtype)


def hub_graph(name, dtype=None, transpose=False):
    """Hubs among the rows, or among the columns."""
    degree = torch.tensor(DEGREES[name])
    rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    col = torch.randint(50, (int(rowptr[-1]),))
    value = None if dtype is None else draw(len(col), dtype=dtype)
    graph = CSRGraph.from_csr(rowptr, col, value, 50)
    return graph.t() if transpose else graph


def results(product, graph, x, reduce, dout):
    """(out, dx, dvalue where the graph has weights)."""
    leaves = [x.detach().requires_grad_()]
    if graph.value is not None:
        leaves.append(graph.value.detach().requires_grad_())
        graph = graph.with_value(leaves[1])
    out = product(graph, leaves[0], reduce)
    return out.detach(), *torch.autograd.grad(out, leaves, dout)


@pytest.mark.parametrize("transpose", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_hubs_match_the_reference_and_threads_agree_to_the_bit(dtype, reduce, transpose):
    threads = torch.get_num_threads()
    for name, width in zip(DEGREES, (16, 3, 37, 130, 64), strict=True):
        graph = hub_graph(name, dtype, transpose)
        x, dout = (draw(n, width, dtype=dtype) for n in (graph.num_src, graph.num_dst))
        found = []
        try:
            for count in (1, 2, 5, 1):
                torch.set_num_threads(count)
                found.append(results(spmm, graph, x, reduce, dout))
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True)), name
        wide = graph.to(dtype=torch.float64)
        exact = results(reference.spmm, wide, x.double(), reduce, dout.double())
        plain = results(reference.spmm, graph, x, reduce, dout)
        if dtype == torch.float64 and reduce == "mean":  # quotients round, in the oracle too
            terms = graph.num_edges * 2.0**-52
            for ours, oracle in zip(found[0], exact, strict=True):
                torch.testing.assert_close(ours, oracle, rtol=terms, atol=terms)
            continue
        names = [f"{what} of {name}" for what in ("out", "dx", "dvalue")]
        for parts in zip(found[0], exact, plain, names, strict=True):
            assert_no_worse(*parts)


def test_an_unweighted_hub_is_split_like_a_weighted_one():
    graph = hub_graph("neighbours")
    x = torch.randn(50, 37)
    ones = graph.with_value(torch.ones(graph.num_edges))
    assert torch.equal(spmm(graph, x), spmm(ones, x))


def assert_runs(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if "alloc" in done.stderr:
        pytest.skip("this machine does not hand out the address space")
    assert done.returncode == 0, done.stderr


READ = """
import torch
import abkd_fast as af
from abkd_fast.ops import segment_csr, spmm
rows, width = 2**25 + 2**16, 64  # 2.15e9 elements of which a few rows exist in memory
x = torch.empty(rows, width, dtype=torch.bfloat16)
col = torch.tensor([rows - 1, 5, rows - 2, rows - 1, 2**25, 0, 5, rows - 1]).repeat(2)
x[col] = torch.randn(16, width).bfloat16()
graph = af.CSRGraph.from_csr(torch.arange(0, 17, 2), col, torch.randn(16), rows)
few, index = col.unique(return_inverse=True)
small = af.CSRGraph.from_csr(graph.rowptr, index, graph.value, len(few))
for reduce in ("sum", "mean", "max", "min"):
    assert torch.equal(spmm(graph, x, reduce), spmm(small, x[few], reduce)), reduce
    segments = segment_csr(x, torch.tensor([rows - 2, rows - 1, rows - 1, rows]), reduce)
    assert torch.equal(segments, torch.stack([x[-2], x[0] * 0, x[-1]])), reduce
a = torch.randn(8, width).bfloat16()
sddmm = torch.ops.abkd_fast.sddmm
big, tiny = sddmm(graph.rowptr, graph.col, a, x), sddmm(small.rowptr, small.col, a, x[few])
assert torch.equal(big, tiny)
"""

WRITE = """
import torch
import abkd_fast as af
from abkd_fast.ops import spmm
rows, width = 2**25 + 2**16, 64  # the result has 2.15e9 elements
filled = torch.tensor([0, 7, 2**24, 2**25 - 1, 2**25, 2**25 + 1, rows - 2, rows - 1])
degree = torch.zeros(rows, dtype=torch.int32)
degree[filled] = 2
rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0, dtype=torch.int32)])
del degree
col = torch.arange(16) % 5
x, value = torch.randn(5, width).bfloat16(), torch.randn(16)
graph = af.CSRGraph.from_csr(rowptr, col, value, 5)
small = af.CSRGraph.from_csr(torch.arange(0, 17, 2), col, value, 5)
for reduce in ("sum", "max"):
    out = spmm(graph, x, reduce)
    assert torch.equal(out[filled], spmm(small, x, reduce)), reduce
    assert sum(int(block.count_nonzero()) for block in out.split(2**20)) == 8 * width, reduce
    del out
"""


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31_in_what_is_read():
    assert_runs(READ)


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31_in_what_is_written():
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) for line in file if "MemAvailable" in line) / 2**20
    except OSError:
        pytest.skip("cannot tell how much memory is free")
    if free < 8:
        pytest.skip(f"needs 8 GiB of free memory, {free:.1f} are there")
    assert_runs(WRITE)
