"""Rows that threads share, where OpenMP grants fewer threads than torch asks for."""

import os
import subprocess
import sys

import pytest

from abkd_fast._backend import backend_of

SHARED_ROWS = """
import torch
from abkd_fast import CSRGraph
from abkd_fast.ops import segment_csr, spmm
torch.manual_seed(0)
N, E = 20_000, 400_000
source = torch.randint(0, N, (E,))
target = torch.where(torch.rand(E) < 0.8, 77, torch.randint(0, N, (E,)))  # a row of 320,000 edges
graph = CSRGraph.from_edge_index(torch.stack([source, target]), num_nodes=N)
x = torch.rand(N, 8, dtype=torch.float64)
rows, rowptr = x[graph.col.long()], graph.rowptr.long()
found = {}
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    found[threads] = spmm(graph, x), segment_csr(rows, rowptr)
    assert torch.equal(found[threads][0], found[1][0]), f"spmm, {threads} threads"
    assert torch.equal(found[threads][1], found[1][1]), f"segment_csr, {threads} threads"
expected = torch.zeros_like(x).index_add_(0, target, x[source])
assert all(torch.allclose(out, expected, rtol=1e-11) for out in found[7])
"""


@pytest.mark.skipif(
    backend_of("spmm")[0] != "cpu", reason=f"no C++ extension: {backend_of('spmm')[1]}"
)
@pytest.mark.parametrize("limit", [{"OMP_DYNAMIC": "true"}, {"OMP_THREAD_LIMIT": "1"}])
def test_sums_are_right_with_fewer_threads_than_asked_for(limit):
    done = subprocess.run(
        [sys.executable, "-c", SHARED_ROWS],
        capture_output=True,
        text=True,
        env=os.environ | limit,
    )
    assert done.returncode == 0, done.stderr
