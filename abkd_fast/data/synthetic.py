"""Generated graphs for timing and tests; marked synthetic wherever they are reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from abkd_fast.data.assemble import graph_from_edges
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.splits import random_split
from abkd_fast.graph import CSRGraph


def rmat(
    scale: int,
    edge_factor: int = 16,
    *,
    a: float = 0.57,
    b: float = 0.19,
    c: float = 0.19,
    seed: int = 0,
) -> CSRGraph:
    """A directed R-MAT graph (Chakrabarti et al. 2004) with the skew of Graph500.

    Every edge chooses one quadrant of the adjacency matrix, then a quadrant of that, and so on:
    top left with probability ``a``, top right ``b``, bottom left ``c``, bottom right the rest.
    Node numbers are shuffled. Repeated edges and self-loops are kept, so E is exact.

    Args:
        scale: N = 2^scale nodes, 0 to 30.
        edge_factor: E = edge_factor * N edges.
        a: probability of the top left quadrant.
        b: probability of the top right quadrant.
        c: probability of the bottom left quadrant.
        seed: equal seeds give equal graphs.

    Raises:
        ValueError: scale, edge_factor or the probabilities are out of range.
    """
    if not 0 <= scale <= 30:
        raise ValueError(f"scale must lie in [0, 30], got {scale}; N = 2^scale")
    if edge_factor < 0:
        raise ValueError(f"edge_factor must be >= 0, got {edge_factor}")
    if min(a, b, c) < 0 or a + b + c > 1:
        raise ValueError(f"a, b, c must be probabilities with a sum <= 1, got {a}, {b}, {c}")
    num_nodes = 1 << scale
    generator = np.random.default_rng(seed)
    row = np.zeros(edge_factor * num_nodes, np.int64)
    column = np.zeros_like(row)
    for _ in range(scale):
        draw = generator.random(len(row), dtype=np.float32)
        bottom = draw >= a + b
        right = ((draw >= a) & ~bottom) | (draw >= a + b + c)
        row = 2 * row + bottom
        column = 2 * column + right
    shuffled = generator.permutation(num_nodes)
    return graph_from_edges(shuffled[row], shuffled[column], num_nodes)


def rmat_data(
    *,
    scale: int = 12,
    edge_factor: int = 8,
    num_features: int = 64,
    num_classes: int = 8,
    seed: int = 0,
) -> GraphData:
    """An R-MAT graph, symmetrised, with random features and random labels: for timing only.

    Args:
        scale: N = 2^scale nodes.
        edge_factor: generated edges per node, before reverses are added and duplicates merged.
        num_features: F; features are standard normal.
        num_classes: labels are uniform, so no model can learn them.
        seed: equal seeds give equal data.

    Raises:
        ValueError: an argument is out of range, or a class is too small for the split.
    """
    directed = rmat(scale, edge_factor, seed=seed)
    source, target = directed.to_edge_index()[0].numpy()
    graph = graph_from_edges(source, target, directed.num_dst, undirected=True, self_loops=False)
    generator = np.random.default_rng([seed, 1])
    y = torch.from_numpy(generator.integers(0, num_classes, graph.num_dst))
    x = generator.standard_normal((graph.num_dst, num_features), dtype=np.float32)
    masks = random_split(y, seed=seed)
    return GraphData(torch.from_numpy(x), graph, y, *masks, name="synthetic-rmat", synthetic=True)


def dcsbm(
    num_nodes: int = 5_000,
    num_classes: int = 8,
    *,
    num_features: int = 64,
    mean_degree: float = 10.0,
    homophily: float = 0.8,
    exponent: float = 2.5,
    signal: float = 0.5,
    seed: int = 0,
) -> GraphData:
    """A degree-corrected stochastic block model (Karrer & Newman 2011) with features.

    Both ends of an edge are drawn in proportion to power-law node weights; with probability
    ``homophily`` the second end has the class of the first, else another class. Features are
    x[v] = signal * mean[class of v] + noise, with standard normal class means and noise.

    Args:
        num_nodes: N.
        num_classes: uniform classes, at least 2.
        num_features: F.
        mean_degree: expected degree before self-loops are dropped and duplicates merged.
        homophily: probability that an edge stays within a class, 0 to 1.
        exponent: of the power law of the degrees, > 2.
        signal: size of the class means against the noise.
        seed: equal seeds give equal data.

    Raises:
        ValueError: an argument is out of range, or a class is too small for the split.
    """
    if num_classes < 2 or num_nodes < num_classes:
        raise ValueError(
            f"num_classes must lie in [2, num_nodes={num_nodes}], got {num_classes}; "
            "an edge needs another class to go to"
        )
    if not 0 <= homophily <= 1:
        raise ValueError(f"homophily must lie in [0, 1], got {homophily}")
    if exponent <= 2:
        raise ValueError(f"exponent must be > 2 (a finite mean degree), got {exponent}")
    if mean_degree < 0:
        raise ValueError(f"mean_degree must be >= 0, got {mean_degree}")
    generator = np.random.default_rng(seed)
    labels = np.sort(np.arange(num_nodes) % num_classes)  # classes are blocks, then shuffled
    source, target = _block_edges(
        generator, labels, int(num_nodes * mean_degree / 2), homophily, exponent
    )
    shuffled = generator.permutation(num_nodes)
    y = np.empty_like(labels)
    y[shuffled] = labels
    graph = graph_from_edges(
        shuffled[source], shuffled[target], num_nodes, undirected=True, self_loops=False
    )
    means = generator.standard_normal((num_classes, num_features), dtype=np.float32)
    x = generator.standard_normal((num_nodes, num_features), dtype=np.float32)
    x += np.float32(signal) * means[y]
    labels_y = torch.from_numpy(y)
    masks = random_split(labels_y, seed=seed)
    return GraphData(
        torch.from_numpy(x), graph, labels_y, *masks, name="synthetic-dcsbm", synthetic=True
    )


def _block_edges(
    generator: np.random.Generator, labels: Any, count: int, homophily: float, exponent: float
) -> tuple[Any, Any]:
    """``count`` pairs of nodes; ``labels`` is sorted, so a class is one interval of the weights."""
    num_nodes, num_classes = len(labels), int(labels[-1]) + 1
    # Pareto weights, cut off where a node would expect more than sqrt(N) times the mean
    weight = (1 - generator.random(num_nodes)) ** (-1 / (exponent - 1))
    cumulative = np.concatenate([[0.0], np.cumsum(np.minimum(weight, num_nodes**0.5))])
    bounds = cumulative[np.searchsorted(labels, np.arange(num_classes + 1))]
    source = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], "right") - 1
    source = np.minimum(source, num_nodes - 1)
    block = labels[source]
    other = generator.integers(1, num_classes, count)
    block = np.where(generator.random(count) < homophily, block, (block + other) % num_classes)
    position = bounds[block] + generator.random(count) * (bounds[block + 1] - bounds[block])
    target = np.searchsorted(cumulative, position, "right") - 1
    return source, np.minimum(target, num_nodes - 1)
