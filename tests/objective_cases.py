"""A graph problem in float64 for objectives, and the harness that holds them to an oracle."""

import torch

from abkd_fast import CSRGraph, TeacherCache
from abkd_fast.capture import Capture

N, CLASSES = 40, 3
SOME = torch.tensor([3, 39, 0, 17, 8, 21, 5, 33, 2, 11, 30, 1])


def graph(num_nodes=N, seed=0):
    """A directed graph with a hub, repeated edges, a loop and nodes without neighbours."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(num_nodes - 3, (2, 3 * num_nodes), generator=generator)
    hub = torch.stack([torch.arange(num_nodes // 2), torch.zeros(num_nodes // 2, dtype=torch.long)])
    more = torch.tensor([[1, 1, 2], [2, 2, 2]])
    return CSRGraph.from_edge_index(torch.cat([ends, hub, more], dim=1), num_nodes)


def cache(widths=(6, 6, 5), num_nodes=N):
    """A teacher of float64 states."""
    states = [torch.randn(num_nodes, d, dtype=torch.float64) + 0.5 for d in widths]
    logits = torch.randn(num_nodes, CLASSES, dtype=torch.float64)
    return TeacherCache.from_states(states, logits, dtype=torch.float64)


def capture(widths=(4, 3), num_nodes=N, nodes=None):
    """Student states and scores, of all nodes or of ``nodes``; and the leaves they come from."""
    leaves = [
        (torch.randn(num_nodes, d, dtype=torch.float64) + 0.2).requires_grad_()
        for d in (*widths, CLASSES)
    ]
    rows = leaves if nodes is None else [leaf[nodes] for leaf in leaves]
    return Capture(rows[:-1], rows[-1], ["?"] * len(widths)), leaves


def gradients(loss, inputs):
    """Of ``loss``; 0 where it does not depend on an input."""
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return torch.autograd.grad(loss, inputs, **options)


def assert_same(loss, expected, inputs, wanted=None):
    """Equal values, and equal gradients in ``inputs`` (``wanted`` for the oracle)."""
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14)
    assert bool(loss.isfinite())
    assert_same_gradients(loss, expected, inputs, inputs if wanted is None else wanted)


def assert_same_gradients(loss, expected, inputs, wanted):
    """Equal gradients, of one in ``inputs`` and of the other in ``wanted``."""
    found = gradients(loss, inputs), gradients(expected, wanted)
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)


def standardized(x, layer):
    """``Projection`` from its definition, row by row."""
    x = torch.stack([row @ layer.linear.weight.t() + layer.linear.bias for row in x])
    mean = sum(x) / len(x)
    variance = sum((row - mean) ** 2 for row in x) / len(x)
    x = (x - mean) / (variance + 1e-5) ** 0.5 * layer.weight + layer.bias
    return torch.where(x > 0, x, 0.0) if layer.relu else x


def unit(rows):
    """Rows divided by their lengths."""
    return rows / rows.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)


def kl(p_log, q_log):
    """KL(p || q) of log-probabilities, over the last dimension."""
    return (p_log.exp() * (p_log - q_log)).sum(-1)


def part_of(teacher, nodes):
    """The teacher as if there were no other nodes."""
    states = [teacher.layer(i)[nodes] for i in range(teacher.num_layers)]
    return TeacherCache.from_states(states, teacher.logits[nodes], dtype=torch.float64)
