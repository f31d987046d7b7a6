"""The fused layer, on the back end that serves it; test_backend.py runs this file on the others."""

import pytest
import torch
from conv_cases import LAYERS, cast, labels, leaves, results
from thread_counts import at_thread_counts, short_rows
from torch.autograd import gradcheck, gradgradcheck

from abkd_fast import CSRGraph, reference
from abkd_fast._backend import backend_of
from abkd_fast.ops import conv
from abkd_fast.testing import GRAPHS, assert_no_worse, random_graph, sample_graph, wide_indices

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_values():
    #                        0 <- 1 (weight 2), 0 <- 2 (weight -1);  1 <- 2 (weight 3)
    graph = CSRGraph.from_csr(
        torch.tensor([0, 2, 3]), torch.tensor([1, 2, 2]), torch.tensor([2.0, -1.0, 3.0]), 3
    )
    x = torch.tensor([[9.0, 9.0], [1.0, 2.0], [4.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [1.0, -1.0]], requires_grad=True)
    bias = torch.tensor([0.0, 1.0], requires_grad=True)
    x_0 = torch.tensor([[2.0, 0.0], [0.0, 4.0]], requires_grad=True)
    # A x = [[-2, 4], [12, 0]]; S = half of that and half of x_0 = [[0, 2], [6, 2]];
    # W' = (I + W) / 2 = [[1, 0], [.5, 0]]; S W' + b = [[1, 1], [7, 1]].
    out, sums = conv(graph, x, weight, bias, x_0=x_0, alpha=0.5, beta=0.5, act="relu")
    assert out.tolist() == [[1.0, 1.0], [7.0, 1.0]]
    assert sums.tolist() == [8.0, 2.0]
    dout = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    grads = torch.autograd.grad((out, sums), (x, weight, bias, x_0), (dout, torch.ones(2)))
    # dz = [[2, 1], [1, 3]]; ds = dz W'^T = [[2, 1], [1, .5]]; dx = A^T ds / 2.
    assert grads[0].tolist() == [[0.0, 0.0], [2.0, 1.0], [0.5, 0.25]]
    assert grads[1].tolist() == [[3.0, 9.0], [3.0, 4.0]]  # S^T dz / 2
    assert grads[2].tolist() == [3.0, 4.0]
    assert grads[3].tolist() == [[1.0, 0.5], [0.5, 0.25]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", list(LAYERS))
@pytest.mark.parametrize("name", GRAPHS)
def test_matches_reference(name, case, dtype):
    weighted = dtype != torch.float16  # unweighted edges take another path
    graph = sample_graph(name, dtype if weighted else None)
    tensors, rest = leaves(graph, *LAYERS[case], dtype)
    exact_graph = graph.to(dtype=torch.float64) if weighted else graph
    exact = results(reference.conv, exact_graph, cast(tensors, torch.float64), rest)
    plain = results(reference.conv, graph, tensors, rest)
    if dtype in (torch.bfloat16, torch.float16):
        # The layer accumulates in float32; plain torch in 16 bits would excuse anything.
        plain = [
            t.to(dtype) for t in results(reference.conv, graph, cast(tensors, torch.float32), rest)
        ]
        plain[1] = plain[1].float()
    got = results(conv, graph, tensors, rest)
    for what, a, b, c in zip(labels(tensors), got, exact, plain, strict=True):
        assert_no_worse(a, b, c, what)
    for a, b in zip(results(conv, wide_indices(graph), tensors, rest), got, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", list(LAYERS))
def test_gradcheck(case):
    _, _, options = LAYERS[case]
    width, width_out = (4, 3) if LAYERS[case][0] != LAYERS[case][1] else (3, 3)
    graph = random_graph(6, 5, mean_degree=2, dtype=torch.float64)
    tensors, rest = leaves(graph, width, width_out, options)
    given = [t for t in tensors if t is not None]

    def layer(*args):
        filled = iter(args)
        x, weight, bias, x_0 = (None if t is None else next(filled) for t in tensors)
        return conv(graph, x, weight, bias, x_0=x_0, **rest)

    assert gradcheck(layer, given)
    assert gradgradcheck(layer, given)


@pytest.mark.parametrize("case", ["gcn-narrow", "gcn-wide", "gcnii", "no-transform"])
def test_frozen_arguments_and_single_outputs(case):
    graph = random_graph(30, dtype=torch.float64)
    tensors, rest = leaves(graph, *LAYERS[case])
    full = results(conv, graph, tensors, rest)[2:]
    present = [i for i, t in enumerate(tensors) if t is not None]
    for position, trained in enumerate(present):
        alone = [None if t is None else t.detach() for t in tensors]
        alone[trained] = alone[trained].requires_grad_()
        x, weight, bias, x_0 = alone
        out, sums = conv(graph, x, weight, bias, x_0=x_0, **rest)
        assert torch.equal(out, results(conv, graph, tensors, rest)[0])
        only = torch.autograd.grad(sums.sum(), alone[trained], retain_graph=True)[0]
        spread = torch.autograd.grad(out.sum(), alone[trained])[0]
        torch.testing.assert_close(only, spread)
        assert full[position].shape == spread.shape
    with torch.no_grad():
        assert torch.equal(conv(graph, x, weight, bias, x_0=x_0, **rest)[0], out)


def test_trained_edge_weights():
    graph = random_graph(12, dtype=torch.float64)
    tensors, rest = leaves(graph, *LAYERS["gcnii"])
    given = [t for t in tensors if t is not None]
    x, weight, _, x_0 = tensors
    gradients = []
    for layer in (conv, reference.conv):
        value = graph.value.clone().requires_grad_()
        out, sums = layer(graph.with_value(value), x, weight, x_0=x_0, **rest)
        gradients.append(torch.autograd.grad(out.square().sum() + sums.sum(), [value, *given]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", ["gcn-narrow", "gcn-wide", "gcnii"])
def test_runs_and_thread_counts_agree_to_the_bit(case):
    if backend_of("conv")[0] != "cpu":
        pytest.skip("torch's matrix products depend on the number of threads")
    graph = random_graph(5000, mean_degree=8, power_law=True, dtype=torch.float32)
    tensors, rest = leaves(graph, *LAYERS[case], torch.float32)
    runs = at_thread_counts(lambda: results(conv, graph, tensors, rest))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@pytest.mark.parametrize("case", ["gcn-narrow", "gcnii"])
def test_strides_do_not_matter(case):
    graph = random_graph(20, dtype=torch.float64)
    tensors, rest = leaves(graph, *LAYERS[case])
    expected = results(conv, graph, tensors, rest)
    strided = [
        None if t is None else t.detach().t().contiguous().t().requires_grad_() for t in tensors
    ]
    for a, b in zip(results(conv, graph, strided, rest), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    x, weight, bias, x_0 = tensors
    out, _ = conv(graph, x, weight, bias, x_0=x_0, **rest)
    ones = torch.ones((), dtype=torch.float64).expand(out.shape)
    dx = [torch.autograd.grad(out, x, d, retain_graph=True)[0] for d in (ones, ones.clone())]
    assert torch.equal(*dx)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_four_features_over_thousands_of_short_rows(dtype, weighted):
    graph = short_rows(dtype if weighted else None)
    tensors, rest = leaves(graph, *LAYERS["gcnii-narrow"], dtype)
    exact_graph = graph.to(dtype=torch.float64) if weighted else graph
    exact = results(reference.conv, exact_graph, cast(tensors, torch.float64), rest)
    plain = results(reference.conv, graph, tensors, rest)
    found = at_thread_counts(lambda: results(conv, graph, tensors, rest))
    for what, a, b, c in zip(labels(tensors), found[0], exact, plain, strict=True):
        assert_no_worse(a, b, c, what)
    if backend_of("conv")[0] == "cpu":  # plain torch adds as its threads come
        for other in (*found[1:], results(conv, wide_indices(graph), tensors, rest)):
            assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("width, width_out", [(33, 5), (4, 4)])
@pytest.mark.parametrize("order", ["aggregate_first", "transform_first"])
def test_nan_passes_relu_and_its_gradient(order, width, width_out):
    graph = random_graph(40, mean_degree=3, seed=1)
    x = torch.randn(40, width)
    node = int(graph.col[0])
    x[node, 2] = torch.nan
    readers = torch.zeros(40, dtype=torch.bool)
    readers[graph.row()[graph.col == node]] = True
    out, sums = conv(graph, x, torch.randn(width, width_out), act="relu", order=order)
    assert torch.equal(out.isnan().all(1), readers) and torch.equal(out.isnan().any(1), readers)
    assert sums.isnan().all()


def test_no_features_at_all():
    x = torch.ones(5, 0, requires_grad=True)
    out, sums = conv(random_graph(4, 5), x, None, act="relu")
    assert out.shape == (4, 0) and sums.shape == (0,)
    assert torch.autograd.grad((out.sum() + sums.sum()), x)[0].shape == (5, 0)


@pytest.mark.parametrize("width, weight", [(3, None), (3, torch.eye(3)), (4, torch.eye(4))])
def test_column_sums_are_added_in_float64(width, weight):
    n = 300_000
    graph = CSRGraph.from_csr(torch.arange(n + 1), torch.arange(n))
    order = None if weight is None else "aggregate_first"
    _, sums = conv(graph, torch.full((n, width), 1.1), weight, order=order)
    exact = torch.full((width,), n * float(torch.tensor(1.1)), dtype=torch.float64)
    torch.testing.assert_close(sums.double(), exact, rtol=1e-6, atol=0)


def op_arguments(case):
    graph = random_graph(7, 5, dtype=torch.float32)
    t, value = graph.t(), graph.value
    seed = torch.tensor(3)
    x, x_0, dout = torch.randn(5, 4), torch.randn(7, 4), torch.randn(7, 4)
    square, edges = torch.randn(4, 4), (t.rowptr, t.col, t.value)
    forward = {
        "gcnii": (square, None, x_0, 0.1, 0.3, True, True, True, 0.5, seed, 1, 0),
        "gcn": (square[:, :2], torch.randn(2), None, 0.0, 1.0, True, False, False, 0.0, None, 0, 0),
        "bare": (None, None, None, 0.0, 1.0, False, True, False, 0.0, None, 0, 0),
    }
    backward = {
        "gcnii": (dout, None, dout, x_0, square, 0.1, 0.3, 0.5, seed, 1, 0, True, True, True, True),
        "gcn": (dout[:, :2], torch.randn(2), None, x, square[:, :2], 0.0, 1.0, 0.0, None, 0, 0)
        + (False, True, True, False),
        "bare": (
            dout,
            None,
            None,
            None,
            None,
            0.0,
            1.0,
            0.0,
            None,
            0,
            0,
            False,
            True,
            False,
            False,
        ),
    }
    return (graph.rowptr, graph.col, value, x, *forward[case]), (*edges, *backward[case])


@pytest.mark.parametrize("case", ["gcnii", "gcn", "bare"])
def test_opcheck(case):
    forward, backward = op_arguments(case)
    torch.library.opcheck(torch.ops.abkd_fast.conv.default, forward)
    torch.library.opcheck(torch.ops.abkd_fast.conv_backward.default, backward)


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("case", ["gcn-narrow", "gcnii", "no-transform"])
def test_compiles_without_graph_breaks(case):
    torch._dynamo.reset()
    graph = random_graph(12, dtype=torch.float32)
    graph.t()
    tensors, rest = leaves(graph, *LAYERS[case], torch.float32)
    rest["seed"] = torch.tensor(77)

    def layer(x, weight, bias, x_0):
        out, sums = conv(graph, x.sin(), weight, bias, x_0=x_0, **rest)
        return out.sin().sum() + sums.square().sum()

    given = [t for t in tensors if t is not None]
    values = [torch.compile(layer, fullgraph=True, backend="aot_eager")(*tensors), layer(*tensors)]
    torch.testing.assert_close(values[0], values[1])
    gradients = [torch.autograd.grad(value, given) for value in values]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


SQUARE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(4, 2), SQUARE), {}, r"x must be \[num_src=5, F\], got \[4, 2\]"),
        ((torch.ones(5, 3), SQUARE), {}, r"weight must be \[in=3, out >= 1\], got \[2, 2\]"),
        ((torch.ones(5, 2), torch.ones(2, 0)), {}, r"out >= 1\], got \[2, 0\]"),
        ((torch.ones(5, 2), SQUARE.double()), {}, "weight must be float32, got float64"),
        ((torch.ones(5, 2), SQUARE, torch.ones(3)), {}, r"bias must be \[2\], got \[3\]"),
        ((torch.ones(5, 2), SQUARE), {"x_0": torch.ones(5, 2)}, r"x_0 must be \[4, 2\], got \[5"),
        ((torch.ones(5, 2), SQUARE), {"alpha": 0.1}, "x_0 must be given where alpha is not 0"),
        ((torch.ones(5, 2), torch.ones(2, 3)), {"beta": 0.5}, "weight must be square where beta"),
        ((torch.ones(5, 2), None), {"beta": 0.5}, "weight must be square where beta"),
        ((torch.ones(5, 2), None), {"x_0": torch.ones(4, 2)}, "weight must be given where x_0 is"),
        ((torch.ones(5, 2), SQUARE), {"act": "gelu"}, "act must be one of none, relu, got 'gelu'"),
        ((torch.ones(5, 2), SQUARE), {"order": "both"}, "order must be one of aggregate_first"),
        (
            (torch.ones(5, 2), SQUARE),
            {"x_0": torch.ones(4, 2), "order": "transform_first"},
            "order must be aggregate_first with x_0",
        ),
        ((torch.ones(5, 2), SQUARE), {"p": 0.5}, "seed must be given where p > 0"),
        ((torch.ones(5, 2), SQUARE), {"p": 1.0, "seed": 1}, r"p must be in \[0, 1\), got 1.0"),
    ],
)
def test_rejects(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        conv(random_graph(4, 5), *arguments, **options)
