"""bfloat16 autocast: 16-bit storage, float32 sums, float32 parameters and losses."""

from dataclasses import replace

import pytest
import torch
from conv_cases import LAYERS, leaves
from helpers import small_data
from layer_pair_cases import random_problem, requiring, results
from step_cases import STUDENTS

import abkd_fast
from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig
from abkd_fast.nn import GCNII
from abkd_fast.ops import conv, kl_div, layer_pair, linear, spmm
from abkd_fast.testing import assert_no_worse, sample_graph

BFLOAT16 = torch.bfloat16


def autocast():
    return torch.autocast("cpu", dtype=BFLOAT16)


def gradients(outputs, inputs):
    """Of the sum of the outputs' squares, taken in their own dtype."""
    loss = sum(out.to(torch.float64 if out.dtype == torch.float64 else torch.float32)
               .square().sum() for out in outputs)  # fmt: skip
    return torch.autograd.grad(loss, inputs)


def assert_like_bfloat16(op, inputs, outputs_in_bfloat16=1):
    """Under autocast: bf16 out, float32 gradients, as exact as the same op on bf16 tensors."""
    with autocast():
        outs = op(*inputs)
    narrow = [t.detach().bfloat16().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    plain_outs, exact_outs = op(*narrow), op(*exact)
    assert all(out.dtype == BFLOAT16 for out in outs[:outputs_in_bfloat16])
    assert all(out.dtype == torch.float32 for out in outs[outputs_in_bfloat16:])
    for out, plain, true in zip(outs, plain_outs, exact_outs, strict=True):
        assert torch.equal(out, plain)
        assert_no_worse(out.detach(), true.detach(), plain.detach())
    got, true = gradients(outs, inputs), gradients(exact_outs, exact)
    for a, b in zip(got, true, strict=True):
        assert a.dtype == torch.float32
        scale = float(b.abs().max()) + 1e-30
        assert float((a.double() - b).abs().max()) <= 0.03 * scale  # a few bf16 roundings


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_spmm(reduce):
    graph = sample_graph("power-law", torch.float32)
    x = torch.randn(65, 33, requires_grad=True)
    assert_like_bfloat16(
        lambda x: [spmm(graph.to(dtype=torch.float64 if x.dtype == torch.float64 else None),
                        x, reduce)], [x],
    )  # fmt: skip


def test_linear():
    x, weight, bias = torch.randn(300, 20), torch.randn(7, 20), torch.randn(7)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    assert_like_bfloat16(lambda *t: [linear(*t, act="relu")], given)


@pytest.mark.parametrize("case", list(LAYERS))
def test_conv(case):
    graph = sample_graph("power-law", torch.float32)
    tensors, options = leaves(graph, *LAYERS[case], torch.float32)
    given = [t for t in tensors if t is not None]

    def op(*values):
        taken = iter(values)
        x, weight, bias, x_0 = (None if t is None else next(taken) for t in tensors)
        dtype = torch.float64 if x.dtype == torch.float64 else None
        return conv(graph.to(dtype=dtype), x, weight, bias, x_0=x_0, **options)

    assert_like_bfloat16(op, given)


def test_sums_are_float32_where_bfloat16_would_stick():
    # 4096 ones: bfloat16 cannot count beyond 256.
    graph = abkd_fast.CSRGraph.from_csr(torch.tensor([0, 4096]), torch.zeros(4096).long(), None, 1)
    with autocast():
        assert float(spmm(graph, torch.ones(1, 3))[0, 0]) == 4096.0
        assert float(linear(torch.ones(1, 4096), torch.ones(2, 4096))[0, 0]) == 4096.0
        out, sums = conv(graph.t(), torch.ones(1, 3), None)
    assert out.dtype == BFLOAT16 and sums.tolist() == [4096.0] * 3


def test_the_divergence_stays_float32():
    logits, target = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4).log_softmax(1)
    expected, _ = kl_div(logits, target)
    with autocast():
        loss, _ = kl_div(logits, target)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    with autocast():
        loss, _ = kl_div(logits.bfloat16(), target)
    assert torch.equal(loss, kl_div(logits.bfloat16().float(), target)[0])


def test_layer_pair_takes_the_states_of_a_bfloat16_student_in_float32():
    problem = random_problem(300, [6, 4], [3, 5], 8, torch.float32)
    states = [state.detach().bfloat16() for state in problem["student_states"]]
    widened = requiring(problem | {"student_states": [h.float() for h in states]}, torch.float32)
    expected = results(layer_pair, widened)
    narrow = problem | {"student_states": [h.requires_grad_() for h in states]}
    with autocast():
        got = results(layer_pair, narrow)
    assert got["loss"].dtype == got["D"].dtype == torch.float32
    assert torch.equal(got["D"], expected["D"])
    for name, value in expected.items():
        assert torch.equal(got[name], value.to(got[name].dtype)), name


@pytest.mark.parametrize("teacher_dtype", [torch.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize("student", list(STUDENTS))
def test_a_bfloat16_step_has_float32_gradients_near_the_exact_ones(student, teacher_dtype):
    data = small_data()
    teacher = TeacherCache.build(GCNII(8, 6, 4, 3), data, dtype=teacher_dtype)
    model = STUDENTS[student]()
    for module in model.modules():
        module.dropout = 0.0
    objective = KD() + ABKD(attention_dim=8, normalize="standardize")
    found = []
    for kind in ("bfloat16", None):
        torch.manual_seed(0)
        config = TrainConfig(epochs=1, lr=1e-30, weight_decay=0.0, autocast=kind)
        run = Distiller(teacher, model, data, objective, config=config, callbacks=())
        history = run.fit().history
        grads = [p.grad.clone() for p in (*model.parameters(), *objective.parameters())]
        found.append((history[0], grads))
    (narrow, narrow_grads), (wide, wide_grads) = found
    for name in ("loss", "ce", "kd", "abkd"):
        assert narrow[name] == pytest.approx(wide[name], rel=0.02), name
        assert narrow[name] != wide[name]  # it did compute in bfloat16
    for a, b in zip(narrow_grads, wide_grads, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm()) <= 0.1 * float(b.norm()) + 1e-4


def test_config_rejects_other_dtypes():
    with pytest.raises(ValueError, match="autocast must be one of bfloat16, got 'float16'"):
        TrainConfig(autocast="float16")


def test_a_bfloat16_student_of_digits_is_as_accurate():
    """Test accuracy within one percentage point (5 of 540 nodes) of float32's."""
    data = abkd_fast.data.load("digits")
    torch.manual_seed(0)
    config = TrainConfig(epochs=60, lr=0.02, patience=None)
    teacher = GCNII(data.num_features, 32, 4, data.num_classes, dropout=0.1)
    teacher = Distiller(None, teacher, data, config=config, callbacks=()).fit().student
    accuracy = {}
    for kind in (None, "bfloat16"):
        torch.manual_seed(1)
        student = GCNII(data.num_features, 8, 2, data.num_classes, dropout=0.1, init="xavier")
        cache = TeacherCache.build(teacher, data, dtype=BFLOAT16 if kind else torch.float32)
        objective = KD() + ABKD(normalize="standardize", freeze_teacher_map=True)
        run = replace(config, epochs=120, autocast=kind, schedule="onecycle")
        result = Distiller(cache, student, data, objective, config=run, callbacks=()).fit()
        accuracy[kind] = result.metrics["student"]["test"]
        assert all(p.dtype == torch.float32 for p in result.student.parameters())
    assert accuracy[None] > 93.0
    assert abs(accuracy["bfloat16"] - accuracy[None]) <= 1.0, accuracy
