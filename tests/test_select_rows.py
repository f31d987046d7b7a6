"""select_rows against its definition."""

import pytest
import torch
from query_cases import GRAPHS, assert_same_graph

from abkd_fast import ops
from abkd_fast._backend import backend, backend_of
from abkd_fast.testing import random_graph


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("rows", [[], [2], [4, 0, 4, 3]])
def test_select_rows_equals_its_definition(name, rows):
    graph, rows = GRAPHS[name](), torch.tensor(rows, dtype=torch.int64)
    got = ops.select_rows(graph, rows)
    with backend("reference"):
        want = ops.select_rows(graph, rows)
    assert_same_graph(got, want)
    assert torch.equal(got.to_dense(), graph.to_dense()[rows])


def test_select_rows_does_not_depend_on_threads():
    graph = random_graph(4000, mean_degree=40, dtype=torch.float32, seed=4)
    rows = torch.randint(4000, (6000,), generator=torch.Generator().manual_seed(1))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(ops.select_rows(graph, rows))
    finally:
        torch.set_num_threads(threads)
    assert_same_graph(*results)


def test_bad_input_is_named():
    graph = GRAPHS["weighted"]()
    with pytest.raises(ValueError, match="rows must lie in"):
        ops.select_rows(graph, torch.tensor([-1]))
    with pytest.raises(ValueError, match="rows must"):
        ops.select_rows(graph, torch.tensor([1.0]))


@pytest.mark.skipif(backend_of("select_rows")[0] != "cpu", reason="the kernel's own check")
def test_the_kernel_checks_rows():
    graph = GRAPHS["weighted"]()
    with pytest.raises(RuntimeError, match="rows must lie in"):
        torch.ops.abkd_fast.select_rows(graph.rowptr, graph.col, None, torch.tensor([300]))
    rowptr, col = torch.tensor([0, 2**26], dtype=torch.int32), torch.empty(2**26, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="rows must have at most 2147483647 entries"):
        torch.ops.abkd_fast.select_rows(rowptr, col, None, torch.zeros(32, dtype=torch.int64))
