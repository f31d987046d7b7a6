"""torch.compile takes a student in one graph, forward and backward, with eager's results."""

import pytest
import torch
from helpers import small_data
from step_cases import STUDENTS
from torch._dynamo.testing import CompileCounterWithBackend

from abkd_fast import ABKD, KD, Recorder, TeacherCache
from abkd_fast.capture import Capture
from abkd_fast.nn import GCNII
from abkd_fast.ops import kl_div

# torch.compile itself instantiates the Function classes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*:DeprecationWarning:torch.*",
)


def run(call, model, data, backward):
    """Scores and gradients with the seeds of one state of the generator."""
    torch.manual_seed(3)
    model.zero_grad()
    out = call(data.x, data.graph)
    if not backward:
        return [out]
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def assert_compiles_like_eager(name, training, backend, sparse=False):
    torch._dynamo.reset()
    data, model = small_data(sparse=sparse), STUDENTS[name]()
    model.train(training)
    data.graph.gcn_norm().t()
    counted = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counted)
    for got, expected in zip(
        run(compiled, model, data, training), run(model, model, data, training), strict=True
    ):
        torch.testing.assert_close(got, expected)
    assert counted.frame_count == 1  # and fullgraph raises at a break


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", list(STUDENTS))
def test_a_student_compiles_to_one_graph(name, training):
    assert_compiles_like_eager(name, training, "aot_eager")


def test_sparse_features_compile_too():
    assert_compiles_like_eager("gcnii", True, "aot_eager", sparse=True)


def test_compiled_dropout_draws_anew_and_from_the_callers_generator():
    torch._dynamo.reset()
    data, model = small_data(), STUDENTS["gcnii"]().train()
    data.graph.gcn_norm().t()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    first, second = compiled(data.x, data.graph), compiled(data.x, data.graph)
    torch.manual_seed(0)
    again = [model(data.x, data.graph) for _ in range(2)]
    assert not torch.equal(first, second)
    torch.testing.assert_close([first, second], again)


def test_autocast_compiles_to_one_graph():
    torch._dynamo.reset()
    data, model = small_data(), STUDENTS["gcn"]().train()
    data.graph.gcn_norm().t()

    def call(x, graph):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x, graph)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        run(compiled, model, data, True), run(call, model, data, True), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_the_whole_loss_compiles_to_one_graph():
    """Student, cross-entropy, KD and ABKD: one graph, forward and backward."""
    torch._dynamo.reset()
    data, model = small_data(), STUDENTS["gcnii"]().train()
    teacher = TeacherCache.build(GCNII(8, 6, 4, 3), data)
    objective = KD() + ABKD(attention_dim=8, normalize="standardize")
    with Recorder(model) as recorder:
        capture = recorder.run(data.x, data.graph)
    objective.setup(teacher, capture.widths, data.graph)
    objective(capture, teacher)  # the constants of the teacher

    def loss_of(x, graph):
        p, seed = model._draw()
        h = h_0 = model.lins[0](x)
        states = []
        for layer, conv in enumerate(model.convs, start=1):
            h = conv(h, h_0, graph, p, seed, layer)
            states.append(h)
        capture = Capture(states, model.lins[1](h), ["convs.0", "convs.1"], graph)
        cross_entropy, _ = kl_div(capture.logits, data.y, data.train_mask)
        return cross_entropy + objective(capture, teacher)

    results = []
    for call in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        both = torch.nn.ModuleList([model, objective])
        both.zero_grad()
        loss = call(data.x, data.graph)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in both.parameters())])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", list(STUDENTS))
def test_a_student_compiles_with_inductor(name, training):
    """The same seeds too: inductor draws other numbers than eager where torch.randint is asked."""
    assert_compiles_like_eager(name, training, "inductor")
