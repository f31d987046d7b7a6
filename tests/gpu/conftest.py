import pytest
import torch

import abkd_fast


def pytest_runtest_setup(item):
    """Everything in this folder needs a real device."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU: `make gpu-check` on a machine with one runs tests/gpu")


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    """Each back end of a GPU in turn; one that is not there is an error."""
    with abkd_fast.backend(request.param):
        yield request.param
