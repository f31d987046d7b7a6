import pytest
import torch
from relational_cases import CASES, leaves, relational_graph, results

from abkd_fast import RelationalGraph, reference
from abkd_fast._backend import backend_of
from abkd_fast.ops import relational
from abkd_fast.testing import assert_no_worse

ORDERS = ("aggregate_first", "transform_first", None)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        if b is None or b.numel() == 0:
            assert a is None or a.numel() == 0 or not bool(a.any())
        else:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("aggr", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_every_gradient(case, aggr, order):
    graph = relational_graph(case)
    given, options = leaves(graph, 6, 4, by_type=case == "types")
    rest = {"aggr": aggr, "act": "relu"}
    expected = results(reference.relational, graph, given, options, **rest)
    assert_same(results(relational, graph, given, options, order=order, **rest), expected)


@pytest.mark.parametrize("form", ["bases", "blocks"])
@pytest.mark.parametrize("case", ["types", "bipartite"])
def test_decompositions(case, form):
    graph = relational_graph(case)
    given, options = leaves(graph, 6, 4, form=form)
    expected = results(reference.relational, graph, given, options)
    assert_same(results(relational, graph, given, options), expected)


@pytest.mark.parametrize("form", ["full", "bases"])
@pytest.mark.parametrize("aggr", ["mean", "sum"])
@pytest.mark.parametrize("case", ["types", "parallel", "hub", "no-edges"])
def test_nodes_without_features(case, aggr, form):
    graph = relational_graph(case)
    (_, *given), options = leaves(graph, graph.num_src, 3, form=form)

    def layer(function):
        def call(graph, weight, root, bias, **rest):
            return function(graph, None, weight, root, bias, aggr=aggr, act="relu", **rest)

        return results(call, graph, given, options)

    assert_same(layer(relational), layer(reference.relational))


@pytest.mark.parametrize("order", ORDERS)
def test_targets_only_are_the_first_rows(order):
    graph = relational_graph("types")
    given, options = leaves(graph, 6, 4, by_type=True)

    def first(*arguments, **rest):
        return reference.relational(*arguments, **rest)[: graph.num_nodes["paper"]]

    expected = results(first, graph, given, options)
    assert_same(
        results(relational, graph, given, options, targets_only=True, order=order), expected
    )


@pytest.mark.parametrize("left_out", [2, 3])
def test_targets_only_without_root_or_bias(left_out):
    graph = relational_graph("types")
    given, options = leaves(graph, 3, 2, by_type=True)
    given[left_out] = None

    def first(*arguments, **rest):
        return reference.relational(*arguments, **rest)[: graph.num_nodes["paper"]]

    expected = results(first, graph, given, options)
    assert_same(results(relational, graph, given, options, targets_only=True), expected)


@pytest.mark.parametrize("left_out", ["root", "bias", "both"])
def test_without_root_or_bias(left_out):
    graph = relational_graph("one-type")
    (x, weight, root, bias), options = leaves(graph, 5, 3)
    root = None if left_out in ("root", "both") else root
    bias = None if left_out in ("bias", "both") else bias
    given = (x, weight, root, bias)
    assert_same(
        results(relational, graph, given, options),
        results(reference.relational, graph, given, options),
    )


@pytest.mark.parametrize("wanted", range(4))
def test_gradients_one_at_a_time(wanted):
    graph = relational_graph("types")
    given, options = leaves(graph, 6, 4, by_type=True)
    expected = results(reference.relational, graph, given, options)[1 + wanted]
    given = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(given)]
    for order in ORDERS:
        out = relational(graph, *given, order=order)
        slope = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
        (found,) = torch.autograd.grad(out, given[wanted], slope)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", ["aggregate_first", "transform_first"])
