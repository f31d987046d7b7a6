import os
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import abkd_fast

# Where there is no GPU, Triton's kernels run in its interpreter: read when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    # Fills torch.empty with NaN (or the largest integer): output that nobody wrote fails a test.
    torch.use_deterministic_algorithms(True, warn_only=True)
    config.addinivalue_line("filterwarnings", "ignore:Sparse CSR tensor support:UserWarning")
    # The interpreter computes with numpy, which warns where a kernel meets NaN or overflows.
    config.addinivalue_line("filterwarnings", "ignore:.* encountered in .*:RuntimeWarning")


@pytest.fixture(autouse=True, scope="session")
def chosen_backend():
    """ABKD_TEST_BACKEND runs a test file on another back end; test_backend.py sets it."""
    name = os.environ.get("ABKD_TEST_BACKEND")
    with abkd_fast.backend(name) if name else nullcontext():
        yield


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def abkd_data():
    """Folder with the public data sets, one subfolder each."""
    root = os.environ.get("ABKD_DATA")
    if not root:
        pytest.skip("ABKD_DATA is not set: no local copy of the public data sets")
    return Path(root)


@pytest.fixture
def double():
    """New tensors are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
