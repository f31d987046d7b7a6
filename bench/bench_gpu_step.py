"""A whole distillation step on a GPU, through the Distiller, and in plain torch.

GCNII 64x64 -> 4x4, KD + ABKD, full batch, float32, nothing dropped. The teacher's weights are
random (time does not depend on them) and its states cached on every side. *step* is forward, loss,
backward and Adam, as the Distiller's log times it: until the loss is known, so that what Adam still
does on the device may fall into what follows. *epoch* adds the validation pass and ends when the
device has nothing left to do. The losses of the first epochs are compared before anything is timed.
*captured* replays the step from a CUDA graph; *streamed* reads a teacher that stays in page-locked
host memory (on a CPU, in a mapped file).
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import costs
import torch
import torch.nn.functional as F
from bench_gpu_graph import torch_csr
from bench_gpu_rows import CLASSES
from costs import Cost
from errors import largest
from gpu_compare import Row, compiled, reason
from gpu_graphs import load
from gpu_timing import synchronise
from peers import eager, plain
from torch import Tensor, nn

from abkd_fast import ABKD, KD, CSRGraph, Distiller, GraphData, TeacherCache, TrainConfig, data
from abkd_fast.callbacks import Callback
from abkd_fast.metrics import quantiles
from abkd_fast.nn import GCNII

FEATURES = {"pubmed": 500, "ogbn-arxiv": 128, "tiny": 12}
TEACHER, STUDENT = (64, 64), (4, 4)
MIX = {"alpha": 0.1, "theta": 0.5}
CHECKED, WARM, TIMED = 4, 12, 60  # epochs
BOUND = 2e-3  # relative, of losses: rounding grows along a run
Times = tuple[list[float], list[float], list[float]]  # losses, steps, epochs
Side = Callable[[int], Times]


def problem(name: str, device: str) -> tuple[GraphData, str]:
    """Graph and features: PubMed's own where they are, random ones elsewhere."""
    if name == "pubmed" and os.environ.get("ABKD_DATA"):
        try:
            return data.load(name).to(device), name
        except (OSError, ValueError) as error:
            print(f"{name}: {str(error).splitlines()[0]}; R-MAT instead")
    graph, label = load(name, device)
    node = torch.arange(graph.num_dst, device=device)
    x = torch.randn(graph.num_dst, FEATURES[name], device=device)
    masks = node % 10 < 5, node % 10 == 5, node % 10 > 5
    given = GraphData(x, graph, node % CLASSES[name], *masks, name=name, synthetic=True)
    return given, f"{label}, random features"


def model(given: GraphData, size: tuple[int, int]) -> GCNII:
    torch.manual_seed(1)
    options = {**MIX, "dropout": 0.0, "init": "xavier"}
    net = GCNII(given.num_features, size[1], size[0], given.num_classes, **options)
    return net.to(given.graph.device)


class Clock(Callback):
    """When every epoch ended."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, [0.0]

    def on_start(self, distiller: Distiller, first_epoch: int) -> None:
        self.ends = [self._now()]

    def on_epoch(self, distiller: Distiller, record: dict[str, Any]) -> None:
        self.ends.append(self._now())

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    @property
    def epochs(self) -> list[float]:
        return [1e3 * (b - a) for a, b in zip(self.ends, self.ends[1:], strict=False)]


def ours(given: GraphData, cache: TeacherCache, device: str, **options: Any) -> Side:
    """The public loop; the objective's maps are drawn from the seed."""

    def run(epochs: int) -> Times:
        clock, notice = Clock(device), io.StringIO()
        config = TrainConfig(epochs=epochs, patience=None, snapshots=1)
        student = model(given, STUDENT)
        with redirect_stderr(notice):
            result = Distiller(
                cache, student, given, KD() + ABKD(), seed=0, config=config, callbacks=[clock],
                **options,
            ).fit()  # fmt: skip
        if options and notice.getvalue():  # the Distiller says why it does something else
            raise RuntimeError(notice.getvalue())
        losses, steps = ([r[key] for r in result.history] for key in ("loss", "step_ms"))
        return losses, steps, clock.epochs

    return run


def streamed(cache: TeacherCache, device: str) -> TeacherCache:
    """The same teacher, its states in host memory."""
    if device == "cuda":
        return cache.pinned().to(device, stream=True)
    with tempfile.TemporaryDirectory() as folder:
        cache.save(Path(folder) / "teacher.safetensors")
        return TeacherCache.load(Path(folder) / "teacher.safetensors")  # mapped: its pages stay


