"""Which implementation serves an op, the notice when it is not the kernels, and all of them."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import abkd_fast
from abkd_fast import _backend, backend, kernels, reference
from abkd_fast._backend import SCHEMAS, backend_of, has_backend
from abkd_fast.ops import OPS, spmm
from abkd_fast.testing import random_graph

ROOT = Path(__file__).parent.parent
BUILT = backend_of("spmm")[0] == "cpu"
needs_extension = pytest.mark.skipif(not BUILT, reason=f"no C++ extension: {backend_of('spmm')[1]}")
PRINT_BACKEND = "import abkd_fast.ops; from abkd_fast._backend import *; print(*backend_of('spmm'))"


def run(*command, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ABKD_", "TRITON_"))}
    return subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_schema_is_the_one_in_the_table(name):
    schema = getattr(torch.ops.abkd_fast, name).default._schema
    assert str(schema) == f"abkd_fast::{name}{SCHEMAS[name]}"


def test_every_op_of_the_extension_is_in_the_table():
    source = (ROOT / "csrc" / "library.cpp").read_text()
    assert set(re.findall(r'm\.def\(\s*"(\w+)\(', source)) == set(SCHEMAS)


@needs_extension
def test_the_binary_names_no_folder_of_the_build():
    """Messages of torch's checks start with the file that they are in."""
    binary = Path(abkd_fast.__file__).with_name("_C.abi3.so").read_bytes()
    assert b"csrc/cpu/" in binary and str(ROOT).encode() not in binary


def test_backend_of():
    backend, why = backend_of("spmm")
    assert (backend, why) in [
        ("cpu", f"C++ extension, {_backend._isa} kernels"),
        ("reference", _backend._why),
    ]
    torch_pass = ("torch", "one pass over node blocks, in torch matrix products")
    assert backend_of("layer_pair") == ((backend, why) if BUILT else torch_pass)
    there, why = has_backend("spmm", "triton")
    on_cuda = backend_of("spmm", "cuda")
    assert on_cuda == ("triton", why) if there else on_cuda[1].startswith(why)
    assert backend_of("spmm", "meta") == ("reference", "no kernel for meta")
    with pytest.raises(ValueError, match="op_name must be an op of abkd_fast.ops, got 'spam'"):
        backend_of("spam")


def test_a_chosen_back_end_serves_within_the_context():
    graph, x = random_graph(9, dtype=torch.float32), torch.randn(9, 3)
    usual, served = spmm(graph, x), backend_of("spmm")
    compiled = torch.compile(lambda x: spmm(graph, x), fullgraph=True, backend="aot_eager")
    compiled(x)
    with backend("reference"):
        assert backend_of("spmm")[0] == backend_of("spmm", "cuda")[0] == "reference"
        assert torch.equal(spmm(graph, x), reference.spmm(graph, x))
        assert torch.equal(compiled(x), reference.spmm(graph, x))
        if BUILT:
            with backend("cpu"):
                assert backend_of("spmm") == served
                assert torch.equal(spmm(graph, x), usual)
        assert backend_of("spmm")[0] == "reference"
    assert backend_of("spmm") == served
    assert torch.equal(spmm(graph, x), usual)


def test_a_choice_ends_with_an_error_in_the_context():
    served = backend_of("spmm")
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert backend_of("spmm") == served


def test_a_choice_reaches_gradients():
    graph = random_graph(9, 7, dtype=torch.float32)
    seen = []
    selection = _backend._selection
    whole = dict(selection._references)

    def spy(*arguments):
        seen.append(arguments)
        return whole["spmm"](*arguments)

    selection._references["spmm"] = spy
    try:
        with backend("reference"):
            x = torch.randn(7, 3, requires_grad=True)
            spmm(graph, x).sum().backward()
    finally:
        selection._references["spmm"] = whole["spmm"]
    assert len(seen) == 2  # forward, and backward on the transpose


def test_back_ends_that_are_not_there_say_why(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of cpu, triton, .*, got 'gpu'"):
        backend("gpu").__enter__()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda': the cuda back end does not take cpu"):
            backend("cuda").__enter__()
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="'triton': (Triton needs a GPU|triton is not inst)"):
            backend("triton").__enter__()
    assert backend_of("spmm")[0] in ("cpu", "reference")


def test_without_the_extension_the_cpu_back_end_says_why():
    code = "import abkd_fast as af; af.backend('cpu').__enter__()"
    done = run(sys.executable, "-c", code, ABKD_NO_EXTENSION="1")
    assert "backend must be available, got 'cpu': ABKD_NO_EXTENSION=1 is set" in done.stderr


def test_every_launcher_has_the_arguments_of_its_operator():
    if not has_backend("spmm", "triton")[0]:
        pytest.skip(has_backend("spmm", "triton")[1])
    for op, module in kernels.MODULES.items():
        launcher = getattr(importlib.import_module(f"abkd_fast.kernels.{module}"), op)
        names = [a.name for a in getattr(torch.ops.abkd_fast, op).default._schema.arguments]
        assert list(inspect.signature(launcher).parameters) == names, op


