"""Relational graphs that break kernels, and one call's results with every gradient."""

import torch

from abkd_fast import RelationalGraph

CASES = ("types", "hub", "parallel", "bipartite", "no-edges", "no-relations", "one-type")


def relational_graph(name, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def edges(count, sources, targets):
        ends = [torch.randint(n, (count,), generator=generator) for n in (sources, targets)]
        return torch.stack(ends)

    if name == "types":
        sizes = {"paper": 13, "author": 9, "field": 4, "empty": 0}
        graph = RelationalGraph.from_relations(
            sizes,
            {
                ("author", "writes", "paper"): edges(30, 9, 13),
                ("paper", "cites", "paper"): edges(25, 13, 13),
                ("paper", "is-in", "field"): edges(20, 13, 4),
                ("field", "nothing", "author"): edges(0, 4, 9),
            },
        )
        return graph.with_reverse()
    if name == "hub":
        index = edges(3000, 40, 40)
        index[1, :2600] = 3
        return RelationalGraph.from_edge_type(index, torch.arange(3000) % 3, 40, 3)
    if name == "parallel":
        index = edges(40, 5, 5)
        return RelationalGraph.from_edge_type(index, edges(40, 4, 4)[0], 5, 6)
    if name == "bipartite":
        return RelationalGraph.from_edge_type(edges(60, 17, 6), edges(60, 3, 3)[0], (17, 6), 3)
    if name == "no-edges":
        return RelationalGraph.from_edge_type(edges(0, 1, 1), torch.zeros(0).long(), 6, 2)
    if name == "no-relations":
        return RelationalGraph.from_relations({"node": 4}, {})
    return RelationalGraph.from_edge_type(edges(500, 50, 50), edges(500, 7, 7)[0], 50, 7)


def leaves(graph, width, width_out, dtype=torch.float64, form="full", by_type=False, seed=0):
    """(x, weight, root, bias), options with comp or x_root; all of them require grad."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    relations, options = graph.num_relations, {}
    weight = (relations, width, width_out)
    if form == "bases":
        weight = (2, width, width_out)
        options["comp"] = draw(relations, 2)
    elif form == "blocks":
        weight = (relations, 2, width // 2, width_out // 2)
    kinds = (len(graph.num_nodes),) if by_type else ()
    width_root = width
    if graph.num_src != graph.num_dst:
        width_root = width + 1
        options["x_root"] = draw(graph.num_dst, width_root)
    given = [draw(graph.num_src, width), draw(*weight)]
    given += [draw(*kinds, width_root, width_out), draw(*kinds, width_out)]
    return given, options


def results(function, graph, given, options, **rest):
    """out and the gradient of a curved function of it with respect to every leaf."""
    out = function(graph, *given, **options, **rest)
    wanted = [t for t in (*given, *options.values()) if t is not None]
    slope = torch.arange(out.numel(), dtype=out.dtype, device=out.device).view_as(out).cos()
    return [out.detach(), *torch.autograd.grad(out, wanted, slope, allow_unused=True)]
