"""The device on which Triton's kernels are tested, and the reason where they cannot be."""

import pytest
import torch

from abkd_fast._backend import has_backend

AVAILABLE, WHY = has_backend("spmm", "triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not AVAILABLE, reason=f"no Triton kernels: {WHY}")
