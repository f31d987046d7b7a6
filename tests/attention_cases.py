"""Cases of edge attention for its tests: GAT's with every choice of arguments, and GATv2's."""

import torch

from abkd_fast import ops, reference
from abkd_fast.testing import assert_no_worse, sample_graph, wide_indices

# operator, arguments beside x and the vector(s)
CASES = {
    "gat": ("edge_attention", ("x", "att_src", "att_dst")),
    "gat-source-only": ("edge_attention", ("x", "att_src")),
    "gat-bipartite": ("edge_attention", ("x", "att_src", "att_dst", "x_dst")),
    "gat-edges": ("edge_attention", ("x", "att_src", "att_dst", "x_dst", "score_edge")),
    "gatv2": ("edge_attention_v2", ("x", "x_dst", "att")),
}
# heads x width: vectors that overlap, several heads in a tile, several tiles in a head
SHAPES = [(1, 1), (8, 8), (3, 40), (2, 5), (5, 33), (4, 3), (1, 300), (17, 2)]


DROPPED = {"p": 0.4, "seed": 77, "layer": 2, "step": 1}


def fits(case, graph):
    """Whether a case takes rectangular graphs, or the graph is square."""
    return case != "gat" or graph.num_src == graph.num_dst


def leaves(case, graph, heads, width, dtype=torch.float64, seed=0):
    """{name: leaf} for the case's arguments."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (graph.num_src, heads, width),
        "x_dst": (graph.num_dst, heads, width),
        "score_edge": (graph.num_edges, heads),
    }
    found = {}
    for name in CASES[case][1]:
        shape = shapes.get(name, (heads, width))
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = values / width**0.5 if name.startswith("att") else values
        found[name] = values.to(dtype).requires_grad_()
    return found


def attend(case, graph, tensors, reference_op=False, **options):
    """The case's op, or its reference, on ``tensors``."""
    op = getattr(reference if reference_op else ops, CASES[case][0])
    return op(graph, **tensors, **options)


def results(case, graph, tensors, reference_op=False, **options):
    """[out, gradient, ...] in the order of the case's arguments."""
    out = attend(case, graph, tensors, reference_op, **options)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, list(tensors.values()), dout)]


def cast(tensors, dtype):
    return {name: t.detach().to(dtype).requires_grad_() for name, t in tensors.items()}


def assert_matches_reference(name, case, options):
    """Values and gradients in float64, for all SHAPES; the same bits with int64 indices."""
    graph = sample_graph(name)
    for heads, width in SHAPES:
        tensors = leaves(case, graph, heads, width)
        got = results(case, graph, tensors, **options)
        for a, b in zip(got, results(case, graph, tensors, True, **options), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    for a, b in zip(results(case, wide_indices(graph), tensors, **options), got, strict=True):
        assert torch.equal(a, b)


def assert_as_exact_as_plain_torch(name, case, dtype):
    """Values and gradients in a dtype narrower than float64."""
    graph = sample_graph(name)
    tensors = leaves(case, graph, 3, 20, dtype)
    exact = results(case, graph, cast(tensors, torch.float64), True, **DROPPED)
    # Plain torch in 16 bits would excuse anything.
    plain = results(case, graph, cast(tensors, torch.float32), True, **DROPPED)
    got = results(case, graph, tensors, **DROPPED)
    for what, a, b, c in zip(["out", *tensors], got, exact, plain, strict=True):
        assert_no_worse(a, b, c.to(dtype), what)
