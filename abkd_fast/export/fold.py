"""What a traced program would compute of its weights at every call, computed once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from abkd_fast._fold import add_constant, fold_constants

_TRANSPOSED = torch.ops.abkd_fast.transposed.default
_NARROW = ("packed_", "scale_")  # of abkd_fast.export.weights.pack


def fold(
    program: ExportedProgram, arguments: tuple[Tensor, ...], shapes: tuple[Any, ...]
) -> ExportedProgram:
    """``program`` with values in place of what depends on weights alone.

    Narrow weights stay narrow: they are stored transposed where a layer reads them so.

    Args:
        program: of :class:`abkd_fast.export.program.Program`.
        arguments: what it was traced with.
        shapes: the open sizes of each of them.
    """
    line = program.module(check_guards=False)
    assert isinstance(line, fx.GraphModule)
    known = {
        node: operator.attrgetter(str(node.target))(line)
        for node in line.graph.nodes
        if node.op == "get_attr"
    }
    for node in list(line.graph.nodes):
        if node.target is _TRANSPOSED:
            _turn(line, node, known)
    wide = {n: value for n, value in known.items() if not str(n.target).startswith(_NARROW)}
    fold_constants(line, wide)
    return torch.export.export(fx.GraphModule(line, line.graph), arguments, dynamic_shapes=shapes)


def _turn(line: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> None:
    """Store q^T and s^T where ``node`` is (q s)^T of narrow weights and scales."""
    product = node.all_input_nodes[0]
    if product.target is not torch.ops.aten.mul.Tensor or len(product.users) > 1:
        return
    wide, scale = product.all_input_nodes
    narrow = wide.all_input_nodes[0] if wide.target is torch.ops.aten.to.dtype else wide
    names = [str(part.target) for part in (narrow, scale)]
    if not all(map(str.startswith, names, _NARROW)) or len(wide.users) > 1:
        return
    for user in list(narrow.users):
        if user is not wide:
            if user.target is not torch.ops.aten._assert_tensor_metadata.default:
                return
            line.graph.erase_node(user)
    for part, reader in ((narrow, wide), (scale, product)):
        turned = known[part].t() if known[part].dim() == 2 else known[part]
        reader.replace_input_with(part, add_constant(line, reader, turned.contiguous(), part.name))
    node.replace_all_uses_with(product)
    line.graph.erase_node(node)
