"""Cases of neighbor_kl for its tests."""

import torch

from abkd_fast import ops, reference

KERNELS = {
    "rbf": {"kernel": "rbf"},
    "cosine": {"kernel": "cosine"},
    "poly": {"kernel": "poly"},
    "poly-cubed": {"kernel": "poly", "c": 0.7, "power": 3},
    "poly-linear": {"kernel": "poly", "c": -0.2, "power": 1},
    "l2": {"kernel": "l2"},
}
SQUARE = ("no-nodes", "self-loop", "isolated", "duplicates", "unsorted", "hub", "power-law")
# student x teacher: vectors that overlap, several of them, one feature
SHAPES = [(1, 1), (8, 40), (33, 16), (3, 100)]


def rows(graph, width, teacher_width, dtype=torch.float64, seed=0):
    """(student [N, width], which wants a gradient, teacher [N, teacher_width])."""
    generator = torch.Generator().manual_seed(seed)

    def draw(d):
        x = torch.randn(graph.num_dst, d, generator=generator, dtype=torch.float64)
        return (x * (1.5 / d**0.5)).to(dtype)

    return draw(width).requires_grad_(), draw(teacher_width)


def results(graph, student, teacher, module=ops, target=False, **options):
    """[value, gradient]; with ``target`` the teacher is given by its log-probabilities."""
    known = {}
    if target:
        known["log_target"] = module.neighbor_log_softmax(graph, teacher, **options)
    loss = module.neighbor_kl(graph, student, None if target else teacher, **known, **options)
    return [loss.detach(), torch.autograd.grad(loss, student)[0]]


def exact_results(graph, student, teacher, **options):
    """The same from the definition in float64."""
    wide = student.detach().double().requires_grad_()
    return results(graph, wide, teacher.double(), reference, **options)
