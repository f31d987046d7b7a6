"""Training in several processes, on one machine or many: torch.distributed, started by torchrun."""

from abkd_fast.distributed.halo_graph import HaloGraph as HaloGraph
from abkd_fast.distributed.trainer import DistributedDistiller as DistributedDistiller
from abkd_fast.distributed.world import World as World
from abkd_fast.distributed.world import started_by_torchrun as started_by_torchrun