def peer(given: GraphData, cache: TeacherCache, device: str, compile_it: bool) -> Side:
    """The same epochs in torch alone."""
    matrix, x = torch_csr(given.graph.gcn_norm()), given.dense_x
    states = [state.contiguous() for state in cache.states.split(cache.widths, 1)]
    means, kd = [state.mean(0) for state in states], KD()
    assert cache.logits is not None
    scores = cache.logits.log_softmax(1)

    def loss_of(net: nn.Module, abkd: eager.ABKDLoss) -> Tensor:
        logits, hidden = net(x, matrix)
        mask = given.train_mask
        label = (1 - kd.alpha) * F.cross_entropy(logits[mask], given.y[mask])
        soft = F.kl_div(logits.log_softmax(1), scores, reduction="batchmean", log_target=True)
        return label + kd.alpha * soft + abkd(states, means, hidden)

    def parts() -> tuple[nn.Module, eager.ABKDLoss]:
        net = plain.GCNII(given.num_features, STUDENT[1], STUDENT[0], given.num_classes, **MIX)
        net = net.to(device)
        net.load_state_dict(model(given, STUDENT).state_dict())
        torch.manual_seed(0)
        maps = KD() + ABKD()
        maps.setup(cache, [STUDENT[1]] * STUDENT[0], given.graph)
        abkd = eager.ABKDLoss(cache.widths, [STUDENT[1]] * STUDENT[0], 64, False).to(device)
        eager.copy_maps(maps.terms()[1], abkd)
        return net, abkd

    @torch.no_grad()
    def validate(net: nn.Module) -> list[float]:
        logits, _ = net(x, matrix)
        val = given.val_mask
        loss = F.cross_entropy(logits[val], given.y[val])
        right = logits.argmax(1) == given.y
        return [float(loss), float(right[val].sum()), float(right[given.train_mask].sum())]

    def run(epochs: int) -> Times:
        net, abkd = parts()
        function = compiled(loss_of, device) if compile_it else loss_of
        groups = [{"params": list(net.parameters()), "weight_decay": TrainConfig().weight_decay},
                  {"params": list(abkd.parameters()), "weight_decay": 0.0}]  # fmt: skip
        optimizer = torch.optim.Adam(groups, lr=TrainConfig().lr, fused=True)
        losses, steps, times = [], [], []
        for _ in range(epochs):
            begin = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = function(net, abkd)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
            synchronise(device)
            steps.append(1e3 * (time.perf_counter() - begin))
            validate(net)
            times.append(1e3 * (time.perf_counter() - begin))
        return losses, steps, times

    return run


def work(given: GraphData, parameters: int) -> tuple[Cost, Cost]:
    """(a step's, an epoch's): the student, Adam, one pass over the teacher in each direction."""
    nodes, edges = given.num_nodes, given.graph.gcn_norm().num_edges
    width = STUDENT[1]

    def student(backward: bool) -> Cost:
        if isinstance(given.x, CSRGraph):
            first = costs.spmm(nodes, given.x.num_edges, width, backward=backward)
        else:
            first = costs.linear(nodes, given.num_features, width, backward)
        return costs.gcnii(STUDENT, nodes, edges, first, given.num_classes, backward)

    total, states = TEACHER[0] * TEACHER[1], STUDENT[0] * STUDENT[1]
    step = student(True) + costs.kl_div(nodes, given.num_classes)
    step += costs.layer_pair(nodes, total, states, r=0, size=4, passes=2) + costs.adam(parameters)
    return step, step + student(False)


def run(name: str, device: str, tiny: bool) -> Iterator[Row]:
    """Two rows, `step` and `epoch`, which grow by a side at a time."""
    given, label = problem("tiny" if tiny else name, device)
    cache = TeacherCache.build(model(given, TEACHER).eval(), given)
    makers: dict[str, Callable[[], Side]] = {
        "abkd_fast": lambda: ours(given, cache, device),
        "abkd_fast captured": lambda: ours(given, cache, device, capture_step=True),
        "abkd_fast streamed": lambda: ours(given, streamed(cache, device), device),
        "torch CSR + eager": lambda: peer(given, cache, device, False),
        "torch CSR + eager, torch.compile": lambda: peer(given, cache, device, True),
    }
    maps = ABKD()
    maps.setup(cache, [STUDENT[1]] * STUDENT[0], given.graph)
    parameters = sum(p.numel() for m in (maps, model(given, STUDENT)) for p in m.parameters())
    rows = [
        {"op": op, "case": f"{label}, 64x64 -> 4x4", "dtype": "float32"} | cost.row()
        | {"nodes": given.num_nodes, "ms": {}, "left_out": {}}
        for op, cost in zip(("step", "epoch"), work(given, parameters), strict=True)
    ]  # fmt: skip
    expected: list[float] = []
    for side, make in makers.items():
        try:
            side_run = make()
            losses, _, _ = side_run(CHECKED)
            expected = expected or losses
            pairs = zip(losses, expected, strict=True)
            error = largest(abs(a - b) / abs(b) for a, b in pairs)
            if not error <= BOUND:
                text = f"{side}: losses differ from abkd_fast's by {error:.2g}"
                if side.startswith("abkd_fast"):
                    raise SystemExit(text)
                raise ArithmeticError(text)
            _, *times = side_run(3 if tiny else WARM + TIMED)
            for row, samples in zip(rows, times, strict=True):
                row["ms"][side] = quantiles(samples[0 if tiny else WARM :])
        except Exception as failure:  # only the plain step must be there
            if side == "abkd_fast":
                raise
            for row in rows:
                row["left_out"][side] = reason(failure)
        print(label, side, {row["op"]: row["ms"].get(side) for row in rows})
        yield from rows
