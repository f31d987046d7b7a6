"""Attention-based knowledge distillation (ABKD, arXiv 2310.15938) of graph neural networks."""

from abkd_fast import data as data
from abkd_fast import nn as nn
from abkd_fast import ops as ops
from abkd_fast._backend import backend as backend
from abkd_fast._backend import backend_of as backend_of
from abkd_fast._csr import DegreeStats as DegreeStats
from abkd_fast._version import __version__ as __version__
from abkd_fast.callbacks import Callback as Callback
from abkd_fast.callbacks import ProgressBar as ProgressBar
from abkd_fast.capture import Capture as Capture
from abkd_fast.capture import Recorder as Recorder
from abkd_fast.config import TrainConfig as TrainConfig
from abkd_fast.data import GraphData as GraphData
from abkd_fast.distill import ABKD as ABKD
from abkd_fast.distill import KD as KD
from abkd_fast.distill import Objective as Objective
from abkd_fast.graph import CSRGraph as CSRGraph
from abkd_fast.inductive import predict as predict
from abkd_fast.memory import empty_cache as empty_cache
from abkd_fast.memory import memory_reserved as memory_reserved
from abkd_fast.model_file import load_model as load_model
from abkd_fast.model_file import save_model as save_model
from abkd_fast.result import DistillResult as DistillResult
from abkd_fast.result import TrainingError as TrainingError
from abkd_fast.teacher import TeacherCache as TeacherCache
from abkd_fast.trainer import Distiller as Distiller
