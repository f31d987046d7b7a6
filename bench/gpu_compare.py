"""One case of a GPU benchmark: every side's values are compared, then the right ones are timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from costs import Cost
from errors import largest, relative
from gpu_timing import Step, take_turns
from torch import Tensor

import abkd_fast as af
from abkd_fast._machine import host_memory, resident_bytes

BACKENDS = ("triton", "cuda")
COMPILERS = {"cuda": "inductor", "cpu": "eager"}  # the CPU rehearses; bench/registry changes that
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative, in norm
Found = Sequence[Tensor]
Maker = Callable[[], Step]
Row = dict[str, Any]


def but_for_ties(found: Found, expected: Found) -> float:
    """As :func:`relative` of [out, dx], but of dx the share of entries that differ.

    Where two rows tie for a maximum, ours gives the gradient to the first; others share it.
    """
    out, dx = (a.double() for a in found)
    differ = ~torch.isclose(dx, expected[1].double(), rtol=1e-3, atol=1e-5)
    return largest([relative([out], expected[:1]), float(differ.double().mean())])


def by_rows(found: Found, expected: Found) -> float:
    """Largest difference of any row, in norm, relative to the row's norm or the rms one, if larger.

    One wrong row of many is far from right here, and near it in the norm of the whole.
    """
    errors = []
    for a, b in zip(found, expected, strict=True):
        difference, norms = (a.double() - b.double()).norm(dim=1), b.double().norm(dim=1)
        rms = float(norms.square().mean().sqrt())
        errors.append(float((difference / norms.clamp(min=max(rms, 1e-30))).max()))
    return largest(errors)


@dataclass
class Case:
    """Sides that compute the same, `abkd_fast` first, and how to tell whether they do.

    Attributes:
        sides: makers of steps; a step returns the tensors that are compared.
        truth: how far tensors of ours are from float64, relative.
        error: how far a peer's are from ours.
        needs: bytes that a side takes beyond those of ours; without them it is left out.
        facts: further entries of the row.
    """

    op: str
    case: str
    dtype: torch.dtype
    cost: Cost
    sides: dict[str, Maker]
    truth: Callable[[Found], float]
    error: Callable[[Found, Found], float] = relative
    needs: dict[str, int] = field(default_factory=dict)
    facts: Row = field(default_factory=dict)


def ours(device: str, make: Maker) -> dict[str, Maker]:
    """What is served by default, and each back end by name."""
    names = BACKENDS if device == "cuda" else ("reference",)
    return {"abkd_fast": make} | {f"abkd_fast {name}": make for name in names}


def installed(package: str, name: str, maker: Maker) -> dict[str, Maker]:
    """A peer, where its package is there."""
    return {name: maker} if importlib.util.find_spec(package) is not None else {}


def within(side: str) -> AbstractContextManager[None]:
    """The back end that a side of ours names."""
    name = side.removeprefix("abkd_fast").strip() if side.startswith("abkd_fast") else ""
    return af.backend(name) if name in (*BACKENDS, "reference") else nullcontext()


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """torch.compile of it, at the first call: what only lists the sides need not load it."""
    made = cache(lambda: torch.compile(function, backend=COMPILERS[device]))
    return lambda *arguments: made()(*arguments)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, dout: Tensor) -> Step:
    """[out, dx] of a function of x."""

    def step() -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        out = function(leaf)
        return [out.detach(), *torch.autograd.grad(out, leaf, dout)]

    return step


def measure(case: Case, device: str, tiny: bool) -> Row:
    """The row of a case; ours being wrong ends the program, a peer that is wrong is named."""
    steps, left_out = checked(case, device)
    rounds, turn_ms = (1, 2.0) if tiny else (5, 40.0)
    times = take_turns(steps, device, rounds, turn_ms, within)
    print(case.op, case.case, str(case.dtype)[6:], {k: t["p50"] for k, t in times.items()})
    labels = {"op": case.op, "case": case.case, "dtype": str(case.dtype)[6:]}
    return labels | case.facts | case.cost.row() | {"ms": times, "left_out": left_out}


def checked(case: Case, device: str) -> tuple[dict[str, Step], dict[str, str]]:
    """The sides whose values are right, as steps, and why others are not among them."""
    bound = BOUNDS[case.dtype]
    good: dict[str, Step] = {}
    left_out: dict[str, str] = {}
    expected: Found = ()
    for name, make in case.sides.items():
        mine = name.startswith("abkd_fast")
        try:
            if name in case.needs:
                check_room(case.needs[name], free_bytes(device))
            with within(name):
                step = make()
                found = step()
            error = case.truth(found) if mine else case.error(found, expected)
        except Exception as failure:  # a peer may fail in any way; ours may not
            if mine:
                raise
            left_out[name] = reason(failure)
            step = found = None  # type: ignore[assignment]
            if device == "cuda":
                torch.cuda.empty_cache()
            continue
        if error <= bound:
            good[name] = step
            expected = expected or found
        elif mine:
            raise SystemExit(
                f"{name} differs from float64 by {error:.2g}, more than {bound}: "
                f"{case.op} {case.case}"
            )
        else:
            left_out[name] = f"wrong by {error:.2g}"
    return good, left_out


def reason(failure: Exception) -> str:
    lines = str(failure).splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0][:120]}"


def check_room(needed: int, free: int) -> None:
    """Raise MemoryError unless so many bytes, and a tenth more, are free."""
    if 1.1 * needed > free:
        raise MemoryError(f"needs {1e-9 * needed:.0f} GB, {1e-9 * free:.0f} are free")


def free_bytes(device: str) -> int:
    """What the device has to give, and torch holds unused."""
    if device != "cuda":
        return host_memory() - resident_bytes()
    held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + held
