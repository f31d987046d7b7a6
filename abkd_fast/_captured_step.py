"""A training step captured in a CUDA graph and replayed: one launch instead of hundreds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from abkd_fast._seeds import SeedBuffer, drawing_from
from abkd_fast._step import Scalars, Step
from abkd_fast.config import TrainConfig

T = TypeVar("T")
Work = Callable[[], Scalars]
_WARM_UP = 3  # steps: kernels are compiled, buffers and caches made


class CudaGraph:
    """Captures work on the current device, on a stream of its own as autograd wants it."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the stream it will be captured on."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def capture(self, work: Work) -> Work:
        """Capture ``work``; returns what replays it, into the same tensors."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            outputs = work()

        def replay() -> Scalars:
            graph.replay()
            return outputs

        return replay


class CapturedStep:
    """Replays ``step``; its first steps run as they are, which is all the warm-up there is.

    What changes from step to step lies on the device: the seeds of the dropout, drawn before
    every replay in the order in which the step draws them (:class:`SeedBuffer`), the learning
    rates, and Adam's step count. So the results are those of the eager step, seed for seed.
    Python runs only when the step is captured: branches that it took then are taken ever after.

    Args:
        step: the step.
        graph: what captures it.
    """

    def __init__(self, step: Step, graph: CudaGraph) -> None:
        self._step, self._graph = step, graph
        self._seeds = SeedBuffer()
        self._steps = 0
        self._refused = False
        self._replay: Work | None = None

    def run(self) -> dict[str, float]:
        """Make a step; returns its scalars and learning rate."""
        if self._refused:
            return self._step.run()
        self._step.trained.student.train()
        self._steps += 1
        if self._steps == 1:
            return self._graph.warm_up(self._count)
        self._seeds.fill()
        lr = self._step.learning_rate()
        found = self._run()
        values = torch.stack([value.double() for value in found.values()]).cpu()  # one wait
        scalars = dict(zip(found, values, strict=True))
        self._step.check({"ce": scalars["ce"]})
        self._step.check(scalars)
        self._step.advance_schedule()
        return {**{name: float(value) for name, value in scalars.items()}, "lr": lr}

    def _count(self) -> dict[str, float]:
        """The first step, which shows how many seeds a step draws."""
        before = torch.get_rng_state()
        with drawing_from(self._seeds):
            record = self._step.run()
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        self._seeds.fix(self._step.trained.device)
        self._seeds.fill()
        if not torch.equal(torch.get_rng_state(), after):
            self._refuse("the model draws other random numbers on the host than seeds of dropout")
        torch.set_rng_state(after)
        return record

    def _run(self) -> Scalars:
        """A step on seeds that are there: as it is, captured, or replayed."""
        if self._replay is None and self._steps > _WARM_UP:
            try:
                self._replay = self._graph.capture(self._work)
            except RuntimeError as error:
                self._refuse(str(error).splitlines()[0])
        return self._graph.warm_up(self._work) if self._replay is None else self._replay()

    def _work(self) -> Scalars:
        self._seeds.count = 0
        with drawing_from(self._seeds):
            return self._step.run_on_device()

    def _refuse(self, reason: str) -> None:
        self._refused = True
        notify(reason)


def reason_against(step: Step, config: TrainConfig) -> str | None:
    """Why a step cannot be captured, as far as that is known before trying."""
    if config.activations == "recompute":
        return "activations='recompute' sets random generators back, which a graph cannot replay"
    if step.trained.device.type != "cuda":
        return f"the student is on {step.trained.device}, and CUDA graphs need a GPU"
    if config.schedule == "onecycle" and config.cycle_momentum:
        return "cycle_momentum changes Adam's first beta on the host"
    if step.teacher is not None and step.teacher.streamed:
        return f"the teacher's states stream from host memory ({step.teacher.storage})"
    return None


def notify(reason: str) -> None:
    """Say once a run that its steps are not captured, and why."""
    print(f"abkd_fast: capture_step: steps run eagerly: {reason}", file=sys.stderr)
