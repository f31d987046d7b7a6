"""The package as users install it."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import abkd_fast, torch
assert "site-packages" in abkd_fast.__file__, abkd_fast.__file__
import abkd_fast.kernels, abkd_fast.report, abkd_fast.cli
from abkd_fast._backend import backend_of
graph = abkd_fast.CSRGraph.from_edge_index(torch.tensor([[0, 1], [1, 1]]), 2)
assert abkd_fast.ops.spmm(graph, torch.eye(2)).tolist() == [[0, 0], [1, 1]]
print(backend_of("spmm")[0])
"""


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "abkd_fast").rglob("__init__.py")
    }
    assert found | {"abkd_fast.kernels"} == set(settings["packages"])
    assert settings["package-dir"]["abkd_fast.kernels"] == "kernels"


def test_import_is_light():
    """Only torch, numpy and scipy; the rest loads where it is used."""
    heavy = ("matplotlib", "rich", "sklearn", "jinja2", "tyro", "safetensors", "torch_geometric")
    code = f"import sys, abkd_fast; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


BARE = """
import sys
for name in {heavy}:
    sys.modules[name] = None  # an import of it fails
import torch
import abkd_fast as af
from abkd_fast.nn import GCN
n = 12
edges = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
masks = [torch.arange(n) % 3 == part for part in range(3)]
graph = af.CSRGraph.from_edge_index(edges, n)
data = af.GraphData(torch.randn(n, 4), graph, torch.arange(n) % 2, *masks)
teacher, student = GCN(4, 8, 3, 2), GCN(4, 2, 3, 2)
config = af.TrainConfig(epochs=3)
run = af.Distiller(teacher, student, data, af.KD() + af.ABKD(), config=config, callbacks=[])
print(sorted(run.fit().metrics["student"]["scores"]["test"]))
"""


def test_training_needs_torch_numpy_and_scipy_alone():
    """What bench/gpu_check.py promises to a machine on which nothing can be installed."""
    heavy = ("matplotlib", "rich", "sklearn", "jinja2", "tyro", "safetensors", "torch_geometric")
    code = BARE.format(heavy=heavy)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "['acc', 'macro_f1']", result.stdout + result.stderr


def test_version_is_in_one_place():
    import abkd_fast

    assert abkd_fast.__version__ in (ROOT / "abkd_fast" / "_version.py").read_text()


def environment(folder, **extra):
    """A clean virtual environment that sees this one's dependencies but not this package."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    here = Path(next(p for p in sys.path if p.endswith("site-packages")))
    for entry in here.iterdir():
        if not entry.name.lower().startswith(("abkd", "__editable__", "__pycache__")):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python", {**os.environ, **extra}


def run(*command, env=None, cwd):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, cwd=cwd
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def install(python, env, package, cwd):
    options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-index")
    return run(python, "-m", "pip", "install", "-v", *options, package, env=env, cwd=cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built from the files git would ship."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    listed = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=source)
    return folder


@pytest.mark.slow
def test_wheel_runs_in_a_clean_environment(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    assert "abi3" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "abkd_fast/kernels/__init__.py" in names and "abkd_fast/py.typed" in names
    assert "abkd_fast/report.html" in names
    assert "abkd_fast/report_style.css" in names and "abkd_fast/latency.html" in names
    python, env = environment(tmp_path / "venv")
    install(python, env, wheel, tmp_path)
    assert run(python, "-c", CHECK, env=env, cwd=tmp_path).stdout.strip() == "cpu"
    run(python, "-m", "pip", "check", env=env, cwd=tmp_path)
    command = tmp_path / "venv" / "bin" / "abkd-fast"
    settings = ("--train.epochs", 3, "--teacher-train.epochs", 3, "--teacher", "gcnii-2x8")
    run(command, "distill", *settings, env=env, cwd=tmp_path)
    assert (tmp_path / "runs" / "distill" / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_sdist_builds_the_extension(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert any(name.endswith("csrc/library.cpp") for name in names)
    assert any(name.endswith(".h") for name in names)
    python, env = environment(tmp_path / "venv")
    install(python, env, sdist, tmp_path)
    assert run(python, "-c", CHECK, env=env, cwd=tmp_path).stdout.strip() == "cpu"


@pytest.mark.slow
def test_without_a_compiler_it_installs_and_says_so_once(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    python, env = environment(tmp_path / "venv", CC="/nonexistent/cc", CXX="/nonexistent/c++")
    installed = install(python, env, sdist, tmp_path)
    assert "abkd_fast" in installed.stdout
    result = run(python, "-c", CHECK, env=env, cwd=tmp_path)
    assert result.stdout.strip() == "reference"
    notices = [line for line in result.stderr.splitlines() if line.startswith("abkd_fast:")]
    assert len(notices) == 1 and "compiler" in notices[0]
