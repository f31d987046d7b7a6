"""ABKD on some of the nodes: a mask, and batches."""

import pytest
import torch
from test_distill import N, T, problem, ready

from abkd_fast import ABKD, TeacherCache
from abkd_fast.capture import Capture

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("widths", [(4, 4, 4), (2, 5, 3)])
@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": "standardize"}, {"normalize": "rows"}, {"pool": True}, {"subspace_dim": 40}],
)
def test_masked_nodes_alone_are_compared(options, widths):
    """As if teacher and student had no other nodes; the attention still looks at all of them."""
    teacher, student = problem(widths)
    mask = torch.rand(N) < 0.4
    objective = ABKD(attention_dim=7, mask=mask, map="uniform", **options)
    objective.setup(teacher, widths, None)
    loss = objective(student, teacher)
    part = TeacherCache.from_states(
        [teacher.layer(i)[mask] for i in range(T)], teacher.logits[mask], torch.float64
    )
    few = Capture([h[mask] for h in student.states], student.logits[mask], student.names)
    alone = ready(part, few, map="uniform", **options)
    alone.load_state_dict(objective.state_dict())
    expected = alone(few, part)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(objective.dissimilarity, alone.dissimilarity, rtol=1e-10, atol=1e-14)
    inputs = [*student.states, objective.subspace, objective.student_embedding]
    wanted = [*student.states, alone.subspace, alone.student_embedding]
    grads = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, wanted)
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)


def test_a_mask_leaves_the_attention_and_batches_alone():
    teacher, student = problem()
    objective = ABKD(attention_dim=7, mask=torch.rand(N) < 0.4)
    objective.setup(teacher, student.widths, None)
    everywhere = ready(teacher, student)
    everywhere.load_state_dict(objective.state_dict())
    torch.testing.assert_close(objective.attention_map(student), everywhere.attention_map(student))
    nodes = torch.randperm(N)
    batch = Capture([h[nodes] for h in student.states], student.logits[nodes], student.names)
    torch.testing.assert_close(objective(batch, teacher, nodes), objective(student, teacher))


def test_batches_of_nodes_match_gathered_rows():
    teacher, student = problem()
    objective = ready(teacher, student)
    nodes = torch.tensor([3, 1, 20])
    part = Capture([h[nodes] for h in student.states], student.logits[nodes], student.names)
    rows = TeacherCache.from_states(
        [teacher.layer(i)[nodes] for i in range(T)], teacher.logits[nodes], torch.float64
    )
    loss = objective(part, teacher, nodes)
    objective.map, objective.fixed_map = "fixed", objective.attention
    torch.testing.assert_close(loss, objective(part, rows))
