"""The ``abkd-fast`` command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import tyro

from abkd_fast._version import __version__
from abkd_fast.config import DistillConfig, SettingError, TeacherConfig
from abkd_fast.presets import TEACHERS, distill_preset, teacher_preset
from abkd_fast.result import TrainingError

_USAGE = f"""abkd-fast {__version__}: distil large graph neural networks into small ones (ABKD)

usage: abkd-fast COMMAND [--help] [options]

commands
  distill        train a small student on a large teacher; writes --out/report/index.html
  train-teacher  train a model on labels alone
  study          run a whole comparison from a file: docs/study/README.md
  profile        latency of students beside their teacher; writes --out/latency.html
  export         a student as a program for serving: torch.export, AOTInductor, ONNX
  bench          time every op against its peers, or two versions of ours (in a checkout)
  datasets       list the data sets and where they are looked for
  doctor         show versions and which back end serves each op, and why

examples
  abkd-fast distill                                     the embedded digits graph, two minutes
  abkd-fast distill --preset paper-cora --seeds 5 --out runs/cora
                                                        GCNII 64 x 64 -> 4 x 4 on Cora
  abkd-fast distill --data my.npz --teacher gcnii-16x64 --student gcnii-4x8 --out runs/mine
  abkd-fast distill --data my.npz --teacher gcnii-16x64 --compression 60x --out runs/small
  abkd-fast profile runs/small runs/teacher             p50 to p99, memory, one HTML page

several processes: torchrun --nproc-per-node 2 -m abkd_fast distill ...

presets for distill and train-teacher: {", ".join(TEACHERS)}
exit codes: 0 done, 1 a file, the data or the run failed, 2 wrong flags, 130 interrupted
"""


_RESUMED = ("distill", "train-teacher", "study")
Preset = Literal["paper-cora", "paper-citeseer", "paper-pubmed", "paper-gat-cora", "paper-aifb"]


@dataclass(frozen=True)
class WithPreset:
    """--preset, beside the flags that it gives defaults to."""

    preset: Preset | None = None
    """Settings to start from; the other flags change them."""


@dataclass(frozen=True)
class Distill(WithPreset, DistillConfig):
    """distill: train a student on a teacher."""


@dataclass(frozen=True)
class TrainTeacher(WithPreset, TeacherConfig):
    """train-teacher: train a model on labels alone."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0, 1 (a file, the data or the run failed) or 2 (wrong flags)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "distill": _distill,
        "train-teacher": _train_teacher,
        "study": _study,
        "profile": _profile,
        "export": _export,
        "bench": _bench,
        "datasets": _datasets,
        "doctor": _doctor,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, end="")
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in commands:
        print(f"{_USAGE}\nerror: unknown command {argv[0]!r}", file=sys.stderr)
        sys.exit(2)
    try:
        commands[argv[0]](argv[1:])
    except (ValueError, OSError, TrainingError) as error:
        if os.environ.get("ABKD_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingError) else 1)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint"
        print(f"\nstopped{goes_on if argv[0] in _RESUMED else ''}", file=sys.stderr)
        sys.exit(130)


def _distill(argv: list[str]) -> None:
    from abkd_fast.runs import distill

    preset = _preset(argv)
    config = _parse("distill", Distill(**vars(distill_preset(preset)), preset=preset), argv)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from abkd_fast.distributed.runs import distill_together

        metrics = distill_together(config, argv)
    else:
        metrics = distill(config, _command("distill", argv))
    if metrics is not None:
        _show(metrics, config.out)


def _train_teacher(argv: list[str]) -> None:
    from abkd_fast.runs import train_teacher

    preset = _preset(argv)
    default = TrainTeacher(**vars(teacher_preset(preset)), preset=preset)
    config = _parse("train-teacher", default, argv)
    _show(train_teacher(config, _command("train-teacher", argv)), config.out)


@dataclass(frozen=True)
class StudyOptions:
    """study: run what a study file asks for and is not done yet; Ctrl-C or a kill loses little."""

    study: tyro.conf.Positional[Path]
    """STUDY.toml (see docs/study/README.md); results go to the folder of that name beside it."""
    workers: int | None = None
    """Runs at a time, in place of the file's."""
    only: tuple[str, ...] = ()
    """Data sets of the file to run now, the others later."""
    predict: bool = False
    """Say how long what is left would take, and stop."""
    retry: bool = False
    """Run again what failed before."""
    place: Path | None = None
    """Folder for teachers and logs; default: runs/study."""


def _study(argv: list[str]) -> None:
    from abkd_fast.study.runner import run_study
    from abkd_fast.study.spec import load_study

    options = tyro.cli(StudyOptions, prog="abkd-fast study", args=argv)
    study = load_study(options.study, options.only, options.workers)
    failed = run_study(study, options.place, options.predict, options.retry)
    if not options.predict:
        print(f"results: {study.folder}")
    if failed:
        raise TrainingError(f"{len(failed)} runs failed:\n  " + "\n  ".join(failed))


def _profile(argv: list[str]) -> None:
    from abkd_fast.latency.command import run_profile
    from abkd_fast.latency.settings import ProfileConfig

    models, flags = _leading(argv)
    default = ProfileConfig(students=tuple(models[:1]), teacher=next(iter(models[1:]), None))
    config = _parse("profile", default, flags)
    if models and any(flag.split("=")[0] == "--students" for flag in flags):
        config = replace(config, students=(models[0], *config.students))
    if len(models) > 2:
        raise SettingError(
            f"profile takes STUDENT [TEACHER], got {len(models)} paths; more students: --students"
        )
    run_profile(config, _command("profile", argv))


def _export(argv: list[str]) -> None:
    from abkd_fast.export.command import ExportOptions, run_export

    run_export(tyro.cli(ExportOptions, prog="abkd-fast export", args=argv))


def _bench(argv: list[str]) -> None:
    import subprocess

    from abkd_fast._checkout import find_checkout

    root = find_checkout(Path.cwd(), Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(root / "bench" / "bench.py"), *argv]
    sys.exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)


