"""Random problems for layer_pair, and its forms run one by one."""

import torch

from abkd_fast.ops import teacher_moments
from abkd_fast.ops.layer_pair import _layer_pair

FORMS = ("moment", "projection")


def random_problem(
    nodes, widths, student_widths, r, dtype=torch.float64, grad=True
) -> dict[str, object]:
    """Positional arguments of layer_pair by name; states have a mean, as after a ReLU."""

    def leaf(*shape):
        return torch.randn(shape, dtype=dtype)

    return requiring(
        {
            "teacher": leaf(nodes, sum(widths)) + 0.5,
            "widths": list(widths),
            "student_states": [leaf(nodes, d) + 0.3 for d in student_widths],
            "attention": leaf(len(widths), len(student_widths)).softmax(1),
            "teacher_maps": [leaf(d, r) for d in widths],
            "student_maps": [leaf(d, r) for d in student_widths],
        },
        dtype,
        grad,
    )


def requiring(problem, dtype, grad=True):
    """A copy in ``dtype`` whose trainable parts are leaves."""

    def leaf(value):
        return value.detach().to(dtype).clone().requires_grad_(grad)

    copy = {
        k: [leaf(v) for v in x] for k, x in problem.items() if k.startswith(("stud", "teacher_"))
    }
    teacher = problem["teacher"]
    teacher = teacher if teacher.dtype == torch.bfloat16 else teacher.to(dtype)
    return problem | copy | {"attention": leaf(problem["attention"]), "teacher": teacher}


def leaves(problem):
    """All trainable tensors by name."""
    named = {"attention": problem["attention"]}
    for key in ("teacher_maps", "student_maps", "student_states"):
        named |= {f"{key}[{i}]": value for i, value in enumerate(problem[key])}
    return named


def results(op, problem, **options):
    """Loss, D and every gradient by name."""
    loss, dissimilarity = op(**problem, **options)
    named = leaves(problem)
    gradients = torch.autograd.grad(loss, list(named.values()))
    return {"loss": loss.detach(), "D": dissimilarity, **dict(zip(named, gradients, strict=True))}


def run_form(form, moments=None):
    """layer_pair that takes ``form`` whatever the cost model says."""

    def op(
        teacher, widths, student_states, attention, teacher_maps, student_maps, *,
        shift=None, mask=None, weight=None,
    ):  # fmt: skip
        known = moments or teacher_moments(teacher, widths, mask, weight)
        return _layer_pair(
            teacher, widths, student_states, attention, torch.cat(teacher_maps),
            torch.cat(student_maps), known, shift, mask, weight, form == "moment",
        )  # fmt: skip

    return op


def relative_errors(result, exact):
    """Error in norm over the norm of the exact value, by name."""
    return {
        name: float((result[name].double() - value).norm() / value.norm())
        for name, value in exact.items()
    }
