"""What ``abkd-fast export`` does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from abkd_fast._trained import check_fits, data_of, model_path
from abkd_fast.config import ReadOptions
from abkd_fast.export.files import Exported
from abkd_fast.export.write import FORMATS, export_student
from abkd_fast.model_file import load_model


@dataclass(frozen=True)
class ExportOptions:
    """export: a student as a program, checked against the student (docs/export.md)."""

    student: tyro.conf.Positional[Path]
    """Model file, or folder of distill."""
    format: Literal["torch-export", "aoti", "onnx"] = "torch-export"
    """aoti: AOTInductor, compiled, our ops inside; onnx: standard ops alone."""
    out: Path | None = None
    """File to write; default: beside the student, with the format's ending."""
    weights: Literal["bfloat16", "int8"] | None = None
    """Narrower matrices; default: as trained."""
    bake_graph: bool = False
    """Keep the data's graph in the program, which then takes features alone."""
    first_hop: bool = False
    """The program takes A_hat X in place of X (GCN)."""
    dataset: str | None = None
    """A registered data set; default: the one that the student was trained on."""
    data: Path | None = None
    """Your own data instead: FILE.npz or a folder."""
    root: Path | None = None
    """Folder with the raw files; default: $ABKD_DATA."""
    read: tyro.conf.FlagConversionOff[ReadOptions] = ReadOptions()
    """How to read --data: as for training."""


def run_export(options: ExportOptions) -> Exported:
    """Write the program and print how it compares with the student."""
    file = model_path(options.student)
    model, about = load_model(file)
    data = data_of(options.data, options.dataset, options.root, options.read, about.dataset)
    check_fits(about, data, "the student")
    out = options.out or file.with_name(file.stem + FORMATS[options.format])
    exported = export_student(
        model,
        data,
        out,
        format=options.format,
        weights=options.weights,
        bake_graph=options.bake_graph,
        first_hop=options.first_hop,
        read=None if options.data is None else asdict(options.read),
    )
    _show(exported, f"{about.spec} on {data.name}, {options.format}")
    print(f"program: {out} ({exported.about['bytes']:,} bytes), {out.name}.json says what it takes")
    return exported


def _show(exported: Exported, title: str) -> None:
    about = exported.about
    metrics = about["metrics"]
    table = Table("", "checkpoint", "program", title=title)
    for split in ("train", "val", "test"):
        for name, value in metrics["checkpoint"][split].items():
            program = metrics["program"][split][name]
            table.add_row(f"{split} {name} (%)", f"{value:.2f}", f"{program:.2f}")
    table.add_row("weights", "as trained", about["weights"] or "as trained")
    table.add_row("largest difference of scores", "", f"{about['max_difference']:.2g}")
    kept = {"same_argmax": "rows with the same class", "same_sign": "scores of the same sign"}
    for name in kept.keys() & about.keys():
        table.add_row(f"{kept[name]} (%)", "", f"{100 * about[name]:.2f}")
    Console().print(table)
    print("inputs: " + ", ".join(_inputs(exported)))


def _inputs(exported: Exported) -> list[str]:
    signature = exported.signature
    pairs = zip(signature.inputs, signature.dtypes, strict=True)
    return [f"{name} {dtype}" for name, dtype in pairs]
