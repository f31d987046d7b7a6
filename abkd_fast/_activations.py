"""What a student's forward leaves for its backward: everything, everything rounded, or little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from abkd_fast._recompute import layers_of, recomputing
from abkd_fast.graph import CSRGraph
from abkd_fast.memory import empty_output

CHOICES = ("bfloat16", "recompute")
_WIDE = (torch.float32, torch.float64)


def check_activations(choice: str | None, model: nn.Module) -> None:
    """Raise ValueError where a model's activations cannot be stored by ``choice``."""
    if choice is None:
        return
    for path, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(
                f"activations must be None for a compiled student, got {choice!r} and "
                f"{path or 'the student'}; torch.compile decides itself what to compute again"
            )
    if choice == "recompute" and not layers_of(model):
        raise ValueError(
            f"activations must not be 'recompute' for {type(model).__name__}, which has no layers "
            "with parameters inside; bfloat16 stores them in half the memory"
        )


def storing(choice: str | None, model: nn.Module) -> AbstractContextManager[None]:
    """A context for one forward of ``model`` whose activations are stored by ``choice``.

    Args:
        choice: None: as autograd does. "bfloat16": rounded (:class:`_Rounded`). "recompute": the
            inputs of layers alone (:func:`recomputing`).
        model: the student, called in the context once.
    """
    if choice is None or not torch.is_grad_enabled():
        return nullcontext()
    return recomputing(model) if choice == "recompute" else _rounding(model)


def keep(*tensors: Tensor | None) -> None:
    """Leave these as they are in what is stored for a backward, and let rounded copies go.

    For what must stay exact (weights that were made of parameters, sums of a softmax) and for what
    lives on in any case. Outside of :func:`storing` with bfloat16 nothing happens.
    """
    if _current is not None:
        _current.keep(tensors)


class _Rounded:
    r"""Stores what autograd keeps of a forward in bfloat16, each tensor once.

    x is stored as x (1 + e), \|e\| <= 2^-8 (round to nearest, 8 bits). Stored as they are: 16-bit
    tensors; vectors and columns (norms, edges' weights); and what lives on anyway: parameters,
    buffers, the model's arguments, what was given to :func:`keep`, and views of all of these.
    """

    def __init__(self, kept: Iterable[Tensor]) -> None:
        # Weak references hold on to the storage's record, so an address is not given out again.
        self._kept: dict[int, StorageWeakRef] = {}
        self._stored: dict[int, dict[tuple[Any, ...], _Stored]] = {}
        self.keep(kept)

    def keep(self, tensors: Iterable[Tensor | None]) -> None:
        for tensor in tensors:
            if tensor is None or tensor.layout != torch.strided:
                continue
            storage = StorageWeakRef(tensor.untyped_storage())
            self._kept[storage.cdata] = storage
            for stored in self._stored.pop(storage.cdata, {}).values():
                stored.replace(tensor)

    def pack(self, tensor: Tensor) -> _Stored:
        if tensor.layout != torch.strided or tensor.dtype not in _WIDE:
            return _Stored(tensor)
        storage = StorageWeakRef(tensor.untyped_storage())
        rows = tensor.size(0) if tensor.dim() else 0
        repeats = tensor.nbytes > tensor.untyped_storage().nbytes()
        if storage.cdata in self._kept or tensor.numel() <= rows or tensor.dim() < 2 or repeats:
            return _Stored(tensor)
        views = self._stored.setdefault(storage.cdata, {})
        shape = tensor.shape, tensor.stride(), tensor.storage_offset()
        key = (*shape, tensor.dtype, tensor._version)
        if key not in views:
            views[key] = _Stored(tensor, torch.bfloat16, storage)
        return views[key]


class _Stored:
    """A tensor kept for a backward, as it is or rounded."""

    def __init__(
        self,
        tensor: Tensor,
        dtype: torch.dtype | None = None,
        storage: StorageWeakRef | None = None,
    ) -> None:
        self._dtype, self._version = tensor.dtype, tensor._version
        self._shape = tensor.shape, tensor.stride(), tensor.storage_offset()
        self._storage = storage  # of the tensor that was rounded
        self._value = tensor if dtype is None else _cast(tensor, dtype)

    def replace(self, owner: Tensor) -> None:
        """Keep the tensor itself, which ``owner`` shares its memory with, in place of the copy."""
        if owner._version == self._version:
            self._value, self._storage = owner.detach().as_strided(*self._shape), None

    def unpack(self) -> Tensor:
        """The tensor in its own dtype; RuntimeError if it was changed in place since."""
        if self._storage is not None:
            return _cast(self._value, self._dtype)
        if self._value._version != self._version:
            raise RuntimeError(
                "a tensor needed for gradient computation has been modified by an inplace "
                f"operation: {list(self._value.shape)} is at version {self._value._version}, "
                f"expected version {self._version}"
            )
        return self._value


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in another dtype, in kept memory."""
    return empty_output(tensor.new_empty(0, dtype=dtype), *tensor.shape).copy_(tensor.detach())


_current: _Rounded | None = None


@contextmanager
def _rounding(model: nn.Module) -> Iterator[None]:
    global _current
    rounded = _Rounded((*model.parameters(), *model.buffers()))

    def keep_arguments(module: nn.Module, args: Any, kwargs: Any) -> None:
        rounded.keep(_tensors((args, kwargs)))

    handle = model.register_forward_pre_hook(keep_arguments, with_kwargs=True)
    before, _current = _current, rounded
    try:
        with saved_tensors_hooks(rounded.pack, _Stored.unpack):
            yield
    finally:
        _current = before
        handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments of a model."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, CSRGraph):
        yield from () if value.value is None else (value.value,)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
