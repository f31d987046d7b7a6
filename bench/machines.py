"""Results have one folder a machine: bench/results/<processor>-<n>-cores/<report>.json.

python bench/machines.py  # prints the folder of this machine
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from abkd_fast.metrics import environment

Reports = dict[str, dict[str, Any]]
RESULTS = Path(__file__).parent / "results"
DOCUMENTED = "amd-epyc-2-cores"  # whose figures the docs show


def this_machine() -> str:
    """The folder's name, as in amd-epyc-2-cores."""
    found = environment()
    cpu = re.sub(r"\(r\)|\(tm\)|\bprocessor\b|\bcpu\b|@.*", "", found["cpu"].lower())
    words = re.sub(r"\W+", "-", cpu).strip("-")
    return f"{words}-{found['cores']}-cores"


def result(name: str) -> Path:
    """Where a report of this machine lies."""
    return RESULTS / this_machine() / f"{name}.json"


def reports_of(machine: str) -> Reports:
    """What was measured on a machine, by name."""
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((RESULTS / machine).glob("*.json"))
    }


def measured_machines() -> list[str]:
    """Every machine with results, the documented one first."""
    found = sorted(path.name for path in RESULTS.iterdir() if path.is_dir())
    return sorted(found, key=DOCUMENTED.__ne__)


if __name__ == "__main__":
    print(RESULTS / this_machine())
