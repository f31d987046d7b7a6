"""What torch.autocast means for our ops: products take 16-bit storage, sums stay in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_KINDS = ("cpu", "cuda")  # asked of another device, torch raises


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The dtype that autocast asks for on a kind of device; None where it is off."""
    if kind not in _KINDS or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def narrowed(function: Callable[P, R]) -> Callable[P, R]:
    """Under autocast, run a product on operands in the dtype it asks for.

    As with torch's own products, float64 stays what it is. Within, autocast is off: sums are in
    float32, and no part of an op is cast again.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = _kind((*args, *kwargs.values()))
        dtype = autocast_dtype(kind)
        if dtype is None:
            return function(*args, **kwargs)
        cast = functools.partial(_cast, dtype=dtype)
        with torch.autocast(kind, enabled=False):
            return function(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})

    return run


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Under autocast, run a function as if it was off."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
        if not kinds:
            return function(*args, **kwargs)
        with torch.autocast(kinds[0], enabled=False), torch.autocast(kinds[-1], enabled=False):
            return function(*args, **kwargs)

    return run


def widened(x: Tensor) -> Tensor:
    """A 16-bit tensor in float32, any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _cast(value: Any, dtype: torch.dtype) -> Any:
    narrows = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if narrows and value.dtype != torch.float64 else value


def _kind(args: tuple[Any, ...]) -> str:
    """Kind of device of the first tensor."""
    return next((value.device.type for value in args if isinstance(value, Tensor)), "")
