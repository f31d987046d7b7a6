"""Our row of every case beside the fastest peer's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Report = dict[str, Any]


def ratios(report: Report) -> Iterator[tuple[Report, Report | None]]:
    """(our row, the fastest peer's or None where none was timed) of every case."""
    for spec in dict.fromkeys(row["spec"] for row in report["rows"]):
        sides = [row for row in report["rows"] if row["spec"] == spec]
        ours = next((row for row in sides if row["provider"] == "abkd_fast"), None)
        peers = [row for row in sides if not row["provider"].startswith("abkd_fast")]
        if ours is not None:
            yield ours, min(peers, key=lambda row: row["p50"], default=None)
