"""Means over all nodes from mini-batches, alone and in ABKD."""

import pytest
import torch
from test_distill import N, S, T, problem, ready

from abkd_fast.capture import Capture
from abkd_fast.distill.running_means import RunningMeans

pytestmark = pytest.mark.usefixtures("double")


def batches(student, size):
    """The student's rows in batches of so many nodes."""
    for nodes in torch.arange(N).split(size):
        yield nodes, Capture([h[nodes] for h in student.states], student.logits[nodes], [])


def test_one_batch_of_all_nodes_gives_the_means_themselves():
    running = RunningMeans([3, 2])
    for _ in range(3):
        means = [torch.randn(3), torch.randn(2)]
        assert all(map(torch.equal, running(means, 1.0), means))


def test_the_average_moves_by_the_share_of_a_batch():
    running, expected = RunningMeans([2]), None
    for share in (0.25, 0.25, 0.125, 0.5):
        mean = torch.randn(2)
        expected = mean if expected is None else (1 - share) * expected + share * mean
        torch.testing.assert_close(running([mean], share)[0], expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(running.mean, expected, rtol=1e-14, atol=0)


def test_many_batches_of_resting_states_average_to_their_mean():
    states = torch.randn(400, 3) + 5
    running, errors = RunningMeans([3]), []
    for _ in range(60):
        for rows in torch.randperm(400).split(20):
            estimate = running([states[rows].mean(0)], 20 / 400)[0]
        errors.append((estimate - states.mean(0)).abs().max())
    batch_error = states.view(20, 20, 3).mean(1).std(0).max()
    assert torch.stack(errors[10:]).square().mean().sqrt() < batch_error / 2


def test_the_gradient_is_the_batch_means():
    running, mean = RunningMeans([3]), torch.randn(3, requires_grad=True)
    running([torch.randn(3)], 0.1)
    (running([mean], 0.1)[0] * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert mean.grad.tolist() == [1.0, 2.0, 3.0]


def test_abkd_attends_to_the_running_means_of_its_batches():
    teacher, student = problem()
    objective = ready(teacher, student)
    widths = [h.size(1) for h in student.states]
    running = RunningMeans(widths)
    for nodes, part in batches(student, 16):
        objective(part, teacher, nodes)
        expected = running(part.means, len(nodes) / N)
    whole = Capture([m.expand(N, -1) for m in expected], student.logits, [])
    torch.testing.assert_close(objective.attention, objective.attention_map(whole))
    torch.testing.assert_close(objective.running_means.mean, running.mean)
    assert objective.attention.shape == (T, S)


def test_checkpoints_keep_the_average():
    teacher, student = problem()
    first, second = ready(teacher, student), ready(teacher, student)
    parts = list(batches(student, 16))
    for nodes, part in parts[:2]:
        first(part, teacher, nodes)
    second.load_state_dict(first.state_dict())
    nodes, part = parts[2]
    assert torch.equal(first(part, teacher, nodes), second(part, teacher, nodes))
