"""Distillation objectives: one file each, one interface; add and scale them."""

from abkd_fast.distill.abkd import ABKD as ABKD
from abkd_fast.distill.afd import AFD as AFD
from abkd_fast.distill.at import AT as AT
from abkd_fast.distill.fitnets import FitNets as FitNets
from abkd_fast.distill.gcrd import GCRD as GCRD
from abkd_fast.distill.glnn import GLNN as GLNN
from abkd_fast.distill.graphakd import GraphAKD as GraphAKD
from abkd_fast.distill.initialize import initialize_from_attention as initialize_from_attention
from abkd_fast.distill.kd import KD as KD
from abkd_fast.distill.mskd import MSKD as MSKD
from abkd_fast.distill.mustad import MustaD as MustaD
from abkd_fast.distill.objective import Objective as Objective
from abkd_fast.distill.objective import WeightedSum as WeightedSum
from abkd_fast.distill.semckd import SemCKD as SemCKD
from abkd_fast.distill.stride import STRIDE as STRIDE
