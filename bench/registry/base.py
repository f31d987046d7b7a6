"""The working tree against a commit: both built, timed in turns in fresh processes, compared."""

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
from typing import Any

from registry.report import merged

ORDER = ("before", "after", "after", "before")  # so that a steady drift meets both alike


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


def run_side(bench: Path, tree: Path, arguments: list[str]) -> dict[str, Any]:
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
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def both(
    bench: Path, root: Path, ref: str, arguments: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reports of the commit and of the working tree."""
    commit = commit_of(root, ref)
    with worktree(root, commit) as tree:
        print(f"before: {ref} ({commit[:9]}), {build(tree, root, commit)}; after: {root}")
        trees = {"before": tree, "after": root}
        reports: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
        for number, side in enumerate(ORDER, start=1):
            print(f"process {number} of {len(ORDER)}: {side}", flush=True)
            reports[side].append(run_side(bench, trees[side], arguments))
    return merged(reports["before"]), merged(reports["after"])
