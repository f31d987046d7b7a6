"""Random and hostile CSR inputs for ``CSRGraph.from_csr`` and ``ops.spmm``, and what is right.

Every input must give the oracle's result, or raise ValueError where it is not a matrix and its
features: which of the two is decided here, in plain Python, from the definition of CSR. Any other
exception, a wrong decision, a wrong number or a dead process is a failure. Input i of a seed is
always the same one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from abkd_fast import CSRGraph
from abkd_fast._checks import accumulation_dtype
from abkd_fast.ops import spmm

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
OTHERS = (torch.bool, torch.uint8, torch.int16, torch.float32, torch.complex64)
LOW, HIGH = -(2**63), 2**63 - 1
REDUCTIONS = ("sum", "mean", "max", "min")
Rng = np.random.Generator


@dataclass
class Case:
    """Arguments of ``CSRGraph.from_csr`` and ``spmm``; any of them may be anything."""

    rowptr: Any
    col: Any
    value: Any
    num_src: Any
    x: Any
    reduce: Any


# -- inputs -----------------------------------------------------------------------------------


def valid_case(rng: Rng) -> Case:
    """A matrix of up to 12 x 12 with features of up to 40 columns; now and then a hub."""
    rows, num_src = int(rng.integers(13)), int(rng.integers(13))
    degree = rng.integers(5, size=rows) if num_src else np.zeros(rows, np.int64)
    if rows and num_src and rng.random() < 0.05:
        degree[rng.integers(rows)] = 200
    num_edges = int(degree.sum())
    rowptr = torch.from_numpy(np.concatenate([[0], degree.cumsum()]).astype(np.int64))
    col = torch.from_numpy(rng.integers(max(num_src, 1), size=num_edges))
    index, dtype = pick(rng, INTEGERS), pick(rng, FLOATS)
    value = None
    if rng.random() < 0.6:
        value = torch.from_numpy(rng.normal(size=num_edges)).to(pick(rng, (dtype, torch.float32)))
    x = torch.from_numpy(rng.normal(size=(num_src, int(rng.integers(41))))).to(dtype)
    return Case(rowptr.to(index), col.to(index), value, num_src, x, pick(rng, REDUCTIONS))


def pick(rng: Rng, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def overwrite(rng: Rng, tensor: torch.Tensor, choices: Any) -> torch.Tensor:
    """The tensor with one entry replaced; int64 where the entry needs it."""
    entry = pick(rng, choices)
    if isinstance(entry, int) and not -(2**31) <= entry < 2**31:
        tensor = tensor.long()
    tensor = tensor.clone()
    if tensor.numel():
        tensor[int(rng.integers(tensor.numel()))] = entry
    return tensor


def change_rowptr(rng: Rng, case: Case) -> None:
    length, edges = case.rowptr.numel(), case.col.numel()
    extremes = (-1, 0, 1, edges, edges + 1, 2**31 - 1, 2**31, 2**32, LOW, HIGH)
    case.rowptr = overwrite(rng, case.rowptr, extremes)
    if rng.random() < 0.3:
        case.rowptr = case.rowptr[torch.from_numpy(rng.permutation(length))]


def wrap_rowptr(rng: Rng, case: Case) -> None:
    """Once around the integers: no difference is negative in arithmetic modulo 2^64 or 2^32."""
    quarter = pick(rng, (2**62, 2**30))
    around = [quarter, 2 * quarter - 1, -2 * quarter, -quarter, 0]
    dtype = torch.int64 if quarter == 2**62 else torch.int32
    edges = case.col.numel()
    case.rowptr = torch.tensor([0, *around, *[edges] * int(rng.integers(1, 4))], dtype=dtype)


def change_col(rng: Rng, case: Case) -> None:
    extremes = (-1, case.num_src, case.num_src + 1, 2**31 - 1, -(2**31), 2**32, LOW, HIGH)
    case.col = overwrite(rng, case.col, extremes)


def change_value(rng: Rng, case: Case) -> None:
    value = torch.ones(case.col.numel()) if case.value is None else case.value
    case.value = overwrite(rng, value, (float("nan"), float("inf"), -float("inf"), 0.0, -0.0))


def change_x(rng: Rng, case: Case) -> None:
    flat = overwrite(rng, case.x.reshape(-1), (float("nan"), float("inf"), -float("inf"), 0.0))
    case.x = flat.reshape(case.x.shape)


def change_dtype(rng: Rng, case: Case) -> None:
    name = pick(rng, ("rowptr", "col", "value", "x"))
    tensor = getattr(case, name)
    choices = OTHERS if name in ("rowptr", "col") else (*OTHERS, torch.int64, *FLOATS)
    if tensor is not None:
        setattr(case, name, tensor.to(pick(rng, choices)))


def change_shape(rng: Rng, case: Case) -> None:
    name = pick(rng, ("rowptr", "col", "value", "x"))
    tensor = getattr(case, name)
    if tensor is None:
        return
    longer = torch.cat([tensor, tensor[:1]])
    shapes = (longer, tensor[:-1], tensor[:0], tensor.unsqueeze(0), tensor.sum(), tensor.flatten())
    setattr(case, name, pick(rng, shapes))


def change_sizes(rng: Rng, case: Case) -> None:
    sizes = (-1, 0, 1, True, 2**31, 2**40, HIGH, 2**64, 2.0, "3", None, np.int64(4))
    case.num_src = pick(rng, sizes)
    if case.num_src == 2**40 and rng.random() < 0.5:
        case.x = case.x.new_empty(2**40, 0)  # as many rows as are claimed, and no memory


def change_type(rng: Rng, case: Case) -> None:
    name = pick(rng, ("rowptr", "col", "value", "x", "reduce"))
    old = getattr(case, name)
    choices = [None, 3, "sum", [0], np.zeros(2), torch.zeros(2, device="meta"), torch.eye(3)]
    if isinstance(old, torch.Tensor) and old.dim() == 1:
        choices.append(old.to_sparse())
    setattr(case, name, pick(rng, choices))


def change_strides(rng: Rng, case: Case) -> None:
    """The same numbers, laid out otherwise; always valid."""
    for name in ("rowptr", "col", "value", "x"):
        tensor = getattr(case, name)
        if tensor is not None:
            setattr(case, name, torch.stack([tensor, tensor], dim=-1)[..., int(rng.integers(2))])
    if rng.random() < 0.3 and len(case.x):
        case.x = case.x[:1].expand(case.x.shape)


CHANGES: tuple[Callable[[Rng, Case], None], ...] = (
    *(change_rowptr, wrap_rowptr, change_col, change_value, change_x, change_dtype),
    *(change_shape, change_sizes, change_type, change_strides),
)


def make_case(seed: int, index: int) -> tuple[Case, str]:
    """Input ``index`` and the name of what was done to it: a third stays as it is."""
    rng = np.random.default_rng([seed, index])
    case = valid_case(rng)
    if rng.random() < 1 / 3:
        return case, "untouched"
    change = pick(rng, CHANGES)
    change(rng, case)
    return case, change.__name__


# -- what is right ----------------------------------------------------------------------------


def is_valid(case: Case) -> bool:
    """Whether these are a CSR matrix, features that fit and a known reduction."""
    tensors = [case.rowptr, case.col, case.x, *([] if case.value is None else [case.value])]
    if not all(isinstance(t, torch.Tensor) and t.layout == torch.strided for t in tensors):
        return False
    if any(t.device.type != "cpu" for t in tensors) or [t.dim() for t in tensors[:3]] != [1, 1, 2]:
        return False
    if case.rowptr.dtype not in INTEGERS or case.col.dtype not in INTEGERS:
        return False
    rowptr, col = case.rowptr.tolist(), case.col.tolist()
    if not rowptr or rowptr[0] != 0 or rowptr[-1] != len(col) or rowptr != sorted(rowptr):
        return False
    try:
        num_src = len(rowptr) - 1 if case.num_src is None else operator.index(case.num_src)
    except TypeError:
        return False
    if num_src < 0 or not all(0 <= c < num_src for c in col):
        return False
    if (
        case.x.dtype not in FLOATS
        or case.x.size(0) != num_src
        or not (isinstance(case.reduce, str) and case.reduce in REDUCTIONS)
    ):
        return False
    if case.value is None:
        return True
    fits = case.value.dtype in FLOATS and case.value.shape == case.col.shape
    exact = case.value.dtype != torch.float64 or case.x.dtype == torch.float64
    return fits and exact and bool(case.value.isfinite().all())


def oracle(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Result [num_dst, F] in float64, and how far off it a rounded sum in any order may be."""
    messages = _messages(case, case.x.double().numpy()[case.col.numpy()])
    out = np.zeros((case.rowptr.numel() - 1, case.x.size(1)))
    bound = np.zeros_like(out)
    join = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[case.reduce]
    for i, (begin, end) in enumerate(pairwise(case.rowptr.tolist())):
        if end > begin:
            out[i] = join(messages[begin:end], axis=0)
            bound[i] = _bound(case.x, messages[begin:end])
    return out, bound


