"""Where the repository is: benchmarks are no part of the installed package."""

from __future__ import annotations

from pathlib import Path


def find_checkout(*folders: Path) -> Path:
    """The first checkout that holds one of the folders.

    Raises:
        OSError: none does.
    """
    for folder in folders:
        for root in (folder, *folder.parents):
            if (root / "bench" / "bench.py").exists() and (root / "abkd_fast").is_dir():
                return root
    raise OSError(
        f"bench must run in a checkout of abkd_fast, which has bench/, got {folders[0]}; "
        "clone the repository and run it there"
    )
