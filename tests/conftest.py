import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_configure(config):
    # Fills torch.empty with NaN (or the largest integer): output that nobody wrote fails a test.
    torch.use_deterministic_algorithms(True, warn_only=True)
    config.addinivalue_line("filterwarnings", "ignore:Sparse CSR tensor support:UserWarning")


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
