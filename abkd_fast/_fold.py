"""What a traced line would compute of its constants at every call, computed once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx


def fold_constants(line: fx.GraphModule, known: dict[fx.Node, Any]) -> None:
    """Replace calls that read ``known`` values alone by their results."""
    for node in list(line.graph.nodes):
        sources = node.all_input_nodes
        if node.op != "call_function" or not sources or not all(map(known.__contains__, sources)):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        value = node.target(*args, **kwargs)
        if isinstance(value, Tensor):
            constant = add_constant(line, node, value, node.name)
            node.replace_all_uses_with(constant)
            known[constant] = value
        if not node.users:
            line.graph.erase_node(node)
    line.graph.eliminate_dead_code()


def add_constant(line: fx.GraphModule, before: fx.Node, value: Tensor, name: str) -> fx.Node:
    """A node that reads ``value``, kept with the line as ``name``_once."""
    line.register_buffer(f"{name}_once", value)
    with line.graph.inserting_before(before):
        return line.graph.get_attr(f"{name}_once")