def oracle_dx(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [num_src, F] of the sum of all results of "sum" or "mean", and its bound."""
    degree = np.diff(case.rowptr.numpy())
    row = np.repeat(np.arange(len(degree)), degree)
    per_edge = 1 / degree[row] if case.reduce == "mean" else np.ones(len(row))
    messages = _messages(case, np.tile(per_edge[:, None], case.x.size(1)))
    dx, bound = np.zeros(case.x.shape), np.zeros(case.x.shape)
    for j in range(len(dx)):
        mine = messages[case.col.numpy() == j]
        dx[j], bound[j] = mine.sum(0), _bound(case.x, mine)
    if case.reduce == "mean":  # the gradient of every row is rounded to the dtype of x first
        bound *= 2
    return dx, bound


def _messages(case: Case, features: np.ndarray) -> np.ndarray:
    value = None if case.value is None else case.value.double().numpy()[:, None]
    return features if value is None else value * features


def _bound(x: torch.Tensor, messages: np.ndarray) -> np.ndarray:
    """Largest error of a sum of messages [n, F] that is accumulated, then stored as x is."""
    stored, summed = torch.finfo(x.dtype), torch.finfo(accumulation_dtype(x))
    total = np.maximum(stored.tiny, np.abs(messages).sum(0))
    return ((len(messages) + 2) * summed.eps + stored.eps) * total


def failure(case: Case) -> str | None:
    """What is wrong with what the package does with ``case``; None when it is right."""
    valid = is_valid(case)
    differentiable = valid and case.reduce in ("sum", "mean") and case.x.numel() > 0
    try:
        graph = CSRGraph.from_csr(case.rowptr, case.col, case.value, case.num_src)
        out = spmm(graph, case.x, case.reduce)
        if differentiable:
            x = case.x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(spmm(graph, x, case.reduce).sum(), x)
    except ValueError as error:
        return f"refused: {error}" if valid else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not valid:
        return "accepted"
    with np.errstate(all="ignore"):
        wrong = _difference("result", out, case.x.dtype, *oracle(case))
        if wrong is None and differentiable:
            wrong = _difference("dx", dx, case.x.dtype, *oracle_dx(case))
    return wrong


def _difference(
    name: str, found: torch.Tensor, dtype: torch.dtype, exact: np.ndarray, bound: np.ndarray
) -> str | None:
    if found.dtype != dtype or found.shape != exact.shape:
        return f"{name} is {found.dtype} {found.shape}, expected {dtype} {exact.shape}"
    values = found.double().numpy()
    same = (values == exact) | (np.isnan(values) & np.isnan(exact))
    wrong = np.argwhere(~(same | (np.abs(values - exact) <= bound)))
    if not len(wrong):
        return None
    at = tuple(wrong[0])
    return f"{name} is {values[at]} at {list(map(int, at))}, expected {exact[at]} +- {bound[at]}"
