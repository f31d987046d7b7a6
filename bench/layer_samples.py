"""Arguments for the Triton kernels of attention and relational layers; see kernel_samples.py."""

from collections.abc import Iterator
from typing import Any

import torch
from kernel_shapes import (
    EDGES,
    HOST_SEED,
    NODES,
    Sample,
    features,
    graph,
    layers,
    matrix,
    vector,
)
from torch import Tensor

HEADS = (1, 3)


def heads() -> Iterator[tuple[str, Tensor, Tensor, tuple[Any, ...]]]:
    """(name, x [N, H, C], vector [H, C], slope and dropout)"""
    for name, x, _ in features():
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        for count in HEADS:
            rows = torch.empty(NODES, count, x.size(1), dtype=x.dtype, device="meta")
            dropout = (0.5, HOST_SEED, 1, 2) if count == 3 else (0.0, None, 0, 0)
            att = matrix(count, x.size(1), exact)
            yield f"{count} heads, {name}", rows, att, (0.2, *dropout)


def transposed() -> tuple[Tensor, Tensor, Tensor]:
    return *graph(), vector(EDGES, torch.int64)


def node_numbers(att: Tensor, *sizes: int) -> Tensor:
    return torch.empty(NODES, *sizes, att.size(0), dtype=att.dtype, device="meta")


def _edge_attention() -> Iterator[Sample]:
    for name, x, att, rest in heads():
        score = matrix(EDGES, att.size(0), att.dtype) if att.size(0) == 3 else None
        yield name, (*graph(), x, None, att, att, score, *rest)


def _edge_attention_backward() -> Iterator[Sample]:
    for name, x, att, rest in heads():
        edges = att.size(0) == 3
        score = matrix(EDGES, att.size(0), att.dtype) if edges else None
        given = (x, x, None, att, att, score, node_numbers(att, 2), *[node_numbers(att)] * 2)
        yield name, (*graph(), *transposed(), *given, *rest, edges)


def _edge_attention_v2() -> Iterator[Sample]:
    for name, x, att, rest in heads():
        yield name, (*graph(), x, x, att, *rest)


def _edge_attention_v2_backward() -> Iterator[Sample]:
    for name, x, att, rest in heads():
        given = (x, x, x, att, node_numbers(att, 2))
        yield name, (*graph(), *transposed(), *given, *rest)


def relations(width: int, dtype: torch.dtype) -> tuple[list[Tensor], list[int], Tensor]:
    """(stack of two relations, where their pairs begin, x)"""
    index = vector(EDGES, torch.int32)
    stack = [vector(NODES + 1, torch.int32), vector(NODES, torch.int32), index, index]
    return stack, [0, NODES // 2, NODES], matrix(NODES, width, dtype)


def _relational() -> Iterator[Sample]:
    for name, dtype, width, width_out in layers():
        stack, pairs, x = relations(width, dtype)
        weight = torch.empty(2, width, width_out, dtype=dtype, device="meta")
        root, bias = weight[:1], matrix(1, width_out, dtype)
        given = ([0, 0, NODES], x, None, weight, root, bias, True, True, [0, 1])
        yield f"both orders, {name}", (stack, stack, pairs, pairs, *given)


def _relational_backward() -> Iterator[Sample]:
    for name, dtype, width, width_out in layers():
        stack, pairs, x = relations(width, dtype)
        weight = torch.empty(2, width, width_out, dtype=dtype, device="meta")
        out, value = matrix(NODES, width_out, dtype), vector(EDGES, dtype)
        given = ([0, 0, NODES], out, out, x, None, weight, weight[:1], True, [0, 1])
        edges = (stack, stack, value, pairs, pairs)
        yield f"both orders, {name}", (*edges, *given, True, False, True, True, True)
        yield f"frozen weight, {name}", (*edges, *given, True, False, False, False, False)


def _pair_infonce() -> Iterator[Sample]:
    for dtype in (torch.float32, torch.float64):
        for width in (3, 64, 100, 256):
            student, teacher = (
                torch.empty(layers, 4096, width, dtype=dtype, device="meta") for layers in (2, 3)
            )
            given = (student, teacher, matrix(3, 2, dtype), 0.075)
            yield f"{str(dtype)[6:]}, {width} wide", (*given, True, True)


LAYER_SAMPLES = {
    "edge_attention": _edge_attention,
    "edge_attention_backward": _edge_attention_backward,
    "edge_attention_v2": _edge_attention_v2,
    "edge_attention_v2_backward": _edge_attention_v2_backward,
    "relational": _relational,
    "relational_backward": _relational_backward,
    "pair_infonce": _pair_infonce,
}
