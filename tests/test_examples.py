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


def test_readme_links_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_readme_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
