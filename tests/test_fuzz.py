"""A short run of the fuzzer; `make fuzz` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_cases import failure, is_valid, make_case


def test_most_kinds_of_input_occur_and_none_fails():
    found = {}
    for index in range(200):
        case, change = make_case(1, index)
        assert failure(case) is None
        found.setdefault(change, set()).add(is_valid(case))
    assert len(found) == 11 and found["untouched"] == found["change_strides"] == {True}
    assert found["wrap_rowptr"] == {False}


@pytest.mark.slow
def test_two_thousand_inputs_in_their_own_process():
    command = [sys.executable, str(Path(__file__).parent / "fuzz_csr.py")]
    arguments = ["--inputs", "2000", "--jobs", "1", "--seed", "2"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2,000 inputs, 0 failures" in done.stdout
