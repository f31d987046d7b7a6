import pytest
import torch

from abkd_fast.data import random_split
from abkd_fast.data.splits import masks_from_nodes

LABELS = torch.tensor([0, 1, 2, -1] * 60)


def test_counts_per_class():
    train, val, test = random_split(LABELS, train_per_class=5, val_per_class=7)
    for label in range(3):
        of = LABELS.eq(label)
        assert (int((train & of).sum()), int((val & of).sum())) == (5, 7)
        assert int((test & of).sum()) == 60 - 12
    assert not bool(((train | val | test) & (LABELS < 0)).any())
    assert not bool((train & val | train & test | val & test).any())


def test_seeds():
    first, again, other = (random_split(LABELS, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_stays_the_same_forever():
    train, val, _ = random_split(torch.arange(40) % 2, train_per_class=2, val_per_class=3, seed=0)
    assert train.nonzero().flatten().tolist() == [2, 3, 23, 36]
    assert val.nonzero().flatten().tolist() == [5, 16, 20, 35, 37, 38]


def test_small_classes_are_named():
    with pytest.raises(ValueError, match="more than .* = 50 nodes, got 2 of class 3"):
        random_split(torch.tensor([0] * 60 + [3, 3]))


def test_masks_from_nodes():
    train, val, test = masks_from_nodes(4, train=[2], val=[], test=[0, 3])
    assert train.tolist() == [False, False, True, False]
    assert not val.any()
    assert test.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "nodes, message",
    [
        ([4], r"train must list nodes in \[0, 4\), got values from 4 to 4"),
        ([-1], "train must list nodes in"),
        ([1, 1], "train must list a node once, got node 1 twice"),
        ([1.5], "train must be a list of nodes, got float64"),
        (3, "train must be a list of nodes"),
    ],
)
def test_masks_from_nodes_rejects(nodes, message):
    with pytest.raises(ValueError, match=message):
        masks_from_nodes(4, train=nodes, val=[0], test=[2])
