"""layer_pair on a GPU against its plain PyTorch baselines: loss and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import costs
import torch
from errors import relative
from gpu_compare import Row, reason
from gpu_timing import Step, take_turns
from peers import best, eager
from torch import Tensor

from abkd_fast.ops import layer_pair, teacher_moments
from abkd_fast.ops.layer_pair import prefers_moment_form

NODES = 169_343  # ogbn-arxiv
CONFIGS = {  # teacher layers, width, student layers, width
    "64x64 -> 4x4": (64, 64, 4, 4),
    "16x256 -> 4x64": (16, 256, 4, 64),
    "2x750 -> 2x256": (2, 750, 2, 256),
}
R, CHECKED = 64, 2048
BOUND = 1e-3  # relative, in norm
PEERS = {"eager": eager, "best": best}


def problem(config: str, nodes: int, device: str) -> tuple[list[Tensor], dict[str, Any]]:
    """(teacher layers, the other arguments); what is trained is a leaf."""
    num_teacher, width, num_student, student_width = CONFIGS[config]
    torch.manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=device) * scale).requires_grad_()

    layers = [torch.randn(nodes, width, device=device).relu_() for _ in range(num_teacher)]
    states = [torch.randn(nodes, student_width, device=device) for _ in range(num_student)]
    return layers, {
        "student_states": [state.relu_().requires_grad_() for state in states],
        "attention": torch.randn(num_teacher, num_student, device=device).softmax(1),
        "teacher_maps": [leaf(width, R, scale=width**-0.5) for _ in range(num_teacher)],
        "student_maps": [leaf(student_width, R, scale=student_width**-0.5) for _ in states],
    }


def make_step(loss_of: Callable[[], tuple[Tensor, Tensor]], case: dict[str, Any]) -> Step:
    leaves = [*case["student_states"], *case["teacher_maps"], *case["student_maps"]]

    def step() -> list[Tensor]:
        loss, _ = loss_of()
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return step


def steps_of(config: str, nodes: int, device: str) -> dict[str, Callable[[], Step]]:
    """Makers of a step by side: each holds a teacher of its own, so one at a time."""

    def ours(dtype: torch.dtype, stream: bool = False) -> Step:
        layers, case = problem(config, nodes, device)
        widths = [layer.size(1) for layer in layers]
        teacher = torch.cat(layers, 1).to(dtype)
        moments = teacher_moments(teacher, widths)
        if stream:
            teacher = teacher.cpu().pin_memory()
        return make_step(lambda: layer_pair(teacher, widths, **case, moments=moments), case)

    def peer(name: str, compiled: bool) -> Step:
        layers, case = problem(config, nodes, device)
        teacher: Any = PEERS[name].prepare(layers)
        function: Callable[..., Any] = PEERS[name].layer_pair
        if compiled:
            backend = "inductor" if device == "cuda" else "eager"
            function = torch.compile(function, backend=backend)
        return make_step(lambda: function(teacher, **case), case)

    makers: dict[str, Callable[[], Step]] = {
        "abkd_fast": lambda: ours(torch.float32),
        "abkd_fast bf16": lambda: ours(torch.bfloat16),
    }
    for name in PEERS:
        makers[name] = lambda name=name: peer(name, False)
        makers[f"{name}, torch.compile"] = lambda name=name: peer(name, True)
    if device == "cuda":  # elsewhere nothing is page-locked
        makers["abkd_fast streamed"] = lambda: ours(torch.float32, stream=True)
        makers["abkd_fast streamed bf16"] = lambda: ours(torch.bfloat16, stream=True)
    return makers


def error_of_ours(config: str, device: str, nodes: int) -> float:
    """Loss and gradients against plain torch in float64, relative, at few nodes."""
    layers, case = problem(config, nodes, device)
    widths = [layer.size(1) for layer in layers]
    teacher = torch.cat(layers, 1)
    moments = teacher_moments(teacher, widths)
    found = make_step(lambda: layer_pair(teacher, widths, **case, moments=moments), case)()
    exact: dict[str, Any] = {
        name: [t.detach().double().requires_grad_() for t in given]
        if isinstance(given, list)
        else given.double()
        for name, given in case.items()
    }
    plain = [layer.double() for layer in layers]
    return relative(found, make_step(lambda: eager.layer_pair(plain, **exact), exact)())


def run(config: str, device: str, tiny: bool) -> Iterator[Row]:
    """One row, which grows by a side at a time: each is checked, timed alone and freed."""
    nodes = 200 if tiny else NODES
    error = error_of_ours(config, device, 200 if tiny else CHECKED)
    if not error <= BOUND:
        raise SystemExit(f"abkd_fast differs from float64 by {error:.2g} in layer_pair {config}")
    expected: list[Tensor] = []
    row: Row = {"op": "layer_pair", "case": f"N={nodes}, {config}", "dtype": "float32"}
    row |= {"nodes": nodes, **work(config, nodes), "ms": {}, "left_out": {}}
    for name, maker in steps_of(config, nodes, device).items():
        mine = name.startswith("abkd_fast")
        try:
            step = maker()
            found = step()
            expected = expected or found
            error = relative(found, expected)
            bound = 2e-2 if name.endswith("bf16") else BOUND
            if not error <= bound:
                raise ArithmeticError(f"differs from abkd_fast by {error:.2g}")
            row["ms"] |= take_turns({name: step}, device, rounds=1 if tiny else 5)
        except Exception as failure:  # a peer may run out of memory; ours may not fail
            if mine:
                raise
            row["left_out"][name] = reason(failure)
        step = found = None  # type: ignore[assignment]
        if device == "cuda":
            torch.cuda.empty_cache()
        yield row


def work(config: str, nodes: int) -> Row:
    """Of the form that the cost model chooses."""
    num_teacher, width, num_student, student_width = CONFIGS[config]
    total, student = num_teacher * width, num_student * student_width
    moment = prefers_moment_form(num_teacher, num_student, total, R, student)
    cost = costs.layer_pair(nodes, total, student, 0 if moment else R, size=4, passes=2)
    return {"form": "moment" if moment else "projection", **cost.row()}
