"""A model as one straight line of op calls, each on the rows that later layers still read."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from abkd_fast._fold import fold_constants

Flat = Callable[..., Tensor]
_SAME_ROWS = ("linear", "mm", "addmm", "relu", "relu_", "native_batch_norm", "elu", "getitem")


class NotTrimmable(Exception):
    """The line holds an op of which it is not known which rows it needs."""


def flatten(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    """The op calls that ``function`` makes on these tensors, without what is around them.

    Modules, checks, autograd and hooks fall away, and what depends on weights alone is computed
    once: later changes of the weights are not seen. Python branches are taken as they were for
    these inputs, and sizes that Python saw are constants; the caller must compare results on
    inputs of other sizes.

    Args:
        function: takes tensors, returns one.
        inputs: examples.
    """
    with torch.no_grad():
        line = make_fx(function)(*inputs)
        _drop_views(line.graph)
        _return_products(line.graph)
        line.graph.eliminate_dead_code()
        weights = [node for node in line.graph.nodes if node.op == "get_attr"]
        fold_constants(line, {node: getattr(line, str(node.target)) for node in weights})
    line.recompile()
    return line


def _drop_views(graph: fx.Graph) -> None:
    """Views of the same shape: they would hold the example's size, and nothing is in place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in (
            torch.ops.aten.view.default,
            torch.ops.aten.detach.default,
            torch.ops.aten.alias.default,
        ):
            source = node.args[0]
            if source.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _return_products(graph: fx.Graph) -> None:
    """Ops that write into new memory, which would have the example's size, return it instead."""
    for node in list(graph.nodes):
        out = node.kwargs.get("out")
        if isinstance(out, fx.Node) and out.target is torch.ops.abkd_fast.empty_output.default:
            for user in [user for user in out.users if user is not node]:
                user.replace_input_with(out, node)
            node.target = node.target.overloadpacket.default
            node.kwargs = {name: given for name, given in node.kwargs.items() if name != "out"}
            graph.erase_node(out)


def trim(line: fx.GraphModule, rowptr: str, features: tuple[str, ...], hops: int) -> None:
    """Let every layer compute the rows that later ones read, and no others; in place.

    Nodes must be numbered by hop: of n_0 <= ... <= n_hops nodes the first n_j are within j hops of
    the wanted ones. The line then takes, in place of ``rowptr``, the pointers of the first n_0,
    ..., n_{hops-1} rows, and after all other arguments n_0 to n_hops.

    Args:
        line: of :func:`flatten`.
        rowptr: the argument that holds the graph's row pointers.
        features: the arguments that hold rows of all n_hops nodes.
        hops: number of layers that read the graph.

    Raises:
        NotTrimmable: an op is not known, or layers are not one behind the other.
    """
    holders = {node.target: node for node in line.graph.nodes if node.op == "placeholder"}
    last = list(holders.values())[-1]
    pointer = holders[rowptr]
    with line.graph.inserting_after(pointer):
        pointers = [line.graph.placeholder(f"{rowptr}_{j}") for j in reversed(range(hops))][::-1]
    with line.graph.inserting_after(last if last is not pointer else pointers[-1]):
        counts = [line.graph.placeholder(f"n_{j}") for j in reversed(range(hops + 1))][::-1]
    levels = {holders[name]: hops for name in features}
    for node in list(line.graph.nodes):
        if node.op == "call_function":
            levels |= _level(line.graph, node, levels, pointer, pointers, counts)
        elif node.op == "output" and levels.get(node.all_input_nodes[0], 0) != 0:
            raise NotTrimmable(f"{levels[node.all_input_nodes[0]]} hops are left at the end")
    if pointer.users:
        raise NotTrimmable(f"{next(iter(pointer.users))} reads the graph")
    line.graph.erase_node(pointer)
    line.recompile()


def _level(
    graph: fx.Graph,
    node: fx.Node,
    levels: dict[fx.Node, int],
    pointer: fx.Node,
    pointers: list[fx.Node],
    counts: list[fx.Node],
) -> dict[fx.Node, int]:
    """How many hops of rows the result holds, after ``node`` has been given no more."""
    held = [source for source in node.all_input_nodes if source in levels]
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    if node.args[0] is pointer and name == "conv":
        x, x_0 = node.args[3], node.args[6]
        assert isinstance(x, fx.Node)
        level = levels[x] - 1
        if level < 0:
            raise NotTrimmable("more layers read the graph than hops were asked for")
        node.update_arg(0, pointers[level])
        if isinstance(x_0, fx.Node):
            node.update_arg(6, _first(graph, node, x_0, levels, level, counts))
        return {node: level}
    if pointer in node.all_input_nodes:
        raise NotTrimmable(f"{name} reads the graph")
    if not held:
        return {}
    if name == "conv" or name in _SAME_ROWS or node.target is operator.getitem:
        return {node: levels[held[0]]}
    if name == "add" and len(held) == 2:
        level = min(levels[source] for source in held)
        for position, source in enumerate(node.all_input_nodes):
            node.update_arg(position, _first(graph, node, source, levels, level, counts))
        return {node: level}
    raise NotTrimmable(f"{name} is not known")


def _first(
    graph: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    levels: dict[fx.Node, int],
    level: int,
    counts: list[fx.Node],
) -> fx.Node:
    """The rows of ``source`` within ``level`` hops."""
    if levels[source] == level:
        return source
    with graph.inserting_before(node):
        return graph.call_function(torch.narrow, (source, 0, 0, counts[level]))