@pytest.mark.parametrize("widths", [(1, 1), (16, 4), (33, 70), (130, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_as_exact_as_torch(dtype, widths, order):
    graph = relational_graph("one-type")
    given, options = leaves(graph, *widths, dtype)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = results(reference.relational, graph, exact, options)
    plain = results(reference.relational, graph, given, options)
    found = results(relational, graph, given, options, order=order)
    names = ("out", "dx", "dweight", "droot", "dbias")
    for name, a, b, c in zip(names, found, expected, plain, strict=True):
        assert_no_worse(a, b, c, name)


@pytest.mark.parametrize("order", ["aggregate_first", "transform_first"])
def test_runs_and_thread_counts_agree_to_the_bit(order):
    if backend_of("relational")[0] != "cpu":
        pytest.skip("torch's matrix products depend on the number of threads")
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(4000, (2, 60_000), generator=generator)
    kinds = torch.randint(3, (60_000,), generator=generator)
    graph = RelationalGraph.from_edge_type(index, kinds, 4000, 3)
    given, options = leaves(graph, 24, 40, torch.float32, form="bases")
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            runs.append(results(relational, graph, given, options, order=order, act="relu"))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


def test_strides_do_not_matter():
    graph = relational_graph("types")
    given, options = leaves(graph, 6, 4, by_type=True)
    expected = results(relational, graph, given, options)
    strided = [
        t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in given
    ]
    for a, b in zip(results(relational, graph, strided, options), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    x = given[0]
    out = relational(graph, *given)
    ones = torch.ones((), dtype=torch.float64).expand(out.shape)
    dx = [torch.autograd.grad(out, x, d, retain_graph=True)[0] for d in (ones, ones.clone())]
    assert torch.equal(*dx)


@pytest.mark.parametrize("order", ["aggregate_first", "transform_first"])
def test_nan_passes_relu_and_its_gradient(order):
    graph = relational_graph("one-type")
    given, options = leaves(graph, 6, 4)
    x = given[0].detach()
    node = int(graph.stack.col[0])
    x[node] = torch.nan
    index, _ = graph.homogeneous()
    readers = torch.zeros(50, dtype=torch.bool)
    readers[index[1][index[0] == node]] = True
    readers[node] = True
    out = relational(graph, x.requires_grad_(), *given[1:], act="relu", order=order)
    assert torch.equal(out.isnan().any(1), readers)
    assert torch.autograd.grad(out.sum(), given[1])[0].isnan().any()


def test_a_relation_without_edges_changes_nothing():
    graph = relational_graph("one-type")
    index, kinds = graph.homogeneous()
    wide = RelationalGraph.from_edge_type(index, 5 * kinds, 50, 40)
    (x, weight, root, bias), _ = leaves(graph, 6, 4)
    spread = torch.randn(40, 6, 4, dtype=torch.float64)
    spread[::5][:7] = weight.detach()
    out = relational(wide, x, spread, root, bias)
    assert torch.equal(out, relational(graph, x, weight, root, bias))
    assert wide.stack.row.numel() == graph.stack.row.numel()


def op_arguments(x_root):
    graph = relational_graph("bipartite" if x_root else "types")
    given, options = leaves(graph, 6, 4, torch.float32, by_type=True)
    x, weight, root, bias = (t.detach() for t in given)
    own = options["x_root"].detach() if x_root else None
    stacks = ([*graph.stack.tensors()], [*graph.stack_t.tensors()])
    pairs = ([*graph.stack.pairs], [*graph.stack_t.pairs])
    roots = [0, 0, 6] if x_root else [0, 0, 13, 1, 13, 9, 2, 22, 4, 3, 26, 0]
    orders = [r % 2 for r in range(graph.num_relations)]
    forward = (*stacks, *pairs, roots, x, own, weight, root, bias, True, True, orders)
    out = torch.randn(graph.num_dst, 4)
    value = graph.mean_weights(torch.float32)
    backward = (*stacks, value, *pairs, roots, out, out.relu(), x, own, weight, root, True, orders)
    return forward, (*backward, True, x_root, True, True, not x_root)


@pytest.mark.parametrize("x_root", [False, True])
def test_opcheck(x_root):
    forward, backward = op_arguments(x_root)
    torch.library.opcheck(torch.ops.abkd_fast.relational.default, forward)
    torch.library.opcheck(torch.ops.abkd_fast.relational_backward.default, backward)


# torch.compile itself instantiates the Function class.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("form", ["full", "bases"])
def test_compiles_without_graph_breaks(form):
    torch._dynamo.reset()
    graph = relational_graph("types")
    given, options = leaves(graph, 6, 4, torch.float32, form=form, by_type=True)
    relational(graph, *given, **options)  # the graph keeps its weights of the mean

    def layer(*tensors):
        return relational(graph, tensors[0].sin(), *tensors[1:], act="relu", **options).sin().sum()

    values = [torch.compile(layer, fullgraph=True, backend="aot_eager")(*given), layer(*given)]
    torch.testing.assert_close(*values)
    for a, b in zip(*[torch.autograd.grad(value, given) for value in values], strict=True):
        torch.testing.assert_close(a, b)


X, W = torch.ones(5, 2), torch.ones(6, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(4, 2), W), {}, r"x must be \[num_src=5, in=2\], got \[4, 2\]"),
        ((X, torch.ones(5, 2, 3)), {}, r"weight must be \[R=6, in, out\]"),
        ((X, W.double()), {}, "x must be float64, got float32"),
        ((X, W, torch.ones(3, 3)), {}, r"root must be \[2, 3\] or \[1, 2, 3\], got \[3, 3\]"),
        ((X, W, None, torch.ones(2)), {}, r"bias must be \[3\] or \[1, 3\], got \[2\]"),
        ((X, W), {"comp": torch.ones(6, 2)}, r"comp must be \[R, B\] = \[6, 6\], got \[6, 2\]"),
        ((X, W), {"aggr": "max"}, "aggr must be one of mean, sum, got 'max'"),
        ((X, W), {"act": "gelu"}, "act must be one of none, relu"),
        ((X, W), {"order": "both"}, "order must be one of aggregate_first"),
        ((None, W), {}, "weight must have in = num_src = 5 rows"),
        ((None, torch.ones(6, 1, 5, 3)), {}, "weight must not be in blocks where x is None"),
        ((X, W, torch.ones(4, 3)), {"x_root": torch.ones(4, 4)}, r"x_root must be \[N=5, in_root"),
    ],
)
def test_rejects(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        relational(relational_graph("parallel"), *arguments, **options)


def test_rejects_another_graph():
    with pytest.raises(ValueError, match="graph must be a RelationalGraph, got int"):
        relational(3, X, W)
