"""Distillation objectives: one file each, one interface; add and scale them."""

from abkd_fast.distill.abkd import ABKD as ABKD
from abkd_fast.distill.kd import KD as KD
from abkd_fast.distill.objective import Objective as Objective
from abkd_fast.distill.objective import WeightedSum as WeightedSum
