"""The captured step without its graph: the same bits as the eager step, and no host sync."""

from dataclasses import replace

import pytest
import torch
from step_cases import OBJECTIVES, ONECYCLE, STUDENTS, StaticDistiller, Uncaptured, build
from test_resume import Stop
from test_trainer import QUICK, timeless

from abkd_fast import Callback, Distiller, TrainingError


def assert_same_run(a, b):
    assert timeless(a.history) == timeless(b.history)
    for name, value in a.student.state_dict().items():
        assert torch.equal(value, b.student.state_dict()[name]), name
    for name in ("attention", "attention_history"):
        first, second = getattr(a, name), getattr(b, name)
        assert first is second is None or torch.equal(first, second), name


@pytest.mark.parametrize(
    ("student", "objective", "config"),
    [
        *((student, "kd+abkd", ONECYCLE) for student in STUDENTS),
        *(("gcnii", objective, QUICK) for objective in OBJECTIVES),
    ],
)
def test_static_step_equals_the_eager_one_bit_for_bit(student, objective, config):
    eager = build(Distiller, student, objective, config=config).fit()
    static = build(StaticDistiller, student, objective, config=config)
    assert_same_run(static.fit(), eager)
    assert static.graph.captured == 1


@pytest.mark.parametrize("at", [1, 3, 12])
def test_a_resumed_static_run_equals_the_uninterrupted_eager_one(tmp_path, at):
    config = replace(ONECYCLE, checkpoint_every=2)
    whole = build(Distiller, "gcnii", "kd+abkd", config=config).fit()
    with pytest.raises(KeyboardInterrupt):
        build(
            StaticDistiller, "gcnii", "kd+abkd", config=config, out=tmp_path, callbacks=[Stop(at)]
        ).fit()
    resumed = build(StaticDistiller, "gcnii", "kd+abkd", config=config, out=tmp_path).fit()
    assert_same_run(resumed, whole)


def test_an_eager_run_goes_on_from_a_static_ones_checkpoint(tmp_path):
    given = ("gcn", "kd+abkd")
    whole = build(Distiller, *given, config=ONECYCLE).fit()
    with pytest.raises(KeyboardInterrupt):
        build(StaticDistiller, *given, config=ONECYCLE, out=tmp_path, callbacks=[Stop(15)]).fit()
    assert_same_run(build(Distiller, *given, config=ONECYCLE, out=tmp_path).fit(), whole)


def test_a_cpu_run_says_once_why_it_is_eager(capsys):
    captured = build(Distiller, "gcn", "none", capture_step=True).fit()
    message = capsys.readouterr().err
    assert message == (
        "abkd_fast: capture_step: steps run eagerly: "
        "the student is on cpu, and CUDA graphs need a GPU\n"
    )
    assert_same_run(captured, build(Distiller, "gcn", "none").fit())


class Refusing(Uncaptured):
    def capture(self, work):
        self.captured += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_a_capture_that_fails_leaves_the_run_as_it_is(capsys):
    eager = build(Distiller, "gcnii", "kd+abkd", config=ONECYCLE).fit()
    refused = build(StaticDistiller, "gcnii", "kd+abkd", config=ONECYCLE, graph=Refusing())
    assert_same_run(refused.fit(), eager)
    assert refused.graph.captured == 1
    assert capsys.readouterr().err == (
        "abkd_fast: capture_step: steps run eagerly: "
        "operation not permitted when stream is capturing\n"
    )


class Noisy(torch.nn.Module):
    """Draws from the host's generator, which a replay would not do again."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(x + 0.1 * torch.randn(x.size(1)))


def test_a_model_that_draws_on_the_host_is_not_captured(capsys):
    results = []
    for kind in (Distiller, StaticDistiller):
        torch.manual_seed(0)
        data = build(Distiller, "gcn", "none").data
        run = kind(None, Noisy(), data, config=QUICK, callbacks=())
        results.append(run.fit())
    assert_same_run(*results)
    assert run.graph.captured == 0
    assert "draws other random numbers on the host" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_changes_no_weight():
    seen = {}

    class Poison(Callback):
        def on_epoch(self, distiller, record):
            if record["epoch"] == 7:
                with torch.no_grad():
                    distiller.student.convs[1].weight1.fill_(torch.nan)
                weights = distiller.student.state_dict()
                seen.update({name: value.clone() for name, value in weights.items()})

    run = build(StaticDistiller, "gcnii", "none", callbacks=[Poison()])
    with pytest.raises(TrainingError, match="ce is not finite at epoch 8 .* output of convs.1"):
        run.fit()
    for name, value in run.student.state_dict().items():
        assert torch.equal(value, seen[name]) or bool(seen[name].isnan().all()), name
