"""Random graphs of an exact size whose edges and features follow planted labels.

Everything is drawn in blocks, so memory is that of the result and one block. Both ends of an edge
are drawn in proportion to power-law weights of the nodes; with probability ``homophily`` the
second end has the label of the first, else any label. (After the degree-corrected block model of
Karrer & Newman 2011, as ``synthetic.dcsbm``.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BLOCK = 1 << 20
_EXPONENT = 2.5
_ROUNDS = 60


def labels(generator: np.random.Generator, count: int, classes: int) -> Array:
    """[count] int64 labels; class c has a share in proportion to 1 / (c + 10).

    Every class has a node, where there are as many nodes as classes.
    """
    if count < classes:
        return generator.permutation(classes)[:count]
    share = 1.0 / (np.arange(classes) + 10.0)
    bounds = np.floor(np.cumsum(share) / share.sum() * (count - classes)).astype(np.int64)
    drawn = np.searchsorted(bounds, np.arange(count - classes), "right")
    return generator.permutation(
        np.concatenate([np.arange(classes), np.minimum(drawn, classes - 1)])
    )


def features(
    generator: np.random.Generator, y: Array, classes: int, num_features: int, signal: float
) -> Array:
    """[N, F] float32: signal * mean of the label + noise, both standard normal."""
    means = np.float32(signal) * generator.standard_normal((classes, num_features), np.float32)
    x = np.empty((len(y), num_features), np.float32)
    for start in range(0, len(y), _BLOCK):
        block = x[start : start + _BLOCK]
        generator.standard_normal(out=block, dtype=np.float32)
        block += means[y[start : start + _BLOCK]]
    return x


class _Drawer:
    """Draws nodes in proportion to their weights, from all or from those of a label."""

    def __init__(self, generator: np.random.Generator, y: Array, classes: int) -> None:
        self.generator = generator
        self.order = np.argsort(y, kind="stable")  # nodes of a label lie together
        weight = (1 - generator.random(len(y))) ** (-1 / (_EXPONENT - 1))
        cumulative = np.cumsum(np.minimum(weight, len(y) ** 0.5))
        self.cumulative = np.concatenate([[0.0], cumulative])
        borders = np.searchsorted(y[self.order], np.arange(classes + 1))
        self.borders = self.cumulative[borders]

    def any(self, count: int) -> Array:
        return self._at(self.generator.random(count) * self.cumulative[-1])

    def of(self, label: Array) -> Array:
        low, high = self.borders[label], self.borders[label + 1]
        return self._at(low + self.generator.random(len(label)) * (high - low))

    def _at(self, position: Array) -> Array:
        place = np.searchsorted(self.cumulative, position, "right") - 1
        return self.order[np.minimum(place, len(self.order) - 1)]


def distinct_pairs(
    generator: np.random.Generator,
    y_source: Array,
    y_target: Array,
    count: int,
    homophily: float,
    *,
    loops: bool = True,
) -> Array:
    """``count`` distinct edges as sorted int64 keys source * num_targets + target.

    Args:
        generator: of the draws.
        y_source: labels of the source nodes.
        y_target: labels of the target nodes, of the same set of labels.
        count: E.
        homophily: probability that the target has the source's label.
        loops: whether node i may be joined with node i; for relations within a type, no.

    Raises:
        ValueError: more than a quarter of all pairs are asked for.
    """
    classes = 1 + int(max(y_source.max(), y_target.max()))
    source, target = _Drawer(generator, y_source, classes), _Drawer(generator, y_target, classes)
    width = len(y_target)

    def draw(size: int) -> Array:
        first = source.any(size)
        second = _partners(generator, target, y_source[first], homophily)
        keep = slice(None) if loops else first != second
        return first[keep] * width + second[keep]

    return _distinct(generator, draw, count, len(y_source) * width)


def distinct_edges(generator: np.random.Generator, y: Array, count: int, homophily: float) -> Array:
    """``count`` distinct undirected edges without loops as sorted keys low * N + high.

    Arguments and errors as :func:`distinct_pairs`.
    """
    nodes = _Drawer(generator, y, int(y.max()) + 1)
    width = len(y)

    def draw(size: int) -> Array:
        first = nodes.any(size)
        second = _partners(generator, nodes, y[first], homophily)
        low, high = np.minimum(first, second), np.maximum(first, second)
        keep = low != high
        return low[keep] * width + high[keep]

    return _distinct(generator, draw, count, width * (width - 1) // 2)


def _partners(
    generator: np.random.Generator, nodes: _Drawer, label: Array, homophily: float
) -> Array:
    same = generator.random(len(label)) < homophily
    chosen = nodes.any(len(label))
    chosen[same] = nodes.of(label[same])
    return chosen


def _distinct(
    generator: np.random.Generator, draw: Callable[[int], Array], count: int, pairs: int
) -> Array:
    """Draw, block by block, until there are ``count`` distinct keys; then drop the excess."""
    if 4 * count > pairs:
        raise ValueError(f"edges must be at most a quarter of {pairs} pairs, got {count}")
    keys = np.empty(0, np.int64)
    for _ in range(_ROUNDS):
        missing = count - len(keys)
        if missing <= 0:
            break
        fresh = np.empty(len(keys) + missing + missing // 8 + 64, np.int64)
        filled = len(keys)
        fresh[:filled] = keys
        while filled < len(fresh):
            block = draw(min(_BLOCK, len(fresh) - filled))
            fresh[filled : filled + len(block)] = block
            filled += len(block)
        fresh.sort()
        keep = np.ones(len(fresh), bool)
        np.not_equal(fresh[1:], fresh[:-1], out=keep[1:])
        keys = fresh[keep]
    else:
        raise ValueError(f"edges must be fewer: {count} distinct ones were not found; raise scale")
    keep = np.ones(len(keys), bool)
    keep[generator.choice(len(keys), len(keys) - count, replace=False)] = False
    return keys[keep]


def ends(keys: Array, width: int) -> tuple[Array, Array]:
    """(first, second) of every key, int32, block by block."""
    first, second = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
    for start in range(0, len(keys), _BLOCK):
        block = slice(start, start + _BLOCK)
        first[block], second[block] = np.divmod(keys[block], width)
    return first, second
