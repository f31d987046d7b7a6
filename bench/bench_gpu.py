"""One part of the GPU benchmarks; `make gpu-check` runs them all (bench/gpu_check.py).

    python bench/bench_gpu.py spmm:ogbn-arxiv --out part.json [--device cuda] [--tiny]

Before anything is timed, ours is compared with float64, and every peer with ours: ours being wrong
fails the part; a peer that is wrong, fails or does not fit is named and left out. Sides take turns.
`gb` and `gflop` are those of bench/costs.py. The file is written anew after every row, so that a
part that is stopped keeps what it has measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_gpu_graph
import bench_gpu_layer_pair
import bench_gpu_rows
import bench_gpu_step
from gpu_timing import device_facts, limits

SMALL = ("pubmed", "ogbn-arxiv")
PARTS = (
    "limits",
    *(f"{op}:{graph}" for op in ("spmm", "conv") for graph in bench_gpu_graph.GRAPHS),
)
PARTS += tuple(f"{kind}:{graph}" for kind in ("reduce", "rows", "step") for graph in SMALL)
PARTS += tuple(f"layer_pair:{config}" for config in bench_gpu_layer_pair.CONFIGS)


def rows_of(kind: str, name: str, device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Rows as they are measured; a later one of the same case replaces the earlier."""
    if kind == "layer_pair":
        return bench_gpu_layer_pair.run(name, device, tiny)
    if kind == "rows":
        return bench_gpu_rows.run(name, device, tiny)
    if kind == "step":
        return bench_gpu_step.run(name, device, tiny)
    return bench_gpu_graph.run(kind, name, device, tiny)


def write(found: dict[str, Any], out: Path) -> None:
    """All of it or what was there before."""
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(found))
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kind, _, name = options.part.partition(":")
    if kind == "limits":
        device = device_facts(options.device)
        write({"limits": limits(options.device, options.tiny), "device": device}, options.out)
        return
    rows = {}
    for row in rows_of(kind, name, options.device, options.tiny):
        rows[row["op"], row["case"], row["dtype"]] = row
        write({"rows": list(rows.values())}, options.out)


if __name__ == "__main__":
    main()
