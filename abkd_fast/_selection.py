"""Which implementation of an operator serves a device, and how to ask for another one.

The C++ kernels are in torch's dispatcher, under the keys CPU and CUDA. Whatever is to serve in
their place is registered over them and taken away again. So the default path costs nothing, and a
choice reaches compiled graphs and the threads in which autograd runs the backward of CUDA tensors;
it is one for the whole process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from abkd_fast import kernels
from abkd_fast._checks import check_choice

BACKENDS = ("cpu", "triton", "cuda", "reference")
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}  # dispatch key of a device
# Of the back ends that have an operator, the first serves it.
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
_CUDA_FIRST: frozenset[str] = frozenset()  # operators in which C++ was measured ahead of Triton


class Selection:
    """The implementations of all operators, and those in force."""

    def __init__(self, namespace: str, cpu: bool, why_cpu: str) -> None:
        """``cpu``: whether the C++ kernels are there; ``why_cpu`` says why, or why not."""
        self._namespace, self._cpu, self._why_cpu = namespace, cpu, why_cpu
        self._references: dict[str, Callable[..., Any]] = {}
        self._native: set[tuple[str, str]] = set()  # (operator, device) of C++ kernels
        self._choices: list[str] = []
        self._library: Any = None

    def add(self, op: str, reference: Callable[..., Any]) -> None:
        """Make an operator known and install what serves it."""
        self._references[op] = reference
        for device, key in _KEYS.items():
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{self._namespace}::{op}", key):
                self._native.add((op, device))
        if self._library is None:
            self._library = torch.library.Library(self._namespace, "IMPL")
        self._install(op)

    def available(self, op: str, backend: str, device: str) -> tuple[bool, str]:
        """Whether a back end has an operator for tensors on a device, and why."""
        if backend == "reference":
            return True, "plain torch"
        if backend == "triton":
            return self._triton(op, device)
        if backend != device:
            return False, f"the {backend} back end does not take {device} tensors"
        if (op, device) in self._native:
            return True, self._why_cpu if backend == "cpu" else "C++ extension, CUDA kernels"
        if backend == "cpu" and not self._cpu:
            return False, self._why_cpu
        return False, f"the C++ extension has no {device} kernel of {op}"

    def serving(self, op: str, device: str) -> tuple[str, str]:
        """The back end that serves tensors on a device now, and why."""
        order = _ORDER[device]
        if op in _CUDA_FIRST and device == "cuda":
            order = ("cuda", "triton", "reference")
        reasons: list[str] = []
        for backend in (*self._choices[-1:], *order):
            found, why = self.available(op, backend, device)
            if found:
                return backend, "; ".join(reasons) if backend == "reference" and reasons else why
            reasons.append(why)
        raise AssertionError(f"no back end serves {op}")

    def push(self, backend: str) -> None:
        """Prefer a back end wherever it has the operator."""
        check_choice("backend", backend, BACKENDS)
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        found = [self.available(op, backend, on) for op in self._references for on in devices]
        if not any(there for there, _ in found):
            ((reason, _),) = Counter(why for _, why in found).most_common(1)
            raise ValueError(f"backend must be available, got {backend!r}: {reason}")
        self._choices.append(backend)
        self._install_all()

    def pop(self) -> None:
        """Undo the last push."""
        self._choices.pop()
        self._install_all()

    def _install_all(self) -> None:
        self._library._destroy()
        self._library = torch.library.Library(self._namespace, "IMPL")
        for op in self._references:
            self._install(op)

    def _install(self, op: str) -> None:
        for device, key in _KEYS.items():
            backend, _ = self.serving(op, device)
            if backend == device:
                continue  # C++: what the dispatcher has underneath
            reference = self._references[op]
            implementation = _Launcher(op) if backend == "triton" else torch.no_grad()(reference)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
                self._library.impl(op, implementation, key)

    def _triton(self, op: str, device: str) -> tuple[bool, str]:
        if op not in kernels.MODULES:
            return False, f"no Triton kernel of {op}"
        if importlib.util.find_spec("triton") is None:
            return False, "triton is not installed; CUDA builds of torch bring it"
        if device == "cuda":
            return True, "Triton kernels"
        if os.environ.get("TRITON_INTERPRET") == "1":
            return True, "Triton kernels, interpreted"
        return False, "Triton needs a GPU, or TRITON_INTERPRET=1 in the environment"


class _Launcher:
    """A Triton launcher, imported at its first call: triton takes a second to import."""

    def __init__(self, op: str) -> None:
        self._op = op
        self._run: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self._run is None:
            module = importlib.import_module(f"abkd_fast.kernels.{kernels.MODULES[self._op]}")
            self._run = getattr(module, self._op)
        tensor = next(argument for argument in arguments if isinstance(argument, torch.Tensor))
        with torch.no_grad(), torch.cuda.device_of(tensor):
            return self._run(*arguments)
