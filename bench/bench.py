"""The registry's benchmarks, and two versions of our code side by side: see bench/README.md.

python bench/bench.py [--quick] [--memory] [--out A.json]
python bench/bench.py --compare A.json B.json [--threshold 1.2]
python bench/bench.py --base GIT_REF [--only 'spmm*']
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from registry.compare import compare, read
from rich.console import Console

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
CHOICE = ("only", "quick", "graphs", "providers", "turns")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="abkd-fast bench", description="ops x providers x graphs x widths x dtypes"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"),
                      help="two reports, before and after; times nothing")  # fmt: skip
    what.add_argument("--base", metavar="GIT_REF", help="this checkout against a commit, quick")
    parser.add_argument("--threshold", type=float, default=1.2, help="slower by more than this")
    parser.add_argument("--quick", action="store_true", help="one graph, few widths, uncompiled")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN",
                        help="of op/graph/width/dtype: 'spmm*' '*/float32'")  # fmt: skip
    parser.add_argument("--graphs", nargs="+", default=[],
                        help="in place of each op's; tiny: 500 nodes, synthetic")  # fmt: skip
    parser.add_argument("--providers", nargs="+", default=["*"], metavar="PATTERN",
                        help="beside ours: 'torch*' PyG")  # fmt: skip
    parser.add_argument("--turns", type=int, default=5, help="of every provider")
    parser.add_argument("--memory", nargs="?", const="all", choices=("all", "fastest"),
                        help="peak of a fresh process; fastest: ours and the fastest peer's only",
                        )  # fmt: skip
    parser.add_argument("--out", type=Path, help="write the report with all samples")
    parser.add_argument("--keep", action="store_true",
                        help="the cases in --out that are not timed again")  # fmt: skip
    parser.add_argument("--no-samples", action="store_true", help="quantiles alone, to commit")
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message where a flag is out of range or would do nothing."""

    def given(*names: str) -> str:
        changed = [n for n in names if getattr(options, n) != parser.get_default(n)]
        return ", ".join(f"--{name.replace('_', '-')}" for name in changed)

    if not 1 < options.threshold < math.inf:
        parser.error(f"--threshold must be a number of more than 1, got {options.threshold}")
    if options.turns < 1:
        parser.error(f"--turns must be 1 or more, got {options.turns}")
    two = options.compare or options.base
    if two and (flags := given("out", "keep", "memory", "no_samples")):
        parser.error(f"--compare and --base write no report, got {flags}")
    if options.compare and (flags := given(*CHOICE)):
        parser.error(f"--compare times nothing: it goes without {flags}")
    if options.base and given("providers"):
        parser.error("--base times ours alone: it goes without --providers")
    if not two and given("threshold"):
        parser.error("--threshold judges two versions: it needs --compare or --base")
    if options.no_samples and not options.out:
        parser.error("--no-samples is of a report: it needs --out")
    if options.keep and not (options.out and options.out.exists()):
        parser.error(f"--keep needs a report in --out, got {options.out}")
    if options.keep and given("providers"):
        parser.error("--keep replaces whole cases: it goes without --providers")


def check_out(path: Path) -> None:
    """Raise OSError unless a report can be written there; folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("a").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(
            f"--out must be a file that can be written, got {path} ({error}); name another"
        ) from error


def time_cases(options: argparse.Namespace) -> tuple[dict[str, Any] | None, int]:
    """(report, pytest's exit code); None where nothing was timed and no case says why."""
    import pytest
    from registry import report

    registry = HERE.parent / "registry"
    with tempfile.TemporaryDirectory() as folder:
        raw, record = Path(folder) / "raw.json", Path(folder) / "record.json"
        flags = [f"--only={p}" for p in options.only]
        flags += [f"--provider={p}" for p in options.providers]
        flags += [f"--graph={name}" for name in options.graphs]
        flags += [f"--turns={options.turns}", *(["--quick"] if options.quick else [])]
        flags += [f"--tree={options.tree}"] if options.tree else []
        code = pytest.main([str(registry), "-c", str(registry / "pytest.ini"), *flags,
                            "--benchmark-quiet", "--benchmark-disable-gc",
                            f"--benchmark-json={raw}", f"--record={record}"])  # fmt: skip
        about = json.loads(record.read_text()) if record.exists() else None
        if raw.exists() and raw.stat().st_size:
            return report.fold(json.loads(raw.read_text())["benchmarks"], about), code
        if about and about["left_out"]:
            return report.fold([], about), code
    if code == pytest.ExitCode.OK and about and not about["tests"]:
        code = pytest.ExitCode.NO_TESTS_COLLECTED
    return None, code


def untimed(options: argparse.Namespace, code: int) -> str:
    """Why there is no report."""
    from pytest import ExitCode

    if code != ExitCode.NO_TESTS_COLLECTED:
        return f"nothing was timed, pytest ended with {code}"
    chosen = " ".join([*options.only, *options.graphs, *options.providers])
    return f"flags must leave a case op/graph/width/dtype and a provider, got {chosen}"


def run(options: argparse.Namespace, console: Console) -> int:
    """Time, show and write; 1 where ours was wrong, 2 where nothing was asked for."""
    from harness import check_kept, write_json
    from registry import report
    from registry.ratios import ratios
    from torch import get_num_threads

    if options.out:
        check_out(options.out)
    before = read(options.out) if options.keep else None
    if before:
        check_kept(before, get_num_threads())
    found, code = time_cases(options)
    if found is None:
        console.print(f"error: {untimed(options, code)}", style="red", soft_wrap=True)
        return 2
    if options.memory:
        rows = found["rows"]
        chosen = [row for pair in ratios(found) for row in pair if row is not None]
        report.add_memory(rows if options.memory == "all" else chosen, HERE)
    report.show(found, console)
    wrong = any(gone["provider"].startswith("abkd_fast") for gone in found["left_out"])
    if before:
        found = report.with_kept(found, before)
    if options.no_samples:
        for row in found["rows"]:
            row.pop("turns_ms", None)
    if options.out:
        write_json(options.out, **found)
        console.print(f"report: {options.out}")
    return 1 if code or wrong else 0


def memory_of(spec: str, provider: str) -> None:
    """Print the peak of two steps as JSON; one before them loads libraries and compiles."""
    from gpu_compare import within
    from harness import peak_above_data
    from registry.cases import Spec
    from registry.catalog import compile_for_real

    import abkd_fast

    name, graph, width, dtype = spec.split("/")
    compile_for_real()
    make = Spec(name, graph, int(width), dtype).make().sides[provider]
    with within(provider):
        step = make()
        step()
        abkd_fast.empty_cache()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not serve the steps
        print(json.dumps(peak_above_data(step)))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    console = Console(width=max(132, Console().width))  # a log has no width of its own
    if options.memory_of:
        memory_of(*options.memory_of)
        return 0
    try:
        if options.compare:
            before, after = map(read, options.compare)
        elif options.base:
            flags = ["--quick", "--turns", str(options.turns)]
            flags += ["--graphs", *options.graphs] if options.graphs else []
            from registry.base import both

            before, after = both(HERE, ROOT, options.base, flags, options.only, options.threshold)
        else:
            return run(options, console)
        return compare(before, after, options.threshold, console)
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
