"""GPU kernels; installed and imported as ``abkd_fast.kernels``."""
