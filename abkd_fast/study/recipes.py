"""Frozen recipes: what every method runs with on test, in a file that is committed.

Recipes are added, never changed: a search over another space, or by hand, adds a further one,
and each is listed with its own test figure.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abkd_fast._storage import write_atomically
from abkd_fast.study.spec import Task

Recipe = dict[str, Any]
_KEYS = ("dataset", "teacher", "student", "method", "recipe", "settings", "search", "val")


class Recipes:
    """``recipes.json`` of a study.

    Raises:
        ValueError: the file is not as :meth:`freeze` writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[Recipe] = []
        if path.exists():
            try:
                self._found = json.loads(path.read_text())["recipes"]
                missing = [key for entry in self._found for key in _KEYS if key not in entry]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} must hold frozen recipes, got {error!r}") from error
            if missing:
                raise ValueError(f"{path} must give every recipe {', '.join(_KEYS)}")

    def of(self, task: Task, method: str | None = None) -> list[Recipe]:
        """Recipes of a task, of one method or of all, oldest first."""
        wanted = (task.dataset, task.teacher, task.student)
        return [
            entry
            for entry in self._found
            if (entry["dataset"], entry["teacher"], entry["student"]) == wanted
            and method in (None, entry["method"])
        ]

    def frozen(self, task: Task, method: str, search: str) -> Recipe | None:
        """The recipe that a search ended with."""
        return next((r for r in self.of(task, method) if r["search"] == search), None)

    def freeze(self, task: Task, method: str, search: str, chosen: dict[str, Any]) -> Recipe:
        """Add a recipe and write the file.

        Args:
            task: what it was chosen for.
            method: name of the method.
            search: names the search.
            chosen: settings, val (mean validation figure of its trial, None without a search),
                trial (its number) and trials (validation figures of all, in order).
        """
        recipe = {
            "dataset": task.dataset,
            "teacher": task.teacher,
            "student": task.student,
            "method": method,
            "recipe": len(self.of(task, method)) + 1,
            **chosen,
            "search": search,
            "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._found.append(recipe)
        text = json.dumps({"format": 1, "recipes": self._found}, indent=1) + "\n"
        write_atomically(self.path, lambda path: path.write_text(text))
        return recipe