@pytest.mark.parametrize("operator", list(SCHEMAS))
def test_every_operator_has_a_kernel_on_a_gpu_or_a_reason_to_be_torchs(operator):
    if not has_backend("spmm", "triton")[0]:
        pytest.skip(has_backend("spmm", "triton")[1])
    assert (operator in kernels.MODULES) != (operator in _backend.BY_TORCH)
    serves, why = backend_of(operator, "cuda")
    if operator in _backend.BY_TORCH:
        assert (serves, why) == ("torch", _backend.BY_TORCH[operator])
    else:
        assert (serves, why) in [("triton", "Triton kernels"), ("cuda", why)]


def test_importing_the_package_does_not_import_triton():
    done = run(sys.executable, "-c", "import abkd_fast, sys; print('triton' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_reference_on_request_says_so_in_one_line():
    done = run(sys.executable, "-c", PRINT_BACKEND, ABKD_NO_EXTENSION="1")
    assert done.stdout.startswith("reference ABKD_NO_EXTENSION=1 is set"), done.stderr
    assert done.stderr.splitlines() == [
        "abkd_fast: using plain torch, which is slower: ABKD_NO_EXTENSION=1 is set; unset it"
    ]


def test_reference_without_the_extension_names_reason_and_fix():
    hide = "import sys; sys.modules['abkd_fast._C'] = None; " + PRINT_BACKEND
    done = run(sys.executable, "-c", hide)
    assert done.stdout.startswith("reference "), done.stderr
    (line,) = done.stderr.splitlines()
    assert "abkd_fast._C" in line and "install a C++ compiler and run `pip install" in line


@needs_extension
def test_the_extension_prints_nothing():
    done = run(sys.executable, "-c", PRINT_BACKEND)
    assert done.stdout.startswith("cpu C++ extension") and done.stderr == ""


@needs_extension
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_a_smaller_instruction_set_on_request(isa):
    if isa == "avx2" and _backend._isa not in ("avx512", "avx2"):
        pytest.skip("this processor has no AVX2")
    done = run(sys.executable, "-c", PRINT_BACKEND, ABKD_ISA=isa)
    assert done.stdout == f"cpu C++ extension, {isa} kernels\n", done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"ABKD_NO_EXTENSION": "1"}, id="reference"),
        pytest.param({"ABKD_ISA": "avx2"}, id="avx2", marks=needs_extension),
        pytest.param({"ABKD_ISA": "baseline"}, id="baseline", marks=needs_extension),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_ops_on_the_other_back_ends(op, environment):
    command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider"]
    files = sorted(str(path) for path in (ROOT / "tests").glob(f"test_{op}*.py"))
    assert files, f"{op} has no test file"
    chosen = ["-k", "not compiles", *files]
    done = run(*command, *chosen, OMP_NUM_THREADS="1", **environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.parametrize("op", ["spmm", "dropout", "segment_csr", "conv", "linear", "kl_div"])
def test_ops_in_the_interpreter_of_triton(op):
    if not has_backend(op, "triton")[0]:
        pytest.skip(has_backend(op, "triton")[1])
    command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider"]
    names = (f"test_{op}.py", f"test_{op}_grad.py")
    files = [str(ROOT / "tests" / name) for name in names if (ROOT / "tests" / name).exists()]
    # The oracle's cases are in test_triton_*; thousands of rows are too many for an interpreter,
    # which also truncates to bfloat16. Labels are rejected by the C++ kernel alone.
    heavy = "matches_reference or to_the_bit or hundred_thousand or third_derivatives or gradcheck"
    heavier = "independence or added_in_float64 or 16_bit_pattern or short_rows"
    heavier += " or threads_and_repeats or rejects or wide_features"
    chosen = ["-k", f"not ({heavy} or {heavier})", *files]
    done = run(*command, *chosen, ABKD_TEST_BACKEND="triton", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.fixture
def source(tmp_path):
    """What a build needs, in a folder of its own."""
    for name in ("csrc", "kernels", "abkd_fast"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("readme")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "notice"),
    [
        ({"CXX": "/bin/false"}, "abkd_fast: the C++ extension was not built ("),
        ({"ABKD_NO_EXTENSION": "1"}, "abkd_fast: ABKD_NO_EXTENSION=1: the C++ extension is not"),
    ],
    ids=["broken-compiler", "on-request"],
)
def test_installs_without_the_extension(source, environment, notice):
    target = source / "target"
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps"]
    done = run(*command, "--target", str(target), str(source), **environment)
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert notice in output, output
    assert (target / "abkd_fast" / "ops" / "spmm.py").exists()
    assert not list(target.rglob("*.so"))


@pytest.mark.slow
@needs_extension
def test_a_wheel_holds_one_binary_for_every_python(source):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    done = run(*command, "-w", str(source / "dist"), str(source))
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
