"""Programs compiled by AOTInductor: a wrapper that calls our ops, in a package of torch's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

# Nearly all that runs is in our ops, whose library picks an instruction set when it is loaded: so
# the code around them is plain C++ for any processor of the kind, and torch need not try each
# instruction set first. Precompiled headers pay from the second program on.
_SETTINGS = {
    "cpp.march": "",
    "cpp.simdlen": 1,
    "cpp.vec_isa_ok": True,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.check_lowerbound": False,  # one node, no edge
}


def check_compiler(path: Path) -> None:
    """Raise ValueError where a package cannot be compiled, or may not be called so."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if path.suffix != ".pt2":
        raise ValueError(f"path must end in .pt2 for format aoti, got {path}")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        compiler = os.environ.get("CXX", "g++")
        raise ValueError(
            f"format aoti needs a C++ compiler, got {compiler}, which does not run; install one, "
            "or set CXX to it, or use torch-export"
        ) from error


def compile_package(program: ExportedProgram, path: Path) -> None:
    """Compile ``program`` and write the package."""
    from torch._inductor import aoti_compile_and_package, config, cpu_vec_isa

    known = config.get_config_copy()  # march is of torch 2.13
    settings: dict[str, Any] = {name: to for name, to in _SETTINGS.items() if name in known}
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    finally:
        cpu_vec_isa.valid_vec_isa_list.cache_clear()  # made without trials


def load_package(path: Path) -> Callable[..., Tensor]:
    """The program of a package; needs no compiler.

    Raises:
        ValueError: it is no such package.
    """
    try:
        # torch._inductor.aoti_load_package compiles trial programs to learn the processor's
        # instruction sets, and at every call parses how the arguments are nested.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except RuntimeError as error:
        raise ValueError(
            f"{path} must be a package that abkd-fast export --format aoti wrote, got: "
            f"{str(error).splitlines()[0]}; export it again"
        ) from error
    return lambda *tensors: loader.run(list(tensors))[0]
