"""Every op in plain torch: its definition, the oracle in tests and the fallback."""

from abkd_fast.reference.conv import conv as conv
from abkd_fast.reference.dropout import dropout as dropout
from abkd_fast.reference.edge_attention import edge_attention as edge_attention
from abkd_fast.reference.edge_attention_v2 import edge_attention_v2 as edge_attention_v2
from abkd_fast.reference.kl_div import kl_div as kl_div
from abkd_fast.reference.layer_pair import layer_pair as layer_pair
from abkd_fast.reference.linear import linear as linear
from abkd_fast.reference.pair_infonce import pair_infonce as pair_infonce
from abkd_fast.reference.relational import relational as relational
from abkd_fast.reference.segment_csr import segment_csr as segment_csr
from abkd_fast.reference.spmm import spmm as spmm
