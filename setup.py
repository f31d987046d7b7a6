"""Build of the optional C++ extension; everything else is in pyproject.toml.

The extension is an accelerator, not a requirement: without a compiler (or with
``ABKD_NO_EXTENSION=1``) the package installs all the same and uses its plain-torch
implementation, and says so in one line on first use. ``DEBUG=1`` builds with symbols, without
optimisation. ``ABKD_SANITIZE=1`` builds with AddressSanitizer and UBSan (``make sanitize``).
"""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:  # no torch at build time
    BuildExtension = None

DEBUG = os.environ.get("DEBUG") == "1"
SANITIZE = os.environ.get("ABKD_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
TORCH_2_10 = "0x020a000000000000"  # the oldest libtorch whose stable ABI the binary uses


def notice(text):
    print(f"abkd_fast: {text}", file=sys.stderr)


def extension():
    here = Path(__file__).parent
    sources = sorted(str(path.relative_to(here)) for path in (here / "csrc").rglob("*.cpp"))
    flags = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    if SANITIZE:
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS]
    return CppExtension(
        "abkd_fast._C",
        sources,
        include_dirs=["csrc"],
        extra_compile_args={
            "cxx": ["-fvisibility=hidden", *flags, f"-DTORCH_TARGET_VERSION={TORCH_2_10}"]
        },
        extra_link_args=SANITIZERS if SANITIZE else [],
        py_limited_api=True,
        optional=True,
    )


def optional_build():
    class OptionalBuild(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except (Exception, SystemExit) as error:
                notice(
                    f"the C++ extension was not built ({type(error).__name__}: {error}); the "
                    "package works without it, more slowly. Install a C++ compiler (GCC >= 9 "
                    "or Clang >= 12) and install again to get it."
                )

    return OptionalBuild


if os.environ.get("ABKD_NO_EXTENSION") == "1":
    notice("ABKD_NO_EXTENSION=1: the C++ extension is not built")
    setup()
elif BuildExtension is None:
    notice("torch is not importable during the build: the C++ extension is not built")
    setup()
else:
    setup(
        ext_modules=[extension()],
        cmdclass={"build_ext": optional_build()},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
