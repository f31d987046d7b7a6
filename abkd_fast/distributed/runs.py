"""``torchrun -m abkd_fast distill``: the command in several processes at once."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from typing import Any

from abkd_fast.config import DistillConfig
from abkd_fast.distributed.world import World
from abkd_fast.runs import distill


def distill_together(config: DistillConfig, argv: Sequence[str]) -> dict[str, Any] | None:
    """:func:`abkd_fast.runs.distill` in every process that torchrun started.

    Rank 0 loads or downloads the data, trains the teacher if there is none yet and writes its
    states to a file in ``out``, which the others then read their rows of.

    Args:
        config: settings; the cache's storage is taken to be "mmap".
        argv: the flags, for the record.

    Returns:
        The metrics on rank 0, None on the others.
    """
    with World.join(config.device, config.distributed.timeout) as world:
        config = replace(
            config, device=str(world.device), cache=replace(config.cache, storage="mmap")
        )
        size = f"--nproc-per-node={world.size}"
        command = shlex.join(["torchrun", size, "-m", "abkd_fast", "distill", *argv])
        with nullcontext() if world.is_first else redirect_stdout(io.StringIO()):
            metrics = distill(config, command, world)
    return metrics if world.is_first else None
