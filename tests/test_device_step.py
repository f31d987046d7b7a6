"""No step waits for the host: on tensors without memory, whatever reads a value raises."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from helpers import small_data
from step_cases import OBJECTIVES, STUDENTS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from abkd_fast import CSRGraph, Recorder, TeacherCache, TrainConfig
from abkd_fast._checkpoint import Trained
from abkd_fast._csr import Structure
from abkd_fast._optimizer import make_optimizer
from abkd_fast._seeds import SeedBuffer, drawing_from
from abkd_fast._step import Step
from abkd_fast.ops import Moments

layer_pair = importlib.import_module("abkd_fast.ops.layer_pair")
NODES = 60


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def bare(value):
    """A tensor, graph, cache or module with tensors without memory in the place of its own."""
    if isinstance(value, torch.Tensor):
        return empty(*value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
    if isinstance(value, CSRGraph):
        one, other = (Structure(bare(g.rowptr), bare(g.col), NODES) for g in (value, value.t()))
        one._transpose = (other, empty(value.num_edges, dtype=torch.int64))
        graph = CSRGraph(one, bare(value.value))
        graph.t()
        return graph
    if isinstance(value, TeacherCache):
        cache = TeacherCache(bare(value.states), value.widths, bare(value.logits), "fake")
        cache.moments = bare(value.moments)
        return cache
    if isinstance(value, Moments):
        return Moments(bare(value.mean), [bare(part) for part in value.second], value.count)
    for module in value.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = empty(*parameter.shape, dtype=parameter.dtype)
            setattr(module, name, torch.nn.Parameter(fake, parameter.requires_grad))
        if getattr(module, "masked_moments", None) is not None:
            module.masked_moments = bare(module.masked_moments)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, bare(buffer))
    return value


class NoConstants(TorchFunctionMode):
    """Raises where numbers of the host become a tensor, which on a GPU is a copy that waits."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.tensor, torch.as_tensor), "a constant from the host"
        return function(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Raises where the host would wait or copy; runs layer_pair's own steps, not its shape rule."""

    HOST = ("_local_scalar_dense", "nonzero", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        given = [value for value in args if isinstance(value, torch.Tensor)]
        assert name not in self.HOST, f"{function} on the way"
        if name in ("copy_", "_to_copy", "_copy_from"):
            assert all(value.device.type == "meta" for value in given), f"{function} from the host"
        if function is torch.ops.abkd_fast.layer_pair.default:
            self.calls += 1
            return layer_pair._blocked(*args)
        return function(*args, **(kwargs or {}))


class Descent(torch.optim.Optimizer):
    """Stands in for Adam, whose fused kernel takes no tensors without memory."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])


def build_parts(student, objective):
    """A student on the normalised graph, an objective that is set up, its teacher, and data."""
    data, model, loss = small_data(), STUDENTS[student](), OBJECTIVES[objective](small_data())
    for module in model.modules():
        if hasattr(module, "normalize"):
            module.normalize = False
    graph = data.graph.gcn_norm()
    states = [torch.randn(data.num_nodes, width) for width in (6, 6, 4)]
    teacher = TeacherCache.from_states(states, torch.randn(data.num_nodes, 3))
    with Recorder(model) as recorder:
        loss.setup(teacher, recorder.run(data.x, graph).widths, graph)
    return model, loss, teacher, graph, data


@pytest.mark.parametrize("objective", ["kd+abkd", "masked"])
@pytest.mark.parametrize("student", list(STUDENTS))
def test_a_whole_step_reads_nothing(student, objective):
    *parts, data = build_parts(student, objective)
    model, loss, teacher, graph = (bare(part) for part in parts)
    x, y, mask = (bare(part) for part in (data.x, data.y, data.train_mask))
    trained = [*model.parameters(), *(p for p in loss.parameters() if p.requires_grad)]
    optimizer = Descent(trained, {"lr": 0.1})
    seeds = SeedBuffer()
    seeds._device = empty(9, dtype=torch.int64)
    with Recorder(model) as recorder, drawing_from(seeds), NoConstants(), Watch() as mode:
        step = Step(
            collect=lambda: recorder.run(x, graph, graph=graph),
            data=SimpleNamespace(y=y, train_mask=mask),
            objective=loss,
            teacher=teacher,
            trained=Trained(model, loss, optimizer, None),
            check=lambda scalars: None,
        )
        scalars = step.run_on_device()
    assert mode.calls == 1 and seeds.count == 1
    assert {"loss", "ce", "abkd"} <= set(scalars)
    assert all(value.device.type == "meta" and value.shape == () for value in scalars.values())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "read",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: (x > 0).nonzero(),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device="meta"),
        lambda x: x.copy_(torch.ones(3)),
    ],
    ids=["branch", "mask", "constant", "copy"],
)
def test_a_host_that_waits_is_noticed(read):
    x = empty(3)
    with NoConstants(), Watch(), pytest.raises(AssertionError, match="on the way|from the host"):
        read(x)


def test_on_a_gpu_the_optimiser_can_be_captured_and_its_rates_are_tensors():
    with FakeTensorMode():
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(4, 8, device="cuda"))])
        (group,) = make_optimizer(TrainConfig(), model, None).param_groups
    assert group["capturable"] and group["fused"] and group["lr"].device.type == "cuda"
