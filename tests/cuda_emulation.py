"""csrc/cuda built for the CPU, on tests/cuda_emulator: kernels and host code, torch's own ops."""

import re
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = re.compile(r"([\w:<>]+?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-w"]
# A misaligned store or a shift too far ends the process, without a run-time library.
FLAGS += ["-fsanitize=alignment,shift,bounds", "-fsanitize-undefined-trap-on-error"]
DEFINES = ["ABKD_DEVICE=CPU", "USE_CUDA", "TORCH_TARGET_VERSION=0x020a000000000000"]


def plain_cpp(source):
    """CUDA C++ with its launches turned into calls."""
    return LAUNCH.sub(r"emulator::launch(\2, [&] { \1(\3); });", source)


def build(folder):
    """Compile into ``folder`` and register ``torch.ops.abkd_fast.*_cuda`` for the CPU."""
    for name in ("cuda", "cpu"):
        (folder / name).mkdir(parents=True)
    for path in (ROOT / "csrc" / "cuda").iterdir():
        suffix = ".cpp" if path.suffix == ".cu" else path.suffix
        text = plain_cpp(path.read_text())
        (folder / "cuda" / f"{path.stem}{suffix}").write_text(text)
    for name in ("check.h", "cpu/dispatch.h"):
        (folder / name).write_text((ROOT / "csrc" / name).read_text())
    emulator = ROOT / "tests" / "cuda_emulator"
    includes = [str(emulator), str(folder), *include_paths(), sysconfig.get_path("include")]
    sources = [*sorted((folder / "cuda").glob("*.cpp")), emulator / "stream.cpp"]

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        defines = [f"-D{name}" for name in DEFINES]
        paths = [f"-I{path}" for path in includes]
        run("g++", "-c", str(source), "-o", str(target), *FLAGS, *defines, *paths)
        return str(target)

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, sources))
    library = str(folder / "_C_cuda.so")
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    run("g++", "-shared", "-Wl,-Bsymbolic", "-o", library, *objects, *libraries)
    torch.ops.load_library(library)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
