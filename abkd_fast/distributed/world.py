"""The processes of one run, and what they send each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# Imported before there is a process group: default arguments of that module keep the group of
# its import, whose threads would then outlive destroy_process_group and abort the process's end.
import torch.distributed.nn.functional
from torch import Tensor

from abkd_fast.result import TrainingError

_FOREVER = timedelta(days=30)  # rank 0 may train a teacher first; torchrun ends those who wait


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started.

    Sums over ranks are torch.distributed's (gloo on the CPU, NCCL on GPUs): every rank gets the
    same bits. A collective that fails raises :class:`abkd_fast.TrainingError`.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: where the tensors that are sent lie.
        peers: host and process id of every rank.
        timeout: seconds after which a collective gives up.
    """

    rank: int
    size: int
    device: torch.device
    peers: Sequence[tuple[str, int]]
    timeout: float

    @classmethod
    @contextmanager
    def join(cls, device: torch.device | str = "cpu", timeout: float = 300.0) -> Iterator[World]:
        """Meet the other processes; the environment that torchrun sets says where.

        Args:
            device: "cpu", or "cuda": then every process takes the GPU of its local rank.
            timeout: seconds that a collective waits for the slowest process.

        Raises:
            ValueError: the process was not started by torchrun, or the timeout is not positive.
        """
        if not started_by_torchrun():
            raise ValueError("World.join needs torchrun's environment, got no RANK; use torchrun")
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        device = torch.device(device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        size = dist.get_world_size()
        peers: list[tuple[str, int]] = [("", 0)] * size
        dist.all_gather_object(peers, (socket.gethostname(), os.getpid()))
        yield cls(dist.get_rank(), size, device, peers, timeout)
        dist.destroy_process_group()  # not after an error: it may wait for a process that is gone

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and reports."""
        return self.rank == 0

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` becomes its sum over ranks."""
        with self._explained("all_reduce"):
            dist.all_reduce(x)
        return x

    def sum_numbers(self, *numbers: float) -> list[float]:
        """Sums over ranks."""
        return self.sum_(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def broadcast_(self, x: Tensor) -> Tensor:
        """``x`` becomes that of rank 0."""
        with self._explained("broadcast"):
            dist.broadcast(x, 0)
        return x

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send ``rows`` [sum(sent), d] to the ranks in their order; get [sum(received), d]."""
        out = rows.new_empty(sum(received), *rows.shape[1:])
        with self._explained("all_to_all_single"):
            dist.all_to_all_single(out, rows.contiguous(), received, sent)
        return out

    @contextmanager
    def first_then_others(self, name: str) -> Iterator[None]:
        """Let rank 0 do the work (which may take long), then all others, who find it done."""
        store = dist.distributed_c10d._get_default_store()
        key = f"abkd_fast/{name}"
        if not self.is_first:
            store.wait([key], _FOREVER)
        yield
        if self.is_first:
            store.set(key, "done")

    @contextmanager
    def _explained(self, call: str) -> Iterator[None]:
        """Turn a lost connection or a timeout into an error that says what to do."""
        try:
            yield
        except RuntimeError as error:
            gone = [rank for rank, (host, pid) in enumerate(self.peers) if not _alive(host, pid)]
            which = (
                f"rank {gone[0]} is gone"
                if gone
                else (f"another process broke off or did not answer within {self.timeout:g} s")
            )
            raise TrainingError(
                f"rank {self.rank} of {self.size} could not finish {call}: {which}. torchrun's "
                "summary names the process that failed first; the same command goes on from the "
                f"last checkpoint ({str(error).splitlines()[0]})"
            ) from error


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun (or the like) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _alive(host: str, pid: int) -> bool:
    """False where it is known that a process has ended: one of this host."""
    if host != socket.gethostname():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()
    return state not in "ZX"
