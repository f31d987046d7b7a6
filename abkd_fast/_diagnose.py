"""Where the first value that is not finite comes from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def first_not_finite(model: nn.Module, run: Callable[[], Tensor]) -> str | None:
    """Path of the first module of ``model`` whose output is not finite during ``run()``."""
    found: list[str] = []

    def watch(path: str) -> Callable[..., None]:
        def look(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(path)

        return look

    modules = [(path, module) for path, module in model.named_modules() if path]
    handles = [module.register_forward_hook(watch(path)) for path, module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
