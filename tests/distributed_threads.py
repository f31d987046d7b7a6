"""A process of a run: the threads before, in and after the group."""

import json
import sys
from pathlib import Path

from abkd_fast.distributed import World


def threads():
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


before = threads()
with World.join() as world:
    inside = threads()
    import torch._dynamo  # noqa: F401 what an optimizer imports at its first step
Path(f"{sys.argv[1]}.{world.rank}").write_text(json.dumps([before, inside, threads()]))
