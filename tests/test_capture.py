"""Hidden states of any module."""

import pytest
import torch
from torch import nn

from abkd_fast.capture import Recorder, match_layers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.act = nn.ReLU()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = self.act(self.first(x))
        for block in self.blocks:
            h = self.act(block(h))
        return self.last(h)


def test_states_are_the_modules_outputs_in_call_order():
    net, x = Net(), torch.randn(5, 3)
    with Recorder(net, ["blocks.*", "first"]) as recorder:
        capture = recorder.run(x)
    assert capture.names == ["first", "blocks.0", "blocks.1"]
    first = net.first(x)
    torch.testing.assert_close(capture.states[0], first)
    torch.testing.assert_close(capture.states[1], net.blocks[0](first.relu()))
    torch.testing.assert_close(capture.logits, net(x))
    torch.testing.assert_close(capture.means[0], first.mean(0))
    assert capture.widths == [4, 4, 4]


def test_a_shared_module_gives_one_state_a_call():
    net = Net()
    with Recorder(net, "act") as recorder:
        capture = recorder.run(torch.randn(5, 3))
    assert capture.names == ["act"] * 3


def test_states_carry_gradients():
    net = Net()
    with Recorder(net, "first") as recorder:
        recorder.run(torch.randn(5, 3)).states[0].sum().backward()
    assert net.first.weight.grad is not None
    assert net.last.weight.grad is None


def test_hooks_go_away():
    net = Net()
    with Recorder(net, "first"):
        assert net.first._forward_hooks
    assert not net.first._forward_hooks


def test_two_runs_do_not_mix():
    net = Net()
    with Recorder(net, "first") as recorder:
        recorder.run(torch.randn(5, 3))
        assert len(recorder.run(torch.randn(6, 3)).states) == 1


def test_only_its_own_runs_are_kept():
    net = Net()
    with Recorder(net, "first") as recorder:
        capture = recorder.run(torch.randn(5, 3))
        net(torch.randn(5, 3))  # no state of this one is held
        assert recorder._calls == [] and len(capture.states) == 1
        with pytest.raises(RuntimeError):
            recorder.run(torch.randn(5, 2))
        net(torch.randn(5, 3))
        assert recorder._calls == []


def test_unknown_pattern_lists_the_modules():
    with pytest.raises(ValueError, match=r"got 'convs\.\*'; it has first, blocks"):
        match_layers(Net(), "convs.*")
    with pytest.raises(ValueError, match="layers must be given for Net"):
        match_layers(Net())


def test_in_place_change_after_capture_is_an_error():
    net = Net()
    net.act = nn.ReLU(inplace=True)
    with (
        Recorder(net, "first") as recorder,
        pytest.raises(ValueError, match="'first' must not be changed in place"),
    ):
        recorder.run(torch.randn(5, 3))


def test_outputs_must_be_node_by_width():
    net = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten())
    with (
        Recorder(net, "0") as recorder,
        pytest.raises(
            ValueError, match=r"output of '0' must be a tensor \[N, d\], got \[5, 3, 1\]"
        ),
    ):
        recorder.run(torch.randn(5, 3))
    with (
        Recorder(nn.Sequential(nn.Unflatten(1, (3, 1))), ()) as recorder,
        pytest.raises(ValueError, match=r"must return class scores \[N, C\], got \[5, 3, 1\]"),
    ):
        recorder.run(torch.randn(5, 3))
