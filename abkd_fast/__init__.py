"""Attention-based knowledge distillation (ABKD, arXiv 2310.15938) of graph neural networks."""

from abkd_fast._version import __version__ as __version__
from abkd_fast.graph import CSRGraph as CSRGraph
from abkd_fast.graph import DegreeStats as DegreeStats
