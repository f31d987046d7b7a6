"""Writing a student as a program, and checking what was written against the student."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from abkd_fast._binding import bind_arguments
from abkd_fast._checks import check_choice
from abkd_fast._neighborhood import probes
from abkd_fast._version import __version__
from abkd_fast.data import GraphData
from abkd_fast.export.compiled import check_compiler, compile_package
from abkd_fast.export.files import Exported, about_path, load_export, needed
from abkd_fast.export.fold import fold
from abkd_fast.export.program import Program
from abkd_fast.export.server import ExportedServer
from abkd_fast.export.standard import decompose
from abkd_fast.inductive import predict
from abkd_fast.task import MULTICLASS

FORMATS = {"torch-export": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}
_RTOL, _ATOL = 1e-4, 1e-5  # of scores
_QUERY_RTOL = {2: 0.1, 4: 1e-3, 8: 1e-3}  # of the largest score, by bytes of one


def export_student(
    model: nn.Module,
    data: GraphData,
    path: str | Path,
    *,
    format: str = "torch-export",
    weights: str | None = None,
    bake_graph: bool = False,
    first_hop: bool = False,
    read: Mapping[str, Any] | None = None,
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
        read: how ``data`` was read from files (:class:`abkd_fast.data.ReadOptions`), for the JSON.

    Returns:
        The program as read back; ``about`` holds differences and metrics of both.

    Raises:
        ValueError: the model or data cannot be exported so, or the scores differ: those of the
            whole graph, or those of a node from its neighbourhood.
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
            shapes, example = program.dynamic_shapes(), program.example(data)
            traced = torch.export.export(program, example, dynamic_shapes=shapes)
            traced = fold(traced, example, shapes["tensors"])
            _write(traced, new, format, list(signature.inputs), folds=weights is None)
        about_path(new).write_text(json.dumps(about, indent=1) + "\n")
        exported = load_export(new)
        expected, scores = predict(model, data, _plain), exported.predict(data)
        about |= {"dataset": data.name, "fingerprint": data.fingerprint(), "task": data.task}
        about |= {"read": None if read is None else dict(read), "bytes": new.stat().st_size}
        about |= _compare(data, expected, scores)
        with torch.no_grad():
            wanted = expected if weights is None else program(*signature.arguments(data))
        if not torch.allclose(scores, wanted, _RTOL, _ATOL):
            what = "the model's" if weights is None else f"those of the {weights} weights"
            raise ValueError(
                f"scores of the program must be {what}, got a difference of "
                f"{float((scores - wanted).abs().max()):.3g}; nothing was written to {path}"
            )
        if not bake_graph:
            _check_queries(exported, data, scores)
        about_path(new).write_text(json.dumps(about, indent=1) + "\n")
        for file in (new, about_path(new)):
            file.replace(path.with_name(file.name))
    exported.about = about
    return exported


def _plain(model: nn.Module, data: GraphData) -> Tensor:
    """Scores of the model, with nothing computed beforehand."""
    scores: Tensor = model(*bind_arguments(data, model, without=("aggregated_x",)))
    return scores


def _check_queries(exported: Exported, data: GraphData, scores: Tensor) -> None:
    """Raise ValueError unless single nodes get from their neighbourhoods their rows of scores."""
    server = ExportedServer(exported, data)
    for nodes in probes(data.graph):
        near, far = server(nodes), scores[nodes]
        most, bound = (near - far).abs().max(), _QUERY_RTOL[far.element_size()] * far.abs().max()
        if bool(most > bound):
            raise ValueError(
                f"model must score nodes by what lies within {exported.signature.hops} hops, one "
                f"for each of its layers, got other scores for nodes {nodes.tolist()} from there "
                f"than from the whole graph: a difference of {float(most):.3g} in scores of up to "
                f"{float(far.abs().max()):.3g}. A layer that is called twice, or a mean over all "
                "nodes, cannot be served; bake_graph exports it for the whole graph"
            )


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
    """Largest difference of scores, share of the same decisions, metrics of both.

    A decision is the class of a row, or for multilabel and binary tasks the sign of a score.
    """
    splits = dict(data._masks())
    metrics = {
        who: {split: data.kind.scores(given, data.y, mask) for split, mask in splits.items()}
        for who, given in (("checkpoint", expected), ("program", scores))
    }
    if data.kind is MULTICLASS:
        name, same = "same_argmax", expected.argmax(1) == scores.argmax(1)
    else:
        name, same = "same_sign", (expected > 0) == (scores > 0)
    most = (expected - scores).abs().max()
    share = float(same.double().mean())
    return {"max_difference": float(most), name: share, "metrics": metrics}
