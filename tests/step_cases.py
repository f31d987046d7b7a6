"""Runs whose step is captured, and what stands in for a CUDA graph where there is none."""

from dataclasses import replace

import torch
from helpers import small_data
from test_trainer import QUICK

from abkd_fast import ABKD, KD, Distiller, TeacherCache
from abkd_fast._captured_step import CapturedStep
from abkd_fast._optimizer import keep_rates_on_device
from abkd_fast.nn import GCN, GCNII, MLP

STUDENTS = {
    "gcn": lambda: GCN(8, 4, 3, 3, dropout=0.3),
    "gcnii": lambda: GCNII(8, 4, 2, 3, dropout=0.3, init="xavier"),
    "mlp": lambda: MLP(8, 5, 3, 3, dropout=0.3),
}
OBJECTIVES = {
    "none": lambda data: None,
    "kd+abkd": lambda data: KD() + ABKD(attention_dim=8, normalize="standardize"),
    "masked": lambda data: ABKD(attention_dim=8, mask=data.train_mask, freeze_teacher_map=True),
}
ONECYCLE = replace(QUICK, schedule="onecycle", lr=0.03)


class Uncaptured:
    """Stands in for a CUDA graph: runs the work again, as a graph would replay it."""

    def __init__(self):
        self.captured = 0

    def warm_up(self, work):
        return work()

    def capture(self, work):
        self.captured += 1
        return work


class StaticDistiller(Distiller):
    """Captures on the CPU too: all of the machinery, without the graph."""

    def __init__(self, *args, graph=None, **options):
        super().__init__(*args, **options)
        self.graph = graph or Uncaptured()

    def _make_step(self, recorder, trained, progress):
        step = super()._make_step(recorder, trained, progress)
        keep_rates_on_device(trained.optimizer.param_groups, 0.0)
        return CapturedStep(step, self.graph)


def build(kind, student, objective, *, out=None, config=QUICK, callbacks=(), device="cpu", **more):
    """A run of a small student on a small teacher."""
    data = small_data()
    torch.manual_seed(0)
    teacher, model = GCNII(8, 6, 4, 3).to(device), STUDENTS[student]().to(device)
    loss, data = OBJECTIVES[objective](data), data.to(device)
    cache = None if loss is None else TeacherCache.build(teacher, data)
    return kind(cache, model, data, loss, config=config, out=out, callbacks=callbacks, **more)
