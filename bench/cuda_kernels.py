"""Compile csrc/cuda ahead of time and write what ptxas says of each kernel; needs no GPU.

    python bench/cuda_kernels.py [--out docs/gpu-kernels-cuda.md]

Every kernel is compiled for sm_80 and sm_90. The table has the kernels that int32 indices and
16-byte vectors use; the line below it covers all of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_90")
# What torch's own build adds: no implicit conversions of 16-bit floats.
FLAGS = ["-std=c++17", "-O3", "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__"]
FLAGS += ["-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__"]
TYPES = {"f": "float32", "d": "float64", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
TYPE = f"({'|'.join(TYPES)})"
MODES = ("spmm", "conv", "conv, dropping what it gathers")
PROPERTIES = re.compile(
    r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel: what it is, and what it takes of a multiprocessor."""

    name: str
    arch: str
    stage: str
    op: str
    dtype: str
    indices: str
    columns: int
    vectors: int
    registers: int
    shared: int
    spilled: int


def find_nvcc() -> str | None:
    """Path of nvcc, by CUDA_HOME, PATH and the usual place."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    return next((str(path) for path in places if path.exists()), shutil.which("nvcc"))


def describe(name: str) -> tuple[str, str, str, str, int, int]:
    """(stage, op, dtype, indices, columns a vector, vectors a lane) of a mangled name."""
    if found := re.search(rf"dropout_kernelI{TYPE}E", name):
        return "", "dropout", TYPES[found[1]], "", 4, 1
    stage = "join" if "join_pieces_kernel" in name else "aggregate"
    found = re.search(rf"(3Sum|8Extremum)I{TYPE}([il])Li(\d+)ELi(\d+)E(?:LNS0_4ModeE(\d))?", name)
    if found is None:
        raise ValueError(f"name must be that of a kernel of csrc/cuda, got {name}")
    op = MODES[int(found[6])] if found[6] else "spmm_extremum"
    indices = "int32" if found[3] == "i" else "int64"
    return stage, op, TYPES[found[2]], indices, int(found[4]), int(found[5])


def parse(text: str, arch: str) -> list[Kernel]:
    """The kernels of one run of ptxas -v."""
    kernels = []
    for name, stack, stores, loads, registers, shared in PROPERTIES.findall(text):
        spilled = int(stack) + int(stores) + int(loads)
        resources = int(registers), int(shared or 0), spilled
        kernels.append(Kernel(name, arch, *describe(name), *resources))
    return kernels


def compile_all(nvcc: str, jobs: int | None = None) -> list[Kernel]:
    """Every kernel of csrc/cuda for every architecture."""
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

    def compile_one(task: tuple[Path, str]) -> list[Kernel]:
        source, arch = task
        with tempfile.TemporaryDirectory() as folder:
            target = ["-cubin", f"-arch={arch}", "-o", f"{folder}/{source.stem}.cubin"]
            command = [nvcc, *FLAGS, "-Xptxas", "-v", *target, str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return parse(done.stderr, arch)

    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        found = pool.map(compile_one, [(s, a) for s in sources for a in ARCHITECTURES])
        return [kernel for part in found for kernel in part]


def version(nvcc: str) -> str:
    """Release of the compiler, such as 13.0."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", text)[1]  # type: ignore[index]


def table(kernels: list[Kernel], release: str) -> str:
    """The page."""
    facts = ("registers", "shared bytes", "join: registers")
    heads = [f"{arch}: {fact}" for arch in ARCHITECTURES for fact in facts]
    lines = [
        "# CUDA kernels as compiled",
        "",
        f"Written by `python bench/cuda_kernels.py` with nvcc {release}; nothing here was run or",
        "measured on a GPU. Blocks have 256 threads. `columns x vectors` is what a lane holds of a",
        "row; a vector is one 16-byte load; four edges at a time are under way (dropout: four",
        "elements a thread). `join` is the second stage of rows of more than 2048 edges.",
        "",
        f"| {' | '.join(('op', 'dtype', 'columns x vectors', *heads))} |",
        f"| --- | --- | --- | {' | '.join(['---:'] * len(heads))} |",
    ]
    by = {(k.op, k.dtype, k.columns, k.vectors, k.stage, k.arch, k.indices): k for k in kernels}
    shown = [k for k in kernels if k.arch == ARCHITECTURES[0] and k.stage != "join"]
    shown = [k for k in shown if k.columns > 1 and k.indices != "int64"]
    for k in sorted(shown, key=lambda k: (k.op, k.dtype, k.columns, k.vectors)):
        cells = [k.op, k.dtype, f"{k.columns} x {k.vectors}"]
        for arch in ARCHITECTURES:
            key = (k.op, k.dtype, k.columns, k.vectors)
            this = by[*key, k.stage, arch, k.indices]
            join = by.get((*key, "join", arch, k.indices))
            cells += [str(this.registers), str(this.shared), str(join.registers) if join else ""]
        lines.append(f"| {' | '.join(cells)} |")
    most = max(k.registers for k in kernels)
    spilled = sum(k.spilled > 0 for k in kernels)
    lines += [
        "",
        f"All {len(kernels)} kernels (int64 indices and odd widths too): at most {most} registers, "
        f"{spilled} with spills.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu-kernels-cuda.md")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc must be found on PATH or under CUDA_HOME; install the CUDA toolkit")
    kernels = compile_all(nvcc)
    options.out.write_text(table(kernels, version(nvcc)))
    print(options.out)


if __name__ == "__main__":
    main()
