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
    "kl_div": "kl_div",
    "kl_div_backward": "kl_div",
    "linear": "linear",
    "linear_backward": "linear",
    "layer_pair_near": "layer_pair_near",
    "pair_infonce": "pair_infonce",
    "edge_attention": "edge_attention",
    "edge_attention_backward": "edge_attention",
    "edge_attention_v2": "edge_attention",
    "edge_attention_v2_backward": "edge_attention",
    "relational": "relational",
    "relational_backward": "relational",
}
