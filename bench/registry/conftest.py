"""Which cases and providers a run has, and what its report says beside the times."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import machine_limits
from registry.cases import OPS, Spec, grid
from registry.catalog import compile_for_real

import abkd_fast
from abkd_fast.metrics import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("registry")
    group.addoption("--quick", action="store_true", help="one graph, few widths, no torch.compile")
    group.addoption("--turns", type=int, default=5, help="of every provider at every case")
    group.addoption("--only", action="append", help="cases, as op/graph/width/dtype")
    group.addoption("--graph", action="append", help="in place of the registry's")
    group.addoption("--provider", action="append", help="pattern of its name")
    group.addoption("--tree", type=Path, help="abkd_fast must come from this checkout")
    group.addoption("--record", type=Path, help="where the facts of the cases are written")


def pytest_configure(config: pytest.Config) -> None:
    compile_for_real()
    found, tree = Path(abkd_fast.__file__).resolve().parents[1], config.getoption("--tree")
    if tree is not None and found != tree.resolve():
        raise pytest.UsageError(f"abkd_fast must come from {tree}, got {found}; set PYTHONPATH")
    known = sorted({graph for entry in OPS.values() for graph in entry.known})
    unknown = {*(config.getoption("--graph") or ())} - {*known}
    if unknown:
        raise pytest.UsageError(f"--graphs must be of {', '.join(known)}, got {unknown}")
    config.stash["record"] = {"tests": 0, "cases": {}, "left_out": []}


def matches(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch(name, pattern) for pattern in patterns)


def chosen(config: pytest.Config, spec: Spec) -> list[str]:
    """The providers of a case; none where this version of abkd_fast lacks the op."""
    try:
        names = spec.providers()
    except (ImportError, AttributeError) as error:
        # An earlier commit may lack an op (--base); this checkout must not.
        who = "all" if config.getoption("--tree") else "abkd_fast"
        config.stash["record"]["left_out"].append(
            {"spec": str(spec), "provider": who, "why": str(error)}
        )
        return []
    if config.getoption("--quick"):
        names = [name for name in names if "compile" not in name]
    wanted = config.getoption("--provider")
    return [n for n in names if n == "abkd_fast" or matches(n, wanted)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    turns = []
    for spec in grid(config.getoption("--quick"), config.getoption("--graph")):
        if not matches(str(spec), config.getoption("--only")):
            continue
        names = chosen(config, spec)
        turns += [
            pytest.param(spec, tuple(names), turn, name, id=f"{spec}-{turn}-{name}")
            for turn in range(config.getoption("--turns"))
            for name in names
        ]
    config.stash["record"]["tests"] += len(turns)
    metafunc.parametrize(("spec", "providers", "turn", "provider"), turns)


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return environment()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A file of its own: pytest-benchmark writes none where nothing was timed.

    The machine's limits are measured in the same run, but for a side of --base.
    """
    config = session.config
    path, record = config.getoption("--record"), config.stash["record"]
    if path is not None:
        limits = record["cases"] and not config.getoption("--tree")
        record["machine"] = machine_limits() if limits else None
        record["threads"] = torch.get_num_threads()
        path.write_text(json.dumps(record))
