"""Edge attention on a GPU, values and gradients, against the reference in float64 on the CPU."""

import pytest
import torch
from attention_cases import CASES, cast, fits, leaves, results

from abkd_fast import CSRGraph
from abkd_fast.testing import GRAPHS, assert_no_worse, sample_graph, wide_indices

DROPPED = {"p": 0.4, "seed": 77, "layer": 2, "step": 1}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def hub_graph():
    """Rows that a few lanes, a block and several blocks of edges fill; square."""
    degrees = torch.tensor([5000, 3, 300, 0, 1, 4096, 2, *[1] * 63])
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    return CSRGraph.from_csr(rowptr, torch.randint(70, (int(rowptr[-1]),)))


def moved(tensors):
    return {name: t.detach().cuda().requires_grad_() for name, t in tensors.items()}


@pytest.mark.parametrize("options", [{}, DROPPED], ids=["plain", "dropout"])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_attention(backend, dtype, case, options):
    graphs = [graph for graph in (hub_graph(), *map(sample_graph, GRAPHS)) if fits(case, graph)]
    for graph in graphs:
        for heads, width in ((1, 1), (3, 20), (2, 300)):
            tensors = leaves(case, graph, heads, width, dtype)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            exact = results(case, graph, cast(tensors, torch.float64), True, **options)
            plain = results(case, graph, cast(tensors, wide), True, **options)
            got = results(case, graph.to("cuda"), moved(tensors), **options)
            again = results(case, wide_indices(graph).to("cuda"), moved(tensors), **options)
            for what, a, b, c in zip(["out", *tensors], got, exact, plain, strict=True):
                assert_no_worse(a.cpu(), b, c.to(dtype), f"{what}, {heads} x {width}")
            assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
