"""Offsets beyond 2^31, a row of a million edges, and 16-bit sums that only float32 holds."""

import pytest
import torch

from abkd_fast import CSRGraph
from abkd_fast.ops import conv, spmm

REDUCTIONS = ["sum", "mean", "max", "min"]


def room(gigabytes):
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 10**9:
        pytest.skip(f"needs {gigabytes} GB of device memory, {free / 1e9:.0f} are free")


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_sources_beyond_two_to_the_31_elements(backend, reduce):
    room(8)
    rows, width = 2**25 + 2**16, 64
    col = torch.tensor([rows - 1, 5, rows - 2, rows - 1, 2**25, 0, 5, rows - 1]).repeat(200)
    graph = CSRGraph.from_csr(torch.tensor([0, 2, 4, 6, 8, 300, 1600]), col, None, rows)
    few, index = col.unique(return_inverse=True)
    small = CSRGraph.from_csr(graph.rowptr, index, None, len(few))
    part = torch.randn(len(few), width, device="cuda").bfloat16()
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    x[few.cuda()] = part
    got = spmm(graph.to("cuda"), x, reduce)
    assert torch.equal(got, spmm(small.to("cuda"), part, reduce))


def test_rows_beyond_two_to_the_31_elements(backend):
    room(24)
    rows, width = 2**25 + 2**16, 64
    rowptr = torch.zeros(rows + 1, dtype=torch.int64)
    rowptr[5:] = 2
    rowptr[-1] = 5
    graph = CSRGraph.from_csr(rowptr, torch.tensor([1, 2, 0, 1, 3]), None, 4).to("cuda")
    x = torch.randn(4, width, device="cuda")
    out = spmm(graph, x)
    torch.testing.assert_close(out[4], x[1] + x[2])
    torch.testing.assert_close(out[-1], x[0] + x[1] + x[3])
    assert not out[5:-1].any() and not out[:4].any()
    torch.testing.assert_close(conv(graph, x, None)[0][-1], out[-1])


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_a_million_edges(backend, dtype, reduce):
    degree = 60_000 if dtype == torch.float16 else 1_000_000
    col = torch.arange(degree) % 10
    graph = CSRGraph.from_csr(torch.tensor([0, 0, degree, degree]), col, None, 10).to("cuda")
    x = torch.ones(10, 20, dtype=dtype, device="cuda")
    out = spmm(graph, x, reduce)
    full = float(degree) if reduce == "sum" else 1.0
    expected = torch.tensor([0.0, full, 0.0]).to(dtype).unsqueeze(1).expand(3, 20)
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(spmm(graph, x, reduce), out)
