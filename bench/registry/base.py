"""The working tree against a commit: both built, timed in turns in fresh processes.

A side's two processes stand next to each other in time, so that a burst of other work can slow both
of them and neither of the other side. What looks slower is therefore timed again, with the sides
exchanged: it counts where it is slower there too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.compare import FIELDS, Report, slower
from registry.report import merged

SIDES = ("before", "after")


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)


def commit_of(root: Path, ref: str) -> str:
    found = git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if found.returncode:
        raise ValueError(f"--base must be a commit of {root}, got {ref!r}; see git log")
    return found.stdout.strip()


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """The commit checked out in a temporary folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="abkd-fast-base-") as folder:
        tree = Path(folder) / "tree"
        added = git(root, "worktree", "add", "--detach", str(tree), commit)
        if added.returncode:
            raise OSError(f"git worktree add failed: {added.stderr.strip()}")
        try:
            yield tree
        finally:
            git(root, "worktree", "remove", "--force", str(tree))


def same_sources(root: Path, commit: str) -> bool:
    """Whether the working tree's C++ is the commit's."""
    changed = git(root, "diff", "--quiet", commit, "--", "csrc", "setup.py").returncode
    return not changed and not git(root, "ls-files", "-o", "--exclude-standard", "csrc").stdout


def build(tree: Path, root: Path, commit: str) -> str:
    """Give the commit its extension; says how."""
    kernels = tree / "abkd_fast" / "kernels"
    if not kernels.exists():  # an installation maps the package kernels/ there
        kernels.symlink_to("../kernels")
    current = sorted((root / "abkd_fast").glob("_C*.so"))
    if same_sources(root, commit):
        for file in current:
            shutil.copy2(file, tree / "abkd_fast")
        return "csrc unchanged, same binary" if current else "no extension on either side"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if current and not list((tree / "abkd_fast").glob("_C*.so")):
        raise OSError(f"the extension of {commit} was not built:\n{done.stderr[-2000:]}")
    return "csrc changed, built"


def run_side(bench: Path, tree: Path, arguments: list[str]) -> Report:
    """The registry of this checkout on the package of ``tree``, ours alone, in a fresh process."""
    path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, str(bench), "--tree", str(tree), "--out", str(out), *arguments]
        done = subprocess.run(
            [*command, "--providers", "abkd_fast"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        # The commit's version of an op may be wrong or called otherwise: its rows are missing then.
        if done.returncode and (tree == bench.parents[1] or not out.exists()):
            raise OSError(f"the benchmark of {tree} failed:\n{done.stdout[-4000:]}{done.stderr}")
        found: Report = json.loads(out.read_text())
        return found


def in_turns(
    bench: Path, trees: dict[str, Path], order: tuple[str, str], arguments: list[str]
) -> dict[str, Report]:
    """A report a side, of four processes: a, b, b, a, so that a steady drift meets both alike."""
    reports: dict[str, list[Report]] = {side: [] for side in order}
    turns = [*order, *reversed(order)]
    for number, side in enumerate(turns, start=1):
        print(f"process {number} of {len(turns)}: {side}", flush=True)
        reports[side].append(run_side(bench, trees[side], arguments))
    return {side: merged(found) for side, found in reports.items()}


def renewed(report: Report, again: Report) -> Report:
    """The report with the rows that were timed again in their places."""
    later = {(row["spec"], row["provider"]): row for row in again["rows"]}
    rows = [later.get((row["spec"], row["provider"]), row) for row in report["rows"]]
    return report | {"rows": rows}


def both(
    bench: Path, root: Path, ref: str, flags: list[str], only: list[str], threshold: float
) -> tuple[Report, Report]:
    """Reports of the commit and of the working tree; what looked slower stands as timed again."""
    commit = commit_of(root, ref)
    with worktree(root, commit) as tree:
        print(f"before: {ref} ({commit[:9]}), {build(tree, root, commit)}; after: {root}")
        trees = dict(zip(SIDES, (tree, root), strict=True))
        found = in_turns(bench, trees, SIDES, [*flags, "--only", *only])
        names = {pair.spec for pair in slower(found["before"], found["after"], threshold)}
        rows = [row for row in found["after"]["rows"] if row["spec"] in names]
        if rows:
            print(f"rows that look slower, timed again with the sides exchanged: {len(rows)}")
            specs = ["/".join(row[field] for field in FIELDS) for row in rows]
            again = in_turns(bench, trees, SIDES[::-1], [*flags, "--only", *specs])
            found = {side: renewed(found[side], again[side]) for side in SIDES}
    return found["before"], found["after"]
