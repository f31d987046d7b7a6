"""Graphs for the GPU benchmarks: real structures where they are, R-MAT of their size elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from abkd_fast import CSRGraph

SIZES = {  # nodes, arcs
    "pubmed": (19_717, 88_648),
    "ogbn-arxiv": (169_343, 2_315_598),
    "ogbn-products": (2_449_029, 123_718_280),
    "tiny": (500, 4_000),
}
QUADRANTS = (0.57, 0.19, 0.19)  # Graph500


def rmat(num_nodes: int, num_edges: int, device: str, seed: int = 0) -> CSRGraph:
    """R-MAT (Chakrabarti et al. 2004) with exactly so many nodes and arcs, made on the device.

    Every arc descends the quadrants of a 2^k square; its end points are scaled to ``num_nodes`` and
    shuffled. Repeated arcs are kept.
    """
    a, b, c = QUADRANTS
    generator = torch.Generator(device).manual_seed(seed)
    side = 1 << max(num_nodes - 1, 0).bit_length()
    row = torch.zeros(num_edges, dtype=torch.int64, device=device)
    col = torch.zeros_like(row)
    for _ in range(side.bit_length() - 1):
        draw = torch.rand(num_edges, generator=generator, device=device)
        bottom = draw >= a + b
        right = ((draw >= a) & ~bottom) | (draw >= a + b + c)
        row = row.mul_(2).add_(bottom)
        col = col.mul_(2).add_(right)
    shuffled = torch.randperm(num_nodes, generator=generator, device=device)
    row = shuffled[row * num_nodes // side]
    col = shuffled[col * num_nodes // side]
    col = (row * num_nodes + col).sort().values % max(num_nodes, 1)
    counts = torch.bincount(row, minlength=num_nodes)
    rowptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return CSRGraph.from_csr(rowptr, col, None, num_nodes)


def load(name: str, device: str) -> tuple[CSRGraph, str]:
    """(graph, label); the label says synthetic where the structure is not the real one."""
    found = None
    if name in ("pubmed", "ogbn-arxiv") and os.environ.get("ABKD_DATA"):
        from bench_spmm import load_graph

        try:
            found = load_graph(name, Path(os.environ["ABKD_DATA"]))
        except (OSError, ValueError) as error:
            print(f"{name}: {str(error).splitlines()[0]}; R-MAT instead")
    if found is not None:
        return found.to(device), name
    return rmat(*SIZES[name], device), f"{name} size, synthetic R-MAT"
