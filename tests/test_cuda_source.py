"""What can be said of csrc/cuda without a GPU or nvcc: its launches, its schedule, its build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import abkd_fast._cuda as cuda
from abkd_fast._backend import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for p in (ROOT / "csrc" / "cuda").iterdir() if p.suffix in (".cu", ".cuh"))
LAUNCH = re.compile(r"<<<(.*?)>>>", re.DOTALL)
GXX = shutil.which("g++")


def test_every_launch_names_the_stream_that_the_host_passed():
    launches = [(path, found) for path in SOURCES for found in LAUNCH.findall(path.read_text())]
    assert len(launches) == 3
    for path, configuration in launches:
        arguments = [part.strip() for part in re.sub(r"\(.*?\)", "", configuration).split(",")]
        assert len(arguments) == 4 and arguments[3] == "stream", (path, configuration)
    for path in SOURCES:
        text = path.read_text()
        assert text.count("cudaStream_t stream = static_cast<cudaStream_t>(on);") == (
            "<<<" in text
        ), path


def test_kernels_have_no_atomics_and_no_host_sync():
    for path in [*SOURCES, ROOT / "csrc" / "cuda" / "library.cpp"]:
        text = path.read_text()
        assert not re.search(r"\batomic|Synchronize|cudaMemcpy|cudaMalloc", text), path


@pytest.mark.skipif(GXX is None, reason="no g++")
def test_schedule_finds_every_hub_once_and_covers_every_row(tmp_path):
    program = tmp_path / "schedule"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]
    source = ROOT / "tests" / "cuda_schedule.cpp"
    command = [GXX, *flags, f"-I{ROOT / 'csrc' / 'cuda'}", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.stdout == "good\n" and done.returncode == 0, done.stdout + done.stderr


def test_implementations_are_of_ops_that_exist():
    assert set(cuda.OPS) <= set(SCHEMAS)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_without_cuda_the_reason_and_the_fix_are_named():
    there, why = cuda.load()
    assert not there and "abkd_fast._C_cuda" in why and "ABKD_CUDA=1" in why


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(
            "1",
            "abkd_fast: ABKD_CUDA=1, but torch must be a CUDA build, got ",
            marks=pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA"),
        ),
        ("yes", "abkd_fast: ABKD_CUDA must be auto, 0 or 1, got 'yes'"),
    ],
)
def test_the_build_refuses_what_it_cannot_do(value, message):
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env=os.environ | {"ABKD_CUDA": value, "ABKD_NO_EXTENSION": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and message in done.stderr, done.stderr
