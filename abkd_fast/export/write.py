"""Writing a student as a program, and checking what was written against the student."""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from abkd_fast._checks import check_choice
from abkd_fast._version import __version__
from abkd_fast.data import GraphData
from abkd_fast.export.compiled import check_compiler, compile_package
from abkd_fast.export.files import Exported, about_path, load_export, needed
from abkd_fast.export.program import Program
from abkd_fast.export.standard import decompose
from abkd_fast.inductive import predict

FORMATS = {"torch-export": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}
_RTOL, _ATOL = 1e-4, 1e-5  # of scores


def export_student(
    model: nn.Module,
    data: GraphData,
    path: str | Path,
    *,
    format: str = "torch-export",
    weights: str | None = None,
    bake_graph: bool = False,
    first_hop: bool = False,
) -> Exported:
    """Write ``model`` as a program, read it back, and compare its scores with the model's.

    The program takes features and the CSR arrays of the matrix that the layers multiply with,
    normalised already (:class:`abkd_fast.export.program.Signature`; for GCN and GCNII
    ``data.graph.gcn_norm()``), for any number of nodes and edges: those of the whole graph, of
    another graph, or the neighbourhood of a node.

    Args:
        model: GAT, GCN, GCNII, GraphSAGE or MLP.
        data: gives the kind of features and what scores are compared on; on the CPU.
        path: the file (``.pt2`` for aoti); a JSON of the same name with ``.json`` added is
            written beside it.
        format: "torch-export" or "aoti" (AOTInductor; needs a C++ compiler), with our ops in the
            graph; "onnx", of standard ops alone (GCN, GCNII, MLP, GraphSAGE with sum or mean).
        weights: None as trained; "bfloat16" or "int8" for the matrices, computed with as
            they were (:func:`abkd_fast.export.weights.pack`).
        bake_graph: the graph of ``data`` is part of the program, which then takes features alone.
        first_hop: x stands for A_hat X, computed once by the caller (GCN).

    Returns:
        The program as read back; ``about`` holds differences and metrics of both.

    Raises:
        ValueError: the model or data cannot be exported so, or the scores differ.
    """
    check_choice("format", format, tuple(FORMATS))
    path = Path(path)
    if format == "aoti":
        check_compiler(path)
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            needed(module)
    program = Program(model, data, weights=weights, bake_graph=bake_graph, first_hop=first_hop)
    signature = program.signature
    path.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"abkd_fast": __version__, "torch": torch.__version__}
    about |= {"format": format, "weights": weights, "signature": asdict(signature)}
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own use of what it deprecates
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            shapes, arguments = program.dynamic_shapes(), signature.arguments(data)
            traced = torch.export.export(program, arguments, dynamic_shapes=shapes)
            _write(traced, new, format, list(signature.inputs), folds=weights is None)
        about_path(new).write_text(json.dumps(about, indent=1) + "\n")
        exported = load_export(new)
        expected, scores = predict(model, data), exported.predict(data)
        about |= {"dataset": data.name, "bytes": new.stat().st_size}
        about |= _compare(data, expected, scores)
        with torch.no_grad():
            wanted = expected if weights is None else program(*arguments)
        if not torch.allclose(scores, wanted, _RTOL, _ATOL):
            what = "the model's" if weights is None else f"those of the {weights} weights"
            raise ValueError(
                f"scores of the program must be {what}, got a difference of "
                f"{float((scores - wanted).abs().max()):.3g}; nothing was written to {path}"
            )
        about_path(new).write_text(json.dumps(about, indent=1) + "\n")
        for file in (new, about_path(new)):
            file.replace(path.with_name(file.name))
    exported.about = about
    return exported


def _write(traced: ExportedProgram, path: Path, format: str, names: list[str], folds: bool) -> None:
    if format == "torch-export":
        traced.example_inputs = None  # else the file holds the whole graph and its features
        torch.export.save(traced, path)
    elif format == "aoti":
        compile_package(traced, path)
    else:
        standard = decompose(traced)
        torch.onnx.export(
            standard,
            f=path,
            input_names=names,
            output_names=["scores"],
            external_data=False,
            optimize=folds,  # which would store int8 weights as they are computed with
        )


def _compare(data: GraphData, expected: Tensor, scores: Tensor) -> dict[str, Any]:
    """Largest difference of scores, share of rows with the same largest one, metrics of both."""
    splits = dict(data._masks())
    metrics = {
        who: {split: data.kind.scores(given, data.y, mask) for split, mask in splits.items()}
        for who, given in (("checkpoint", expected), ("program", scores))
    }
    same = (expected.argmax(1) == scores.argmax(1)).double().mean()
    most = (expected - scores).abs().max()
    return {"max_difference": float(most), "same_argmax": float(same), "metrics": metrics}
