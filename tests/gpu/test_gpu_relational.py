"""The relational layer on a GPU, values and gradients, against float64 on the CPU."""

import pytest
import torch
from relational_cases import CASES, leaves, relational_graph, results

from abkd_fast import reference
from abkd_fast.ops import relational
from abkd_fast.testing import assert_no_worse

NAMES = ("out", "dx", "dweight", "droot", "dbias", "more")


def cast(tensors, dtype, device="cpu"):
    return [t.detach().to(device, dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize("order", ["aggregate_first", "transform_first"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "no-relations"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_relational(backend, dtype, case, order):
    graph = relational_graph(case)
    for width, width_out in ((1, 1), (16, 4), (33, 70), (130, 200)):
        given, options = leaves(graph, width, width_out, dtype, by_type=case == "types")

        def run(function, device, dtype, graph=graph, given=given, options=options, **rest):
            keys, values = options.keys(), options.values()
            moved = dict(zip(keys, cast(values, dtype, device), strict=True))
            inputs = cast(given, dtype, device)
            return results(function, graph.to(device), inputs, moved, act="relu", **rest)

        exact = run(reference.relational, "cpu", torch.float64)
        plain = run(reference.relational, "cpu", dtype)
        got = run(relational, "cuda", dtype, order=order)
        again = run(relational, "cuda", dtype, order=order)
        for what, a, b, c in zip(NAMES, got, exact, plain, strict=False):
            assert_no_worse(a.cpu(), b, c, f"{what} of {width} to {width_out}")
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
