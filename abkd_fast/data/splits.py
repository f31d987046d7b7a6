"""Fixed splits: masks from node lists and seeded random splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Masks = tuple[Tensor, Tensor, Tensor]


def random_split(
    y: Tensor, *, train_per_class: int = 20, val_per_class: int = 30, seed: int = 0
) -> Masks:
    """Draw nodes per class for training and validation; all other labelled nodes are for testing.

    The same seed gives the same split on every machine and with every version of numpy (the
    generator is the one whose stream is frozen).

    Args:
        y: [N] int64 labels; negative = unlabelled, in no mask.
        train_per_class: training nodes of each class.
        val_per_class: validation nodes of each class.
        seed: any non-negative integer.

    Returns:
        (train_mask, val_mask, test_mask), each [N] bool.

    Raises:
        ValueError: if a class has no node left for testing.
    """
    labels = y.cpu().numpy()
    generator = np.random.RandomState(seed)
    train, val = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    taken = train_per_class + val_per_class
    for label in np.unique(labels[labels >= 0]):
        nodes = generator.permutation(np.flatnonzero(labels == label))
        if len(nodes) <= taken:
            raise ValueError(
                f"every class must have more than train_per_class + val_per_class = {taken} nodes, "
                f"got {len(nodes)} of class {label}; give a split of your own or lower the counts"
            )
        train[nodes[:train_per_class]] = True
        val[nodes[train_per_class:taken]] = True
    test = (labels >= 0) & ~train & ~val
    return torch.from_numpy(train), torch.from_numpy(val), torch.from_numpy(test)


def masks_from_nodes(num_nodes: int, **nodes: Any) -> Masks:
    """Masks [N] from integer node lists ``train``, ``val`` and ``test``.

    Raises:
        ValueError: names the list and a node outside [0, N) or listed twice.
    """
    masks = []
    for name in ("train", "val", "test"):
        index = np.asarray(nodes[name])
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise ValueError(
                f"{name} must be a list of nodes, got {index.dtype}{list(index.shape)}"
            )
        if index.size and (int(index.min()) < 0 or int(index.max()) >= num_nodes):
            raise ValueError(
                f"{name} must list nodes in [0, {num_nodes}), got values from {index.min()} "
                f"to {index.max()}"
            )
        if len(np.unique(index)) != len(index):
            values, counts = np.unique(index, return_counts=True)
            raise ValueError(
                f"{name} must list a node once, got node {values[counts > 1][0]} twice"
            )
        mask = np.zeros(num_nodes, bool)
        mask[index.astype(np.int64)] = True
        masks.append(torch.from_numpy(mask))
    return masks[0], masks[1], masks[2]
