"""Every op once, forward and backward, on small graphs with hubs: what compute-sanitizer watches.

python bench/gpu_sample.py [--device cuda]
"""

from __future__ import annotations

import argparse

import torch

import abkd_fast as af
from abkd_fast.ops import (
    conv,
    dropout,
    edge_attention,
    edge_attention_v2,
    kl_div,
    layer_pair,
    linear,
    neighbor_kl,
    neighbor_log_softmax,
    relational,
    segment_csr,
    spmm,
    teacher_moments,
)


def graph_with_hubs(device: str) -> af.CSRGraph:
    """Rows without edges, of a few, of a block's worth and of more than one piece."""
    degrees = torch.tensor([0, 3, 300, 4500, 1, 17])
    edges = int(degrees.sum())
    col = torch.randint(50, (edges,))
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    return af.CSRGraph.from_csr(rowptr, col, torch.randn(edges), 50).to(device)


def run(device: str) -> None:
    graph = graph_with_hubs(device)
    for width in (7, 64):
        x = torch.randn(50, width, device=device, requires_grad=True)
        for reduce in ("sum", "mean", "max", "min"):
            spmm(graph, x, reduce).square().sum().backward()
        weight = torch.randn(width, width, device=device, requires_grad=True)
        x_0 = torch.randn(graph.num_dst, width, device=device)
        options = {"alpha": 0.1, "beta": 0.5, "act": "relu", "p": 0.4, "seed": 3}
        conv(graph, x, weight, x_0=x_0, **options)[0].square().sum().backward()
        dropout(x, 0.3, 5).sum().backward()
        linear(x, weight[: width // 2], weight[0, : width // 2], "relu").sum().backward()
        heads = torch.randn(50, 3, width, device=device, requires_grad=True)
        rows = torch.randn(graph.num_dst, 3, width, device=device, requires_grad=True)
        att = torch.randn(3, width, device=device, requires_grad=True)
        score = torch.randn(graph.num_edges, 3, device=device, requires_grad=True)
        options = {"p": 0.4, "seed": 3}
        out = edge_attention(graph, heads, att, att, x_dst=rows, score_edge=score, **options)
        (out + edge_attention_v2(graph, heads, rows, att, **options)).square().sum().backward()
        labels, mask = torch.arange(50, device=device) % width, torch.rand(50, device=device) < 0.5
        kl_div(x, labels, mask, 2.0)[0].backward()
        kl_div(x, torch.randn(50, width, device=device).log_softmax(1))[0].backward()
    kinds = torch.arange(900) % 3
    index = torch.stack([torch.randint(50, (900,)), (kinds == 0) * torch.randint(50, (900,))])
    typed = af.RelationalGraph.from_edge_type(index, kinds, 50, 3).to(device)
    weight = torch.randn(3, 64, 16, device=device, requires_grad=True)
    for order in ("aggregate_first", "transform_first"):
        out = relational(typed, x, weight, weight[0], weight[0, 0], act="relu", order=order)
        out.square().sum().backward()
    square = af.CSRGraph.from_edge_index(index, 50).to(device)
    for kernel in ("rbf", "cosine", "poly", "l2"):
        other = torch.randn(50, 9, device=device)
        target = neighbor_log_softmax(square, other, kernel=kernel)
        neighbor_kl(square, x, other, kernel=kernel).backward()
        neighbor_kl(square, x, log_target=target, kernel=kernel).backward()
    src = torch.randn(20, 9, device=device, requires_grad=True)
    for reduce in ("sum", "mean", "max", "min"):
        indptr = torch.tensor([0, 3, 3, 20], device=device)
        segment_csr(src, indptr, reduce).sum().backward()
    teacher = torch.randn(100, 3 * 8, device=device)
    moments = teacher_moments(teacher, [8] * 3)

    def maps(d: int, count: int) -> list[torch.Tensor]:
        return [torch.randn(d, 6, device=device, requires_grad=True) for _ in range(count)]

    states = [torch.randn(100, 4, device=device, requires_grad=True) for _ in range(2)]
    attention = torch.full((3, 2), 0.5, device=device)
    for known in (moments, None):
        arguments = (teacher, [8] * 3, states, attention, maps(8, 3), maps(4, 2))
        layer_pair(*arguments, moments=known)[0].backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    device = parser.parse_args().device
    for name in ("triton", "cuda") if device == "cuda" else ("reference",):
        with af.backend(name):
            run(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print("all ops ran")


if __name__ == "__main__":
    main()
