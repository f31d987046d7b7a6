"""Let the layers of a PyG model compute with our ops, and undo it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class AcceleratedLayer:
    """One message-passing layer of a model.

    Attributes:
        path: where it is in the model; empty for the model itself.
        kind: name of PyG's class.
        why_not: why our ops do not serve it; empty where they do.
    """

    path: str
    kind: str
    why_not: str


@dataclass(frozen=True)
class Acceleration:
    """Which message-passing layers of a model our ops serve; prints as a table."""

    layers: tuple[AcceleratedLayer, ...]

    @property
    def replaced(self) -> list[str]:
        """Paths of the layers that our ops serve."""
        return [layer.path for layer in self.layers if not layer.why_not]

    @property
    def left(self) -> dict[str, str]:
        """Why the other layers are as they were, by path."""
        return {layer.path: layer.why_not for layer in self.layers if layer.why_not}

    def __str__(self) -> str:
        served = f"{len(self.replaced)} of {len(self.layers)} message-passing layers accelerated"
        rows = [(layer.path or "(model)", layer.kind, layer.why_not) for layer in self.layers]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = [
            f"  {path:{widths[0]}}  {kind:{widths[1]}}  {why or 'accelerated'}"
            for path, kind, why in rows
        ]
        return "\n".join([served, *lines])


def accelerate(model: _Model) -> _Model:
    """Let the PyG layers of ``model`` compute with our ops, in place.

    ``GCNConv``, ``GCN2Conv``, ``SAGEConv``, ``RGCNConv``, ``GATConv`` and ``GATv2Conv`` stay the
    same objects with the same parameters, state_dict, hooks and mode, wherever they are in the
    model: optimisers, hooks and references made before stay valid. Their arguments are PyG's: an
    edge_index with or without weights, a ``torch_sparse.SparseTensor``, torch's sparse matrices,
    and a :class:`CSRGraph` besides. The graph is sorted and normalised once for an edge_index
    that stays the same tensor, and again when it is changed in place; features that stay the same
    tensor and are mostly zeros are multiplied as a sparse matrix from the second call on. Changes
    that torch does not count, through ``.data`` or numpy, are not seen. Results are those of PyG
    up to rounding; the gradient of a maximum that several neighbours attain goes to
    the first of them, and the attention's dropout draws its own numbers from torch's generator.

    Layers that our ops cannot serve stay as they are, with a warning; ``acceleration(model)``
    tells which, and why. A call that they cannot serve (a 3-dimensional x, autocast) runs PyG's
    code, with a warning. Undo it with :func:`decelerate`, or use :func:`accelerated`.

    Args:
        model: any module, or a single layer.

    Returns:
        The same object.

    Raises:
        ImportError: torch-geometric is not installed.
    """
    from abkd_fast._pyg_convs import ACCELERATED

    for layer in model.modules():
        fast = ACCELERATED.get(type(layer))
        if fast is not None and fast.obstacle(layer) is None:
            layer.__class__ = fast
    report = acceleration(model)
    if not report.layers:
        warnings.warn(f"{type(model).__name__} has no message-passing layer of PyG", stacklevel=2)
    elif report.left:
        why = "; ".join(f"{path or 'the model'}: {why}" for path, why in report.left.items())
        count = f"{len(report.left)} of {len(report.layers)} layers"
        warnings.warn(f"{count} are not accelerated ({why})", stacklevel=2)
    return model


def acceleration(model: nn.Module) -> Acceleration:
    """What :func:`accelerate` did, or would have to leave, in ``model``; print it.

    Raises:
        ImportError: torch-geometric is not installed.
    """
    from torch_geometric.nn import MessagePassing

    from abkd_fast._pyg_convs import why_not

    found = [(path, x) for path, x in model.named_modules() if isinstance(x, MessagePassing)]
    return Acceleration(
        tuple(AcceleratedLayer(path, type(layer).__name__, why_not(layer)) for path, layer in found)
    )


def decelerate(model: _Model) -> _Model:
    """Undo :func:`accelerate` in place; the parameters stay what they have become."""
    from abkd_fast._pyg_convs import ACCELERATED

    originals: dict[type, type] = {fast: original for original, fast in ACCELERATED.items()}
    for layer in model.modules():
        if type(layer) in originals:
            layer.__class__ = originals[type(layer)]
    return model


@contextmanager
def accelerated(model: _Model) -> Iterator[_Model]:
    """:func:`accelerate` within a context; at its end, what this call did is undone."""
    before = {layer: type(layer) for layer in model.modules()}
    try:
        yield accelerate(model)
    finally:
        for layer, original in before.items():
            if type(layer) is not original:
                layer.__class__ = original
