"""Triton kernels compile for GPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_cases import needs_triton

from abkd_fast import kernels

pytestmark = needs_triton
BENCH = Path(__file__).parent.parent / "bench"


def compile_kernels(folder, *options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    return subprocess.run(
        [sys.executable, str(BENCH / "compile_kernels.py"), *options],
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )


def test_one_kernel_compiles(tmp_path):
    page = tmp_path / "page.md"
    done = compile_kernels(tmp_path, "--op", "sddmm", "--arch", "90", "--write", str(page))
    assert done.returncode == 0, done.stderr
    row = next(line for line in page.read_text().splitlines() if "float32, 64 wide" in line)
    registers, spills, shared = row.split("|")[-2].split("/")
    assert 16 <= int(registers) <= 255 and int(spills) == 0 and int(shared) >= 0


def test_every_operator_has_samples():
    files = [BENCH / f"{part}_samples.py" for part in ("kernel", "layer")]
    table = "".join(file.read_text().split("SAMPLES = {")[1] for file in files)
    assert [op for op in kernels.MODULES if f'"{op}": ' not in table] == []


@pytest.mark.slow
@pytest.mark.parametrize("op", ["spmm", "linear"])
def test_what_the_autotuner_would_time_compiles(op, tmp_path):
    done = compile_kernels(tmp_path, "--op", op, "--arch", "80", "--candidates")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    default = compile_kernels(tmp_path, "--op", op, "--arch", "80")
    assert len(done.stdout.splitlines()) > 4 * len(default.stdout.splitlines()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("op", list(kernels.MODULES))
def test_default_configurations_compile_for_every_target_and_do_not_spill(op, tmp_path):
    done = compile_kernels(tmp_path, "--op", op)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "/ 0 /" in done.stdout
