"""Graph layers and models with PyG's argument names; they take a CSRGraph."""

from abkd_fast.nn.gcn2_conv import GCN2Conv as GCN2Conv
from abkd_fast.nn.gcn_conv import GCNConv as GCNConv
from abkd_fast.nn.linear import Linear as Linear
from abkd_fast.nn.linear import dropout as dropout
from abkd_fast.nn.models import GCN as GCN
from abkd_fast.nn.models import GCNII as GCNII
from abkd_fast.nn.models import MLP as MLP
from abkd_fast.nn.models import GraphSAGE as GraphSAGE
from abkd_fast.nn.models import ModelSpec as ModelSpec
from abkd_fast.nn.norm import BatchNorm as BatchNorm
from abkd_fast.nn.rgcn import RGCN as RGCN
from abkd_fast.nn.rgcn_conv import RGCNConv as RGCNConv
from abkd_fast.nn.sage_conv import SAGEConv as SAGEConv
