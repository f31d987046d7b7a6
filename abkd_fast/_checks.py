"""Argument checks whose messages name the argument, the expectation and the value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INDICES = (torch.int32, torch.int64)
_CHECKED = 1 << 24  # entries whose finiteness is checked at a time


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def names(dtypes: Sequence[torch.dtype]) -> str:
    """Return ``int32 or int64`` for ``(torch.int32, torch.int64)``."""
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(
    name: str,
    value: object,
    *,
    dim: int | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return ``value`` as a tensor of the stated rank, dtype and device, or raise ValueError."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimension(s), got shape {list(value.shape)}")
    if dtypes is not None and value.dtype not in dtypes:
        raise ValueError(f"{name} must be {names(dtypes)}, got {names([value.dtype])}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}; move it with .to()")
    return value


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError with the count and the first position of NaN or infinite entries."""
    rows = max(1, _CHECKED * value.size(0) // max(1, value.numel())) if value.dim() else 1
    blocks = value.split(rows) if value.dim() else (value,)  # one pass would double large data
    if not all(bool(torch.isfinite(block).all()) for block in blocks):
        bad = (~torch.isfinite(value)).nonzero()
        raise ValueError(
            f"{name} must be finite, got {len(bad)} NaN or infinite entries, the first at "
            f"index {bad[0].tolist()}; clean the data, for example with torch.nan_to_num"
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which sums over ``x`` are accumulated: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
