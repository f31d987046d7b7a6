"""Block sizes measured on this machine's GPU, kept in a file.

``ABKD_AUTOTUNE=1`` times the candidates of a kernel at its first launch for a class of problems
(operator, GPU, dtype, width and mean degree, rounded to powers of two) and keeps the fastest in
``~/.cache/abkd_fast/blocks.json`` (``XDG_CACHE_HOME`` moves it). Later runs read the file; without
one, and for classes that are not in it, the defaults of ``launch.py`` hold. Other block sizes add
in another order: bits may differ between machines and files, but not between runs.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

Blocks = tuple[int, ...]


def tuned(
    op: str,
    x: Tensor,
    degree: float,
    default: Blocks,
    candidates: Iterable[Blocks],
    run: Callable[[Blocks], object],
) -> Blocks:
    """The block sizes for a launch on features x [*, F]; ``run`` launches with some."""
    if x.device.type != "cuda":
        return default
    key = _key(op, x, degree)
    table = _table(_path())
    if len(table.get(key, ())) != len(default):  # unknown, or of an earlier version
        capturing = torch.cuda.is_current_stream_capturing()
        if os.environ.get("ABKD_AUTOTUNE") != "1" or capturing:
            return default
        table[key] = fastest(run, [default, *candidates])
        _save(table, _path())
    return tuple(table[key])


def fastest(run: Callable[[Blocks], object], candidates: list[Blocks]) -> Blocks:
    """The candidate of the least median time; the first of equals.

    Those that take more of a multiprocessor than the GPU has are passed over.
    """
    times = [_time(functools.partial(run, blocks)) for blocks in candidates]
    return candidates[times.index(min(times))]


def _time(run: Callable[[], object]) -> float:
    try:
        return triton.testing.do_bench(run, return_mode="median")
    except OutOfResources:
        return float("inf")


def _key(op: str, x: Tensor, degree: float) -> str:
    width, edges = (triton.next_power_of_2(max(int(n), 1)) for n in (x.size(1), degree))
    gpu = torch.cuda.get_device_name(x.device)
    return f"{op}, {gpu}, {str(x.dtype)[6:]}, {width} wide, {edges} edges"


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "abkd_fast" / "blocks.json"


@functools.cache
def _table(path: Path) -> dict[str, Blocks]:
    try:
        return {key: tuple(blocks) for key, blocks in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}


def _save(table: dict[str, Blocks], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(table, indent=1, sort_keys=True))
    written.replace(path)
