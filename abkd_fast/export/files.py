"""Exported programs on disk, and how they are called again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from abkd_fast._checks import check_choice, first_line
from abkd_fast.data import GraphData
from abkd_fast.export.compiled import load_package
from abkd_fast.export.program import Signature
from abkd_fast.task import MULTICLASS


def about_path(path: str | Path) -> Path:
    """The JSON beside a program: its signature, and how near it is to the checkpoint."""
    path = Path(path)
    return path.with_name(path.name + ".json")


class Exported:
    """A program from disk; ``exported(*tensors)`` returns the scores [N, C].

    Attributes:
        signature: the tensors it takes.
        about: all that the JSON beside it says.
    """

    def __init__(
        self, run: Callable[..., Tensor], signature: Signature, about: Mapping[str, Any]
    ) -> None:
        self._run, self.signature, self.about = run, signature, about

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Tensor:
        """Scores of the rows of x.

        Raises:
            ValueError: names a tensor that is not as the signature has it, or whose row pointers
                or columns are not those of a matrix.
        """
        return self._run(*self.signature.checked(tensors))

    @torch.no_grad()
    def trusted(self, *tensors: Tensor) -> Tensor:
        """As calling it, for indices that are known to be right: their values are not read."""
        return self._run(*self.signature.checked(tensors, indices=False))

    def predict(self, data: GraphData) -> Tensor:
        """Scores [N, C] of all nodes of ``data``."""
        return self(*self.signature.arguments(data))

    def classes(self, scores: Tensor) -> list[Any]:
        """The class of every row; for multilabel and binary tasks those with a score above 0."""
        if self.about.get("task", MULTICLASS.name) == MULTICLASS.name:
            return scores.argmax(1).tolist()
        return [(row > 0).nonzero().flatten().tolist() for row in scores]


def _signature(given: Mapping[str, Any]) -> Signature:
    """As JSON has it: tuples are lists."""
    lists = {name: tuple(given[name]) for name in ("inputs", "dtypes")}
    return Signature(**{**given, **lists})


def load_export(path: str | Path) -> Exported:
    """Read what :func:`export_student` wrote: the program and the JSON beside it.

    A program is code: load those that you trust. An aoti package is machine code, and torch reads
    parts of a torch-export file as pickles.

    Raises:
        ValueError: there is no such JSON, the program is damaged, or a package to run it with is
            missing.
    """
    path, beside = Path(path), about_path(path)
    try:
        about = json.loads(beside.read_text())
        form, signature = about["format"], _signature(about["signature"])
        check_choice("format", form, ("torch-export", "aoti", "onnx"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must have {beside.name} beside it, as abkd-fast export writes it, got: {error}"
        ) from error
    if form == "onnx":
        return Exported(_onnx_session(path, signature.inputs), signature, about)
    if form == "aoti":
        return Exported(load_package(path), signature, about)
    try:
        program = torch.export.load(path)
    except (OSError, BadZipFile, RuntimeError, AssertionError, KeyError) as error:
        raise _not_ours(path, error) from error
    # Tracing sparse features leaves a guard that N is not 1, on which nothing depends.
    return Exported(program.module(check_guards=False), signature, about)


def _not_ours(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} must be a program that abkd-fast export wrote, got: {first_line(error)}; export "
        "it again"
    )


def _onnx_session(path: Path, names: Sequence[str]) -> Callable[..., Tensor]:
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise _not_ours(path, error) from error

    def run(*tensors: Tensor) -> Tensor:
        given = {name: part.numpy() for name, part in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def needed(module: str) -> Any:
    """An optional package, or ValueError that says how to get it."""
    try:
        return __import__(module)
    except ImportError as error:
        raise ValueError(
            f"format onnx needs the package {module}, which is not installed; pip install {module}"
        ) from error
