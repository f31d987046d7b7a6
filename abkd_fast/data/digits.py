"""The embedded data set: scikit-learn's handwritten digits as a nearest-neighbour graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from abkd_fast.data.assemble import graph_from_edges
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.splits import Masks, masks_from_nodes

_TRAIN_PER_CLASS = 20
_NUM_VAL = 500


def digits(*, neighbors: int = 10, split_seed: int = 0) -> GraphData:
    """1,797 scans of handwritten digits (8 x 8 pixels, 10 classes); needs no file and no network.

    Every image is joined to its nearest ``neighbors`` images by Euclidean distance of the pixels
    (ties: the lower index) and the graph is symmetrised. Features are pixels in [0, 1]. The split
    is 20 training images per class, 500 for validation, the rest for testing.

    Args:
        neighbors: neighbours of every image before symmetrising, 1 to 1796.
        split_seed: seed of the split.

    Raises:
        ValueError: if ``neighbors`` is out of range.
    """
    from sklearn.datasets import load_digits  # slow to import, needed here alone

    pixels, labels = load_digits(return_X_y=True)
    if not 1 <= neighbors < len(pixels):
        raise ValueError(f"neighbors must lie in [1, {len(pixels)}), got {neighbors}")
    source, target = _nearest(pixels, neighbors)
    graph = graph_from_edges(source, target, len(pixels), undirected=True)
    return GraphData(
        torch.from_numpy((pixels / 16).astype(np.float32)),
        graph,
        torch.from_numpy(labels.astype(np.int64)),
        *_split(labels, split_seed),
        name="digits",
    )


def _nearest(pixels: Any, neighbors: int) -> tuple[Any, Any]:
    """(neighbour [N k], node [N k]); exact, because pixels are whole numbers up to 16."""
    count = len(pixels)
    squares = (pixels**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * (pixels @ pixels.T)
    np.fill_diagonal(distance, distance.max() + 1)
    ranked = distance * count + np.arange(count)  # unique keys: ties do not depend on the machine
    nearest = np.argpartition(ranked, neighbors, axis=1)[:, :neighbors]
    return nearest.ravel(), np.arange(count).repeat(neighbors)


def _split(labels: Any, seed: int) -> Masks:
    order = np.random.RandomState(seed).permutation(len(labels))
    train = np.concatenate(
        [order[labels[order] == label][:_TRAIN_PER_CLASS] for label in np.unique(labels)]
    )
    rest = order[~np.isin(order, train)]
    return masks_from_nodes(len(labels), train=train, val=rest[:_NUM_VAL], test=rest[_NUM_VAL:])
