"""Divergence of class scores from their targets in plain torch: definition, oracle, fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_div(
    logits: Tensor, target: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean of KL(q || softmax(z / temperature)); see :func:`abkd_fast.ops.kl_div`."""
    if mask is not None:
        logits, target = logits[mask], target[mask]
    scores = torch.log_softmax(logits / temperature, dim=1)
    if target.dim() == 1:
        loss = -scores.gather(1, target[:, None]).squeeze(1)
        return loss.mean(), (logits.argmax(1) == target).sum()
    terms = target.exp() * (target - scores)
    loss = torch.where(target.isneginf(), 0.0, terms).sum(1)
    return loss.mean(), (logits.argmax(1) == target.argmax(1)).sum()


def op_kl_div_backward(
    dloss: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """Gradient of the mean with respect to the scores, [N, C]."""
    p = torch.softmax(logits / temperature, dim=1)
    if target.dim() == 1:
        known = target if mask is None else torch.where(mask, target, 0)
        q = torch.nn.functional.one_hot(known, logits.size(1)).to(p.dtype)
    else:
        q = target.exp()
    gradient = p * q.sum(1, keepdim=True) - q
    count = logits.size(0) if mask is None else mask.sum().to(p.dtype)
    gradient = gradient * (dloss / (temperature * count))
    return gradient if mask is None else torch.where(mask[:, None], gradient, 0.0)
