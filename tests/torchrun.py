"""Starts real processes, as a user would."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def start(size, *arguments, monitor_interval=0.1, **options):
    """``torchrun --nproc-per-node size arguments``, one thread each, over the loopback device.

    Every ``monitor_interval`` seconds torchrun looks whether a process died; it then ends the rest.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--monitor-interval={monitor_interval}", f"--nproc-per-node={size}"]
    command += map(str, arguments)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **options,
    )  # fmt: skip


def run(size, *arguments):
    """The same to its end; what it printed."""
    process = start(size, *arguments)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed
