"""Build of the optional C++ extension; everything else is in pyproject.toml.

The extension is an accelerator, not a requirement: without a compiler (or with
``ABKD_NO_EXTENSION=1``) the package installs all the same and uses its plain-torch
implementation, and says so in one line on first use. ``DEBUG=1`` builds with symbols, without
optimisation. ``ABKD_SANITIZE=1`` builds with AddressSanitizer and UBSan (``make sanitize``).

``ABKD_CUDA`` says whether the CUDA kernels (``csrc/cuda``) are built as well: ``auto`` (the
default) where torch is a CUDA build and nvcc is found, ``1`` always, or the build fails, ``0``
never. A visible GPU plays no part. ``TORCH_CUDA_ARCH_LIST`` changes the architectures.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:  # no torch at build time
    BuildExtension = None

DEBUG = os.environ.get("DEBUG") == "1"
SANITIZE = os.environ.get("ABKD_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
CUDA = os.environ.get("ABKD_CUDA", "auto")
ARCHITECTURES = "8.0;9.0+PTX"  # PTX: newer devices compile it when it loads
TORCH_2_10 = "0x020a000000000000"  # the oldest libtorch whose stable ABI the binary uses


def notice(text):
    print(f"abkd_fast: {text}", file=sys.stderr)


def sources(folder, *patterns):
    here = Path(__file__).parent
    paths = [path for pattern in patterns for path in (here / folder).glob(pattern)]
    return sorted(str(path.relative_to(here)) for path in paths)


def relative_paths():
    """Flags that leave this folder and torch's out of error messages, and so of the binary."""
    folders = Path(__file__).parent.resolve(), Path(torch.__file__).parent / "include"
    return [f"-fmacro-prefix-map={folder}/=" for folder in folders]


def extension():
    flags = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    if SANITIZE:
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS]
    return CppExtension(
        "abkd_fast._C",
        sources("csrc", "*.cpp") + sources("csrc/cpu", "*.cpp"),
        include_dirs=["csrc"],
        extra_compile_args={
            "cxx": [
                "-fvisibility=hidden",
                *relative_paths(),
                *flags,
                f"-DTORCH_TARGET_VERSION={TORCH_2_10}",
            ]
        },
        extra_link_args=SANITIZERS if SANITIZE else [],
        py_limited_api=True,
        optional=True,
    )


def why_no_cuda():
    """What the CUDA kernels lack to be built, or None."""
    if torch.version.cuda is None:
        return f"torch must be a CUDA build, got {torch.__version__}"
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return f"nvcc must be found, got CUDA_HOME={CUDA_HOME}; install the CUDA toolkit"
    return None


def wants_cuda():
    if CUDA not in ("auto", "0", "1"):
        sys.exit(f"abkd_fast: ABKD_CUDA must be auto, 0 or 1, got {CUDA!r}")
    missing = None if CUDA == "0" else why_no_cuda()
    if CUDA == "1" and missing is not None:
        sys.exit(f"abkd_fast: ABKD_CUDA=1, but {missing}")
    return CUDA != "0" and missing is None


def cuda_extension():
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_2_10}", "-DUSE_CUDA"]
    return CUDAExtension(
        "abkd_fast._C_cuda",
        sources("csrc/cuda", "*.cpp", "*.cu"),
        include_dirs=["csrc"],
        extra_compile_args={
            "cxx": ["-fvisibility=hidden", *relative_paths(), "-O2", "-g0", *defines],
            "nvcc": ["-O3", "-Xcompiler", "-fvisibility=hidden", *defines],
        },
        py_limited_api=True,
        optional=CUDA != "1",
    )


def optional_build():
    class OptionalBuild(BuildExtension):
        """Builds the CPU kernels or goes without; the CUDA kernels likewise, unless required."""

        def build_extensions(self):
            cuda = [e for e in self.extensions if e.name == "abkd_fast._C_cuda"]
            self.extensions = [e for e in self.extensions if e not in cuda]
            try:
                super().build_extensions()
            except (Exception, SystemExit) as error:
                notice(
                    f"the C++ extension was not built ({type(error).__name__}: {error}); the "
                    "package works without it, more slowly. Install a C++ compiler (GCC >= 9 "
                    "or Clang >= 12) and install again to get it."
                )
            if cuda:
                self.build_cuda(cuda)

        def build_cuda(self, cuda):
            built, self.extensions = self.extensions, cuda
            try:
                super().build_extensions()
            except (Exception, SystemExit) as error:
                if CUDA == "1":
                    raise
                notice(f"the CUDA kernels were not built ({type(error).__name__}: {error})")
            self.extensions = [*built, *cuda]

    return OptionalBuild


if os.environ.get("ABKD_NO_EXTENSION") == "1":
    notice("ABKD_NO_EXTENSION=1: the C++ extension is not built")
    setup()
elif BuildExtension is None:
    notice("torch is not importable during the build: the C++ extension is not built")
    setup()
else:
    setup(
        ext_modules=[extension(), *([cuda_extension()] if wants_cuda() else [])],
        cmdclass={"build_ext": optional_build()},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
