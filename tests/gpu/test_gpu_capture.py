"""A step captured in a CUDA graph replays what the eager step computes, seed for seed."""

from dataclasses import replace

import pytest
import torch
from step_cases import OBJECTIVES, ONECYCLE, STUDENTS, build
from test_captured_step import assert_same_run
from test_resume import Stop
from test_trainer import QUICK

from abkd_fast import Callback, Distiller, TrainingError
from abkd_fast._captured_step import CapturedStep


class Kept(Distiller):
    """Keeps its step, for tests to look at."""

    def _make_step(self, recorder, trained, progress):
        self.step = super()._make_step(recorder, trained, progress)
        return self.step


def captured(student, objective, **options):
    return build(Kept, student, objective, device="cuda", capture_step=True, **options)


def eager(student, objective, **options):
    return build(Distiller, student, objective, device="cuda", **options).fit()


def assert_replayed(run, capsys):
    assert isinstance(run.step, CapturedStep) and run.step._replay is not None
    assert "capture_step" not in capsys.readouterr().err


@pytest.mark.parametrize("config", [QUICK, ONECYCLE], ids=["constant", "onecycle"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("student", list(STUDENTS))
def test_replay_equals_eager(backend, student, objective, config, capsys):
    run = captured(student, objective, config=config)
    result = run.fit()
    assert_replayed(run, capsys)
    assert_same_run(result, eager(student, objective, config=config))


@pytest.mark.parametrize("at", [2, 7, 15])
def test_a_resumed_captured_run_equals_the_uninterrupted_eager_one(tmp_path, at, capsys):
    pytest.importorskip("safetensors")
    config = replace(ONECYCLE, checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        captured("gcnii", "kd+abkd", config=config, out=tmp_path, callbacks=[Stop(at)]).fit()
    run = captured("gcnii", "kd+abkd", config=config, out=tmp_path)
    result = run.fit()
    assert_replayed(run, capsys)
    assert_same_run(result, eager("gcnii", "kd+abkd", config=config))


def test_bfloat16_autocast_is_captured_too(capsys):
    config = replace(ONECYCLE, autocast="bfloat16")
    run = captured("gcnii", "kd+abkd", config=config)
    result = run.fit()
    assert_replayed(run, capsys)
    assert_same_run(result, eager("gcnii", "kd+abkd", config=config))


class Branching(torch.nn.Module):
    """Reads a value, which no capture allows."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, x):
        out = self.linear(x)
        return out if float(out.detach().sum()) > 0 else 2 * out


def test_a_model_that_waits_for_the_device_runs_eagerly_and_says_so(capsys):
    results = []
    for capture_step in (False, True):
        torch.manual_seed(0)
        data = build(Distiller, "gcn", "none", device="cuda").data
        model = Branching().cuda()
        run = Distiller(
            None, model, data, config=QUICK, callbacks=(), capture_step=capture_step
        )  # fmt: skip
        results.append(run.fit())
    assert_same_run(*results)
    assert capsys.readouterr().err.count("abkd_fast: capture_step: steps run eagerly") == 1


def test_cycled_momentum_runs_eagerly_and_says_so(capsys):
    config = replace(ONECYCLE, cycle_momentum=True)
    result = captured("gcn", "kd+abkd", config=config).fit()
    assert "cycle_momentum changes Adam's first beta" in capsys.readouterr().err
    assert_same_run(result, eager("gcn", "kd+abkd", config=config))


def test_a_loss_that_is_not_finite_is_named_and_changes_no_weight():
    class Poison(Callback):
        def on_epoch(self, distiller, record):
            if record["epoch"] == 7:
                with torch.no_grad():
                    distiller.student.convs[1].weight1.fill_(torch.nan)
                self.weights = [p.detach().clone() for p in distiller.student.parameters()]

    poison = Poison()
    run = captured("gcnii", "kd+abkd", callbacks=[poison])
    with pytest.raises(TrainingError, match="ce is not finite at epoch 8 .* output of convs.1"):
        run.fit()
    for now, before in zip(run.student.parameters(), poison.weights, strict=True):
        assert torch.equal(now, before) or bool(before.isnan().all())


@pytest.mark.parametrize("student", list(STUDENTS))
def test_no_step_waits_for_the_device(backend, student):
    """Torch itself raises where the host would wait."""
    run = captured(student, "kd+abkd")
    run.fit()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step._graph.warm_up(run.step._work)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.step._step.trained.optimizer.param_groups[0]["lr"].is_cuda


def test_rounded_activations_are_captured_too(capsys):
    config = replace(ONECYCLE, activations="bfloat16")
    run = captured("gcnii", "kd+abkd", config=config)
    result = run.fit()
    assert_replayed(run, capsys)
    assert_same_run(result, eager("gcnii", "kd+abkd", config=config))


def test_recomputed_activations_are_not_captured_and_equal_the_plain_run(capsys):
    config = replace(ONECYCLE, activations="recompute")
    result = captured("gcnii", "kd+abkd", config=config).fit()
    assert "steps run eagerly: activations='recompute' sets" in capsys.readouterr().err
    assert_same_run(result, eager("gcnii", "kd+abkd", config=ONECYCLE))
