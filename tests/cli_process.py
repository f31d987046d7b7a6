"""The command in a process of its own, or in this one."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

from abkd_fast.cli import main


def run_process(*args, cwd):
    command = [str(Path(sys.executable).parent / "abkd-fast"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def run(*args, cwd):
    """The same without the seconds that a new process takes to import torch."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())
