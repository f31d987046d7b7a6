"""A rank's share of the mini-batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from abkd_fast.batches import Batch, Batches, LoaderBatches, shuffled
from abkd_fast.distributed.world import World


class RankBatches:
    """Every step takes ``batches.per_batch`` items (seed nodes or clusters) for each rank.

    An epoch's items, in the order of :class:`NeighborBatches` or :class:`ClusterBatches`, are cut
    into steps x ranks pieces of equal size, give or take one: no rank is ever without. An epoch
    has fewer steps than in one process, and each of them sees more nodes.

    Args:
        batches: of the whole data, the same on every rank.
        world: the processes.

    Raises:
        ValueError: a loader's batches, or fewer items than ranks.
    """

    def __init__(self, batches: Batches, world: World) -> None:
        if isinstance(batches, LoaderBatches):
            raise ValueError(
                "batches must be NeighborBatches or ClusterBatches in several processes, got "
                "LoaderBatches, whose loader draws on its own"
            )
        if batches.num_items < world.size:
            raise ValueError(
                f"batches must have an item for each of {world.size} ranks, got "
                f"{batches.num_items}; start fewer processes"
            )
        self.batches, self.world, self.data = batches, world, batches.data
        wanted = -(-batches.num_items // (world.size * batches.per_batch))
        self._steps = min(wanted, batches.num_items // world.size)

    def __len__(self) -> int:
        """Number of steps an epoch."""
        return self._steps

    @property
    def nodes(self) -> Tensor | slice:
        """Nodes that an epoch of all ranks goes over."""
        return self.batches.nodes

    @property
    def train_share(self) -> float:
        """Share of the nodes of an epoch that are training nodes."""
        return self.batches.train_share

    def epoch(self, number: int) -> Iterator[Batch]:
        """This rank's batches; they depend on the seed, ``number``, rank and size alone."""
        order = shuffled(self.batches.num_items, self.batches.seed, number)
        pieces = order.tensor_split(self._steps * self.world.size)
        for i in range(self.world.rank, len(pieces), self.world.size):
            yield self.batches.batch(pieces[i], number * len(pieces) + i)

    def __repr__(self) -> str:
        """Settings, and the number of ranks, on which the batches depend."""
        return f"RankBatches({self.batches!r}, ranks={self.world.size})"
