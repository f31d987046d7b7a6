"""Settings of the teacher's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkd_fast._checks import check_choice
from abkd_fast._teacher_states import check_storage


@dataclass(frozen=True)
class CacheConfig:
    """Where the teacher's hidden states are kept, and how."""

    storage: str = "memory"
    """memory; pinned (page-locked, needs a GPU); mmap: a file in --out, written layer by layer and
    read in place, for states that do not fit in memory."""
    dtype: str = "float32"
    """float32, or bfloat16 for half the size."""

    def __post_init__(self) -> None:
        check_storage(self.storage)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of that name."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found
