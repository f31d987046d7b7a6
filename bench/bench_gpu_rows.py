"""Ops on rows, without a graph: dropout, linear, kl_div, teacher_moments against torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import costs
import torch
import torch.nn.functional as F
from errors import relative
from gpu_compare import Case, Found, Maker, Row, compiled, gradient, measure, ours
from gpu_graphs import SIZES
from torch import Tensor

from abkd_fast.ops import dropout, kl_div, linear, teacher_moments

CLASSES = {"pubmed": 3, "ogbn-arxiv": 40, "tiny": 5}
WIDTHS = (4, 64, 256)
P, TEMPERATURE = 0.5, 2.0
Side = Callable[[Tensor], Tensor]


def dropout_case(nodes: int, width: int, dtype: torch.dtype, device: str) -> Case:
    """Forward and backward. Masks differ: kept elements, their share and the gradient agree."""
    x = torch.randn(nodes, width, device=device).to(dtype)
    dout = torch.ones_like(x)
    seed = torch.tensor(7)

    def right(found: Found, _: Found = ()) -> float:
        out, dx = found
        kept = dx != 0
        share = abs(float(kept.double().mean()) - (1 - P))
        if share > 6 * (P * (1 - P) / x.numel()) ** 0.5:
            return share
        return relative(found, [torch.where(kept, t.double() / (1 - P), 0) for t in (x, dout)])

    def step(side: Side) -> Maker:
        return lambda: gradient(side, x, dout)

    sides = ours(device, step(lambda x: dropout(x, P, seed)))
    sides["torch"] = step(lambda x: F.dropout(x, P))
    sides["torch.compile"] = step(compiled(lambda x: F.dropout(x, P), device))
    cost = costs.dropout(x.numel(), x.element_size(), backward=True)
    label = f"N={nodes}, F={width}, forward+backward"
    return Case("dropout", label, dtype, cost, sides, right, right)


def linear_case(nodes: int, width: int, classes: int, device: str) -> Case:
    """X W^T + b, forward and all three gradients; torch's is cuBLAS."""
    x, dout = (torch.randn(nodes, w, device=device) for w in (width, classes))
    weight, bias = (torch.randn(shape, device=device) / width**0.5
                    for shape in ((classes, width), (classes,)))  # fmt: skip

    def step(function: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Maker:
        def maker() -> Callable[[], Found]:
            leaves = [t.to(dtype).detach().requires_grad_() for t in (x, weight, bias)]

            def run() -> list[Tensor]:
                out = function(*leaves)
                return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))]

            return run

        return maker

    expected = step(F.linear, torch.float64)()()
    sides = ours(device, step(linear))
    sides["F.linear"] = step(F.linear)
    sides["torch.compile"] = step(compiled(F.linear, device))
    label = f"N={nodes}, {width} -> {classes}, forward+backward"
    cost = costs.linear(nodes, width, classes)
    return Case("linear", label, torch.float32, cost, sides, lambda f: relative(f, expected))


def kl_div_case(nodes: int, classes: int, labels: bool, device: str) -> Case:
    """Mean divergence from labels (temperature 1) or a teacher's scores, and its gradient."""
    x = torch.randn(nodes, classes, device=device)
    target = torch.randn(nodes, classes, device=device).log_softmax(1)
    known = target.argmax(1)
    tau = 1.0 if labels else TEMPERATURE

    def plain(x: Tensor) -> Tensor:
        if labels:
            return F.cross_entropy(x, known)
        scores = (x / tau).log_softmax(1)
        return F.kl_div(scores, target.to(x.dtype), reduction="batchmean", log_target=True)

    def step(side: Side, dtype: torch.dtype = torch.float32) -> Maker:
        one = torch.ones((), dtype=dtype, device=device)
        return lambda: gradient(side, x.to(dtype), one)

    expected = step(plain, torch.float64)()()
    sides = ours(device, step(lambda x: kl_div(x, known if labels else target, None, tau)[0]))
    sides["torch"] = step(plain)
    sides["torch.compile"] = step(compiled(plain, device))
    kind = "labels" if labels else "teacher's scores"
    label = f"N={nodes}, C={classes}, {kind}, forward+backward"
    cost = costs.kl_div(nodes, classes, labels=labels)
    return Case("kl_div", label, torch.float32, cost, sides, lambda f: relative(f, expected))


def moments_case(nodes: int, layers: int, width: int, device: str) -> Case:
    """Means and second moments of a teacher, in float64; computed once a teacher."""
    teacher = torch.randn(nodes, layers * width, device=device).relu_()

    def plain() -> list[Tensor]:
        parts = [part.double() for part in teacher.split(width, 1)]
        return [torch.cat([p.mean(0) for p in parts]), *(p.t() @ p / nodes for p in parts)]

    def step() -> list[Tensor]:
        moments = teacher_moments(teacher, [width] * layers)
        return [moments.mean, *moments.second]

    expected = plain()
    sides = ours(device, lambda: step)
    sides["torch"] = lambda: plain
    cost = costs.teacher_moments(nodes, [width] * layers)
    label = f"N={nodes}, {layers}x{width}"
    return Case("teacher_moments", label, torch.float32, cost, sides,
                lambda f: relative(f, expected))  # fmt: skip


def run(name: str, device: str, tiny: bool) -> Iterator[Row]:
    """Rows of all ops at the size of one graph."""
    name = "tiny" if tiny else name
    nodes, classes = SIZES[name][0], CLASSES[name]
    torch.manual_seed(0)
    widths = (8,) if tiny else WIDTHS
    for labels in (True, False):
        yield measure(kl_div_case(nodes, classes, labels, device), device, tiny)
    for width in widths:
        yield measure(linear_case(nodes, width, classes, device), device, tiny)
    layers, width = (4, 8) if tiny else (64, 64)
    yield measure(moments_case(nodes, layers, width, device), device, tiny)
    for dtype in (torch.float32, torch.bfloat16):
        yield measure(dropout_case(nodes, widths[-1], dtype, device), device, tiny)
