"""Results at several numbers of threads, and a graph whose rows their kernels order."""

import torch

from abkd_fast import CSRGraph
from abkd_fast.latency.measure import thread_count


def at_thread_counts(call):
    """What ``call()`` gives with 1, 2, 3 and again 1 threads."""
    results = []
    for count in (1, 2, 3, 1):
        with thread_count(count):
            results.append(call())
    return results


def short_rows(dtype):
    """9,000 rows over 700 nodes, weighted unless ``dtype`` is None."""
    degrees = torch.randint(0, 9, (9_000,))  # taken by degree, in blocks; the last is not full
    degrees[[0, 4_000, 8_999]] = torch.tensor([1_500, 40, 1_025])  # one chunk of a row, several
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    edges = int(rowptr[-1])
    weight = None if dtype is None else torch.rand(edges, dtype=dtype)
    return CSRGraph.from_csr(rowptr, torch.randint(0, 700, (edges,)), weight, 700)
