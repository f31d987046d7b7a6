"""Functional ops: checked arguments, one implementation per back end, autograd."""

from abkd_fast.ops.conv import conv as conv
from abkd_fast.ops.dropout import dropout as dropout
from abkd_fast.ops.edge_attention import edge_attention as edge_attention
from abkd_fast.ops.edge_attention_v2 import edge_attention_v2 as edge_attention_v2
from abkd_fast.ops.kl_div import kl_div as kl_div
from abkd_fast.ops.layer_pair import Moments as Moments
from abkd_fast.ops.layer_pair import layer_pair as layer_pair
from abkd_fast.ops.layer_pair import teacher_moments as teacher_moments
from abkd_fast.ops.linear import linear as linear
from abkd_fast.ops.neighbor_kl import neighbor_kl as neighbor_kl
from abkd_fast.ops.neighbor_kl import neighbor_log_softmax as neighbor_log_softmax
from abkd_fast.ops.neighborhood import Neighborhood as Neighborhood
from abkd_fast.ops.neighborhood import neighborhood as neighborhood
from abkd_fast.ops.pair_infonce import pair_infonce as pair_infonce
from abkd_fast.ops.relational import relational as relational
from abkd_fast.ops.sample_neighbors import NeighborSample as NeighborSample
from abkd_fast.ops.sample_neighbors import sample_neighbors as sample_neighbors
from abkd_fast.ops.segment_csr import segment_csr as segment_csr
from abkd_fast.ops.select_rows import select_rows as select_rows
from abkd_fast.ops.spmm import spmm as spmm

OPS = (
    "spmm",
    "layer_pair",
    "dropout",
    "conv",
    "edge_attention",
    "edge_attention_v2",
    "relational",
    "segment_csr",
    "linear",
    "kl_div",
    "neighbor_kl",
    "sample_neighbors",
    "pair_infonce",
    "neighborhood",
    "select_rows",
)
