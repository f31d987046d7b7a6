"""What the README and the examples show runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def run(code, cwd):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_readme_example(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    output = run(code, tmp_path)
    assert "'test':" in output and "torch.Size([16, 4])" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_models", "pyg_models"])
def test_example(name, tmp_path):
    output = run((ROOT / "examples" / f"{name}.py").read_text(), tmp_path)
    teacher, student = map(float, re.findall(r"([\d.]+) % test", output))
    assert teacher > 90 and student > 85, output


@pytest.mark.slow
def test_one_added_line_changes_no_number(abkd_data, tmp_path):
    pytest.importorskip("torch_geometric", reason="torch-geometric is not installed")
    script = str(ROOT / "examples/pyg_gcn_cora.py")
    found = []
    for flags in ([], ["--accelerate"]):
        command = [sys.executable, "-W", "error::UserWarning:__main__", script, *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append([float(x) for x in re.findall(r"loss ([\d.]+), ([\d.]+) %", done.stdout)[0]])
    (loss, accuracy), (fast_loss, fast_accuracy) = found
    assert fast_loss == pytest.approx(loss, abs=2e-3) and accuracy > 78
    assert fast_accuracy == pytest.approx(accuracy, abs=0.3)


def test_readme_links_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_readme_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
