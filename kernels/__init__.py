"""GPU kernels in Triton; installed and imported as ``abkd_fast.kernels``.

A module holds kernels and, under the name and with the arguments of the operator that it serves
(``abkd_fast._backend.SCHEMAS``), the function that launches them. Importing this package does not
import triton.
"""

# The module of every operator that has kernels.
MODULES = {
    "spmm": "spmm",
    "sddmm": "sddmm",
    "spmm_extremum": "spmm_extremum",
    "spmm_extremum_dx": "spmm",
    "spmm_extremum_dvalue": "sddmm",
    "dropout": "dropout",
    "conv": "conv",
    "conv_backward": "conv_backward",
    "segment_csr": "segment_csr",
    "segment_csr_extremum": "segment_csr",
    "segment_csr_expand": "segment_csr",
    "segment_csr_extremum_dsrc": "segment_csr",
    "layer_pair_moment": "layer_pair",
    "layer_pair_projection": "layer_pair",
    "layer_pair_near": "layer_pair_near",
}
