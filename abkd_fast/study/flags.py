"""The flags of ``abkd-fast distill`` by their dotted names, set from plain values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from abkd_fast.config import DistillConfig

# What the runner itself decides for every run.
_OWN = {"seeds", "out", "teachers", "teacher", "teacher_seeds", "compression", "dataset"}
_OWN |= {"train.checkpoint_every", "train.snapshots"}

Value = bool | int | float | str


def known_flags() -> dict[str, Any]:
    """Dotted name -> type, of every setting that a study may give."""
    return {name: hint for name, hint in _walk(DistillConfig, "") if not _is_own(name)}


def check_flags(where: str, names: Mapping[str, Any]) -> None:
    """Raise ValueError unless every name is a flag of distill that a study may set."""
    known = known_flags()
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean {near[0]}?" if near else "see abkd-fast distill --help"
        if _is_own(name):
            fix = "the study sets it: see docs/study/README.md"
        raise ValueError(f"{where} must name flags of abkd-fast distill, got {name!r}; {fix}")


def with_flags(config: DistillConfig, settings: Mapping[str, Value]) -> DistillConfig:
    """``config`` with settings by dotted name; "none" stands for None where that is allowed.

    Raises:
        ValueError: an unknown name, a value of the wrong type, or one that the setting refuses.
    """
    check_flags("settings", settings)
    known = known_flags()
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, leaf = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = _typed(name, value, known[name])
    changed: DistillConfig = _apply(config, tree)
    return changed


def _is_own(name: str) -> bool:
    return name in _OWN or name.split(".")[0] in ("distributed", "cache")


def _walk(kind: type, prefix: str) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    found: list[tuple[str, Any]] = []
    for entry in fields(kind):
        hint = hints[entry.name]
        if is_dataclass(hint) and isinstance(hint, type):
            found += _walk(hint, f"{prefix}{entry.name}.")
        else:
            found.append((f"{prefix}{entry.name}", hint))
    return found


def _typed(name: str, value: Any, hint: Any) -> Any:
    choices = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if type(None) in choices and isinstance(value, str) and value.lower() == "none":
        return None
    for kind in choices:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
        if type(value) is kind:
            return value
    wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in choices)
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _apply(config: Any, tree: Mapping[str, Any]) -> Any:
    parts = {
        name: _apply(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in tree.items()
    }
    return replace(config, **parts)
