"""The registry's benchmarks, and two versions of our code side by side: see bench/README.md.

python bench/bench.py [--quick] [--memory] [--out A.json]
python bench/bench.py --compare A.json B.json [--threshold 1.2]
python bench/bench.py --base GIT_REF [--only 'spmm*']
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path

from registry.compare import compare, read
from rich.console import Console

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]


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
    given = [f"--{name.replace('_', '-')}" for name in ("out", "keep", "memory", "no_samples")
             if getattr(options, name)]  # fmt: skip
    if given and (options.compare or options.base):
        parser.error(f"--compare and --base write no report, got {', '.join(given)}")
    if options.keep and not (options.out and options.out.exists()):
        parser.error(f"--keep needs a report in --out, got {options.out}")
    if options.keep and options.providers != ["*"]:
        parser.error("--keep replaces whole cases: it goes without --providers")
    if options.threshold <= 1:
        parser.error(f"--threshold must be more than 1, got {options.threshold}")
    return options


def run(options: argparse.Namespace, console: Console) -> int:
    """Time, show and write; 1 where ours was wrong, 2 where nothing was asked for."""
    import pytest
    from harness import check_kept, write_json
    from registry import report
    from registry.ratios import ratios
    from torch import get_num_threads

    before = read(options.out) if options.keep else None
    if before:
        check_kept(before, get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        flags = [f"--only={p}" for p in options.only]
        flags += [f"--provider={p}" for p in options.providers]
        flags += [f"--graph={name}" for name in options.graphs]
        flags += [f"--turns={options.turns}", *(["--quick"] if options.quick else [])]
        flags += [f"--tree={options.tree}"] if options.tree else []
        registry = HERE.parent / "registry"
        code = pytest.main([str(registry), "-c", str(registry / "pytest.ini"), *flags,
                            "--benchmark-quiet", "--benchmark-disable-gc",
                            f"--benchmark-json={raw}"])  # fmt: skip
        if not raw.exists() or not raw.stat().st_size:
            chosen = " ".join([*options.only, *options.graphs, *options.providers])
            why = f"flags must leave a case op/graph/width/dtype and a provider, got {chosen}"
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                why = f"nothing was timed, pytest ended with {code}"
            console.print(f"error: {why}", style="red", soft_wrap=True)
            return 2
        found = report.fold(json.loads(raw.read_text()))
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
