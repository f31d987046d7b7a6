"""neighbor_kl on the back end that serves it; test_backend.py runs this file on the others."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from neighbor_cases import KERNELS, SHAPES, SQUARE, exact_results, results, rows
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import CSRGraph, reference
from abkd_fast._backend import backend_of
from abkd_fast.ops import neighbor_kl, neighbor_log_softmax
from abkd_fast.testing import assert_no_worse, random_graph, sample_graph, wide_indices


def test_values():
    #                        0 <- 1, 0 <- 2;  1 <- 2;  2 <- nobody
    graph = CSRGraph.from_csr(torch.tensor([0, 2, 3, 3]), torch.tensor([1, 2, 2]))
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[1.0], [1.0], [2.0]])
    p, q = math.exp(0) + math.exp(1), math.exp(1) + math.exp(9)
    log_p = [-math.log(p), 1 - math.log(p)]
    log_q = [1 - math.log(q), 9 - math.log(q)]
    expected = sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True)) / 3
    assert float(neighbor_kl(graph, student, teacher, kernel="l2")) == pytest.approx(expected)
    target = neighbor_log_softmax(graph, teacher, kernel="l2")
    torch.testing.assert_close(target, torch.tensor([*log_p, 0.0]))


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("name", SQUARE)
def test_matches_reference_in_float64(name, kernel):
    graph, options = sample_graph(name), KERNELS[kernel]
    for shape in SHAPES:
        student, teacher = rows(graph, *shape)
        expected = results(graph, student, teacher, reference, **options)
        for target in (False, True):
            got = results(graph, student, teacher, target=target, **options)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, equal_nan=True)
            wide = results(wide_indices(graph), student, teacher, target=target, **options)
            for a, b in zip(wide, got, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("name", ["power-law", "hub"])
def test_is_as_exact_as_plain_torch(name, kernel):
    graph = sample_graph(name)
    student, teacher = rows(graph, 20, 37, torch.float32)
    exact = exact_results(graph, student, teacher, **KERNELS[kernel])
    plain = results(graph, student, teacher, reference, **KERNELS[kernel])
    for target in (False, True):
        got = results(graph, student, teacher, target=target, **KERNELS[kernel])
        for what, a, b, c in zip(["loss", "dstudent"], got, exact, plain, strict=True):
            assert_no_worse(a, b, c, what)


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_gradcheck(kernel):
    graph = random_graph(6, mean_degree=2)
    student, teacher = rows(graph, 3, 4)

    def op(student):
        return neighbor_kl(graph, student, teacher, **KERNELS[kernel])

    assert gradcheck(op, student)
    assert gradgradcheck(op, student)


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_is_0_where_both_agree_and_positive_else(kernel):
    graph = random_graph(50, mean_degree=5)
    student, teacher = rows(graph, 8, 8)
    loss, dstudent = results(graph, student, student.detach().clone(), **KERNELS[kernel])
    assert abs(float(loss)) < 1e-13 and float(dstudent.abs().max()) < 1e-13
    assert float(neighbor_kl(graph, student.detach(), teacher, **KERNELS[kernel])) > 0.0


def test_the_teacher_is_constant_and_without_gradients_nothing_is_kept():
    graph = random_graph(30, mean_degree=4)
    student, teacher = rows(graph, 8, 5)
    loss = neighbor_kl(graph, student, teacher.requires_grad_())
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)
    with torch.no_grad():
        alone = neighbor_kl(graph, student, teacher)
    assert torch.equal(alone, loss) and not alone.requires_grad
    assert not neighbor_log_softmax(graph, student).requires_grad


@pytest.mark.parametrize("kernel", ["rbf", "poly"])
def test_runs_and_thread_counts_agree_to_the_bit(kernel):
    if backend_of("neighbor_kl")[0] != "cpu":
        pytest.skip("torch's index_add does not share out its rows")
    graph = random_graph(4000, mean_degree=8, power_law=True)
    student, teacher = rows(graph, 20, 33, torch.float32)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            got = results(graph, student, teacher, **KERNELS[kernel])
            runs.append([*got, neighbor_log_softmax(graph, teacher, **KERNELS[kernel])])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


MEMORY = """
import torch
from harness import peak_above_data
from abkd_fast import CSRGraph
from abkd_fast.ops import neighbor_kl
graph = CSRGraph.from_edge_index(torch.randint(2000, (2, 300_000)), 2000)
student, teacher = torch.randn(2000, 256, requires_grad=True), torch.randn(2000, 256)
graph.t()
step = lambda: torch.autograd.grad(neighbor_kl(graph, student, teacher), student)
print(peak_above_data(step)["above_data_mb"])
"""


def test_nothing_of_size_edges_times_features():
    """One such tensor would take 307 MB; the gradient takes 2, and a copy of it."""
    if backend_of("neighbor_kl")[0] != "cpu":
        pytest.skip("plain torch gathers both ends of every edge")
    bench = Path(__file__).resolve().parents[1] / "bench"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(bench)!r})\n{MEMORY}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30.0


@pytest.mark.parametrize("kernel", ["rbf", "cosine", "poly"])
def test_strides_do_not_matter(kernel):
    graph = random_graph(20, mean_degree=4)
    student, teacher = rows(graph, 5, 7)
    expected = results(graph, student, teacher, **KERNELS[kernel])
    strided = [x.detach().t().contiguous().t() for x in (student, teacher)]
    got = results(graph, strided[0].requires_grad_(), strided[1], **KERNELS[kernel])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kernel", ["l2", "poly"])
def test_large_scores_are_safe(kernel):
    graph = random_graph(40, mean_degree=6, seed=1)
    student, teacher = (30 * x.detach() for x in rows(graph, 8, 8, torch.float32))
    exact = exact_results(graph, student, teacher, **KERNELS[kernel])
    got = results(graph, student.requires_grad_(), teacher, **KERNELS[kernel])
    for a, b in zip(got, exact, strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=2e-3 * float(b.abs().max()))


def test_nan_reaches_the_loss_and_the_gradients_of_its_readers_alone():
    graph = random_graph(40, mean_degree=2, seed=1)
    student, teacher = rows(graph, 9, 9, torch.float32)
    with torch.no_grad():
        student[7] = torch.nan
    loss, dstudent = results(graph, student, teacher)
    row, col = graph.row(), graph.col.long()
    rows_hit = torch.zeros(40, dtype=torch.bool)
    rows_hit[row[col == 7]] = True
    rows_hit[7] = bool((row == 7).any())
    hit = rows_hit.clone()
    hit[col[rows_hit[row]]] = True
    assert bool(loss.isnan())
    assert torch.equal(dstudent.isnan().any(1), hit)


def test_opcheck():
    graph = random_graph(7)
    student, teacher = (x.detach() for x in rows(graph, 3, 4))
    edges, operators = (graph.rowptr, graph.col), torch.ops.abkd_fast
    for similarity in range(3):
        rest = (similarity, 0.5, 2)
        target = operators.neighbor_log_softmax(*edges, teacher, *rest)
        given = (*edges, *graph.transposed(), student, teacher, None, *rest)
        torch.library.opcheck(operators.neighbor_kl.default, given)
        given = (*edges, None, None, None, student, None, target, *rest)
        torch.library.opcheck(operators.neighbor_kl.default, given)
        torch.library.opcheck(operators.neighbor_log_softmax.default, (*edges, teacher, *rest))


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_compiles_without_graph_breaks(kernel):
    torch._dynamo.reset()
    graph = random_graph(12)
    graph.t()
    student, teacher = rows(graph, 4, 5, torch.float32)

    def loss(student):
        return neighbor_kl(graph, student.sin(), teacher, **KERNELS[kernel]).sin()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [compiled(student), loss(student)]
    torch.testing.assert_close(values[0], values[1])
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(gradients[0], gradients[1])


ROWS = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(5, 3), ROWS), {}, r"student must be \[N=4, d\], got \[5, 3\]"),
        ((ROWS, torch.ones(3, 3)), {}, r"teacher must be \[N=4, d\], got \[3, 3\]"),
        ((ROWS.half(), ROWS), {}, "student must be float32 or float64, got float16"),
        ((ROWS, ROWS.double()), {}, "teacher must be float32, got float64"),
        ((ROWS[0], ROWS), {}, r"student must have 2 dimension\(s\), got shape \[3\]"),
        ((ROWS, None), {}, "teacher or log_target must be given, and not both"),
        ((ROWS, ROWS), {"log_target": torch.ones(16)}, "must be given, and not both"),
        ((ROWS, None), {"log_target": torch.ones(3)}, r"log_target must be \[E=16\], got \[3\]"),
        ((ROWS, ROWS), {"kernel": "gauss"}, "kernel must be one of rbf, cosine, poly, l2, got"),
        ((ROWS, ROWS), {"power": 0}, "power must be an integer >= 1, got 0"),
        ((ROWS, ROWS), {"power": 1.5}, "power must be an integer >= 1, got 1.5"),
    ],
)
def test_rejects(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        neighbor_kl(random_graph(4), *arguments, **options)


def test_rejects_other_graphs():
    with pytest.raises(ValueError, match=r"graph must be square, got shape \(4, 3\)"):
        neighbor_kl(random_graph(4, 3), ROWS, ROWS)
    with pytest.raises(ValueError, match="graph must be a CSRGraph, got NoneType"):
        neighbor_log_softmax(None, ROWS)
