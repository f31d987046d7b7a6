"""Checks of a study file's values; every message names the key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def table(where: str, found: Any) -> dict[str, Any]:
    """``found`` if it is a table."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} must be a table, got {found!r}")
    return found


def unknown(where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ValueError for the first key that is not known."""
    known = list(known)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(known)}"
            raise ValueError(f"{where} must have known keys only, got {key!r}; {fix}")


def integer(where: str, found: Any, least: int) -> int:
    """A whole number >= least."""
    if type(found) is not int or found < least:
        raise ValueError(f"{where} must be a whole number >= {least}, got {found!r}")
    return found


def text(where: str, found: Any) -> str:
    """A string that is not empty."""
    if not isinstance(found, str) or not found:
        raise ValueError(f"{where} must be a string, got {found!r}")
    return found


def strings(where: str, found: Any, known: Iterable[str] | None = None) -> list[str]:
    """A list of strings, without repetition, of those that are known."""
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise ValueError(f"{where} must be a list of strings, got {found!r}")
    if len(set(found)) < len(found):
        raise ValueError(f"{where} must not repeat an entry, got {', '.join(found)}")
    known = found if known is None else list(known)
    for entry in found:
        if entry not in known:
            raise ValueError(f"{where} must be among {', '.join(known)}, got {entry!r}")
    return found


def flat(where: str, found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}; dashes in names become underscores."""
    out: dict[str, Any] = {}
    for key, value in found.items():
        name = f"{prefix}{key.replace('-', '_')}"
        if isinstance(value, dict):
            out |= flat(where, value, f"{name}.")
        elif isinstance(value, (bool, int, float, str)):
            out[name] = value
        else:
            raise ValueError(f"{where} must give {name} one value, got {value!r}")
    return out


def space(
    where: str, found: Mapping[str, Any], make: Callable[..., Any], prefix: str = ""
) -> dict[str, Any]:
    """Flag -> list of choices, or ``make(low, high, log)``, of nested or dotted names."""
    out: dict[str, Any] = {}
    for key, value in found.items():
        name = f"{prefix}{key.replace('-', '_')}"
        if isinstance(value, dict) and not {"low", "high"} & set(value):
            out |= space(where, value, make, f"{name}.")
        elif isinstance(value, dict):
            out[name] = _range(f"{where}.{name}", value, make)
        elif isinstance(value, list) and value:
            plain = all(isinstance(entry, (bool, int, float, str)) for entry in value)
            if not plain or len({str(entry) for entry in value}) < len(value):
                raise ValueError(f"{where}.{name} must be different plain values, got {value!r}")
            out[name] = value
        else:
            raise ValueError(
                f"{where}.{name} must be a list of choices or {{low, high, log}}, got {value!r}"
            )
    return out


def _range(where: str, found: dict[str, Any], make: Callable[..., Any]) -> Any:
    unknown(where, found, ("low", "high", "log"))
    low: Any = found.get("low")
    high: Any = found.get("high")
    log = found.get("log", False)
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (low, high))
    if not numbers or not isinstance(log, bool) or not low < high or (log and low <= 0):
        raise ValueError(
            f"{where} must have low < high (and low > 0 with log = true), got {found!r}"
        )
    return make(float(low), float(high), log)
