"""Counter-based dropout in plain torch: the definition, the oracle in tests, the fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._checks import accumulation_dtype

_WORD = 0xFFFFFFFF


def dropout(x: Tensor, p: float, seed: int | Tensor, layer: int = 0, step: int = 0) -> Tensor:
    """Inverted dropout; see :func:`abkd_fast.ops.dropout`."""
    return op_dropout(x, p, torch.as_tensor(seed, dtype=torch.int64), layer, step)


def op_dropout(x: Tensor, p: float, seed: Tensor, layer: int, step: int) -> Tensor:
    """x / (1 - p) where the element's random word is at least p 2^32, else 0."""
    kept = _words(x.numel(), seed.reshape(()).to(x.device), layer, step) >= int(p * 2.0**32)
    scaled = x.to(accumulation_dtype(x)) * (1.0 / (1.0 - p))
    return torch.where(kept.view(x.shape), scaled, 0.0).to(x.dtype)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011).

    Args:
        counter: [..., 4] 32-bit words in int64.
        key: [2] 32-bit words in int64.

    Returns:
        [..., 4] 32-bit words in int64.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # The products wrap around to negative numbers; their 64 bits are right.
        even, odd = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = ((odd >> 32) & _WORD) ^ c1 ^ k0, odd & _WORD
        c2, c3 = ((even >> 32) & _WORD) ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _words(count: int, seed: Tensor, layer: int, step: int) -> Tensor:
    """[count] random words of elements 0 to count - 1."""
    number = torch.arange((count + 3) // 4, device=seed.device)
    fixed = [torch.full_like(number, layer), torch.full_like(number, step)]
    counter = torch.stack([number & _WORD, number >> 32, *fixed], dim=-1)
    key = torch.stack([seed & _WORD, (seed >> 32) & _WORD])
    return philox(counter, key).reshape(-1)[:count]
