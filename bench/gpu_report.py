"""The table of `make gpu-check`, from its JSON.

python bench/gpu_report.py bench/results/<device>/gpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PEAKS = {"float32": "tf32_tflops", "bfloat16": "bf16_tflops"}  # what a type is held against
COLUMNS = ("op", "case", "dtype", "side", "ms", "GB/s", "of copy", "TFLOP/s", "of peak", "x ours")


def row_cells(row: dict[str, Any], limits: dict[str, float]) -> list[list[str]]:
    """One line a side. Rates are of our work, so a peer that does more work shows a lower one."""
    ours = row["ms"]["abkd_fast"]["p50"]
    peak = limits.get(PEAKS[row["dtype"]], 0.0)
    lines = []
    for side, times in row["ms"].items():
        ms = times["p50"]
        bandwidth, rate = 1e3 * row["gb"] / ms, row["gflop"] / ms
        lines.append(
            [
                *(row["op"], row["case"], row["dtype"], side, f"{ms:.4g}"),
                *(f"{bandwidth:.0f}", _share(bandwidth, limits.get("copy_gb_per_s", 0.0))),
                *(f"{rate:.3g}", _share(rate, peak), f"{ms / ours:.2f}"),
            ]
        )
    left_out = row["left_out"].items()
    empty = ["-"] * (len(COLUMNS) - 5)
    lines += [
        [row["op"], row["case"], row["dtype"], f"{side} ({why})", "-", *empty]
        for side, why in left_out
    ]
    return lines


def _share(rate: float, limit: float) -> str:
    return f"{rate / limit:.0%}" if limit else "-"


def table(report: dict[str, Any]) -> str:
    """The whole report as text."""
    limits = report.get("limits") or {}
    lines = [f"device: {json.dumps(report['device'])}"]
    lines += [f"measured here: {name} {value:.4g}" for name, value in limits.items()]
    cells = [list(COLUMNS)]
    for row in report["rows"]:
        cells += row_cells(row, limits)
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines.append("")
    for line in cells:
        left = [cell.ljust(w) for cell, w in zip(line[:4], widths[:4], strict=True)]
        right = [cell.rjust(w) for cell, w in zip(line[4:], widths[4:], strict=True)]
        lines.append("  ".join(left + right))
    lines += ["", "part                       result                seconds"]
    for part in report["parts"]:
        seconds = f"{part['seconds']:.0f} of {part['budget']:.0f}"
        reason = f"  {part['why']}" if part["why"] else ""
        lines.append(f"{part['name']:<26} {part['result']:<20} {seconds:>8}{reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