def _leading(argv: list[str]) -> tuple[list[Path], list[str]]:
    """(paths before the first flag, the rest)."""
    first = next((i for i, part in enumerate(argv) if part.startswith("-")), len(argv))
    return [Path(part) for part in argv[:first]], argv[first:]


def _datasets(argv: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from abkd_fast import data

    tyro.cli(_no_options, prog="abkd-fast datasets", args=argv)
    rows = data.describe()
    columns = ("name", "summary", "nodes", "edges", "features", "classes", "split", "source")
    table = Table(*columns, title="data sets", padding=(0, 0))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*[str(row[column]) for column in columns])
    Console().print(table)
    root = os.environ.get("ABKD_DATA")
    print(
        "files are looked for in\n"
        "  1. DIR/<name>/ with --root DIR, where nothing is downloaded\n"
        f"  2. $ABKD_DATA/<name>/, likewise: {root or 'not set'}\n"
        f"  3. {data.cache_dir()}/<name>/, downloaded when missing"
    )


def _doctor(argv: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from abkd_fast import ops
    from abkd_fast._backend import BACKENDS, backend_of, has_backend
    from abkd_fast.metrics import environment

    tyro.cli(_no_options, prog="abkd-fast doctor", args=argv)
    table = Table("op", *BACKENDS, "serves CPU", "serves CUDA", title="back ends")
    whys: dict[tuple[str, str], list[str]] = {}
    for op in ops.OPS:
        found = [has_backend(op, name) for name in BACKENDS]
        for name, (_, why) in zip(BACKENDS, found, strict=True):
            whys.setdefault((name, why), []).append(op)
        marks = ["yes" if there else "no" for there, _ in found]
        table.add_row(op, *marks, backend_of(op)[0], backend_of(op, "cuda")[0])
    reasons = Table("back end", "why", "ops", title="why")
    for (name, why), served in sorted(whys.items()):
        reasons.add_row(name, why, ", ".join(served))
    facts = Table("what", "found", title="environment")
    for name, value in environment().items():
        facts.add_row(name, str(value))
    console = Console()
    console.print(table)
    console.print(reasons)
    console.print(facts)


def _no_options() -> None:
    """This command takes no options."""


def _parse(command: str, default: Any, argv: list[str]) -> Any:
    return tyro.cli(
        type(default),
        config=(tyro.conf.FlagConversionOff,),
        prog=f"abkd-fast {command}",
        default=default,
        args=argv,
    )


def _preset(argv: list[str]) -> Preset | None:
    """The preset among the flags, if it is one: it decides what the other flags default to."""
    named = [value for flag, value in pairwise(argv) if flag == "--preset"]
    named += [flag.removeprefix("--preset=") for flag in argv if flag.startswith("--preset=")]
    return cast(Preset, named[-1]) if named and named[-1] in TEACHERS else None


def _command(command: str, argv: list[str]) -> str:
    return shlex.join(["abkd-fast", command, *argv])


def _show(metrics: dict[str, Any], out: Any) -> None:
    from abkd_fast.report import print_summary

    print_summary(metrics)
    print(f"report: {out / 'report' / 'index.html'}")
