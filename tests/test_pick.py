"""Values by index: against torch's indexing, refusals, gradients, compiled and exported."""

import pytest
import torch
from thread_counts import at_thread_counts

from abkd_fast._backend import backend_of
from abkd_fast.export.standard import decompose
from abkd_fast.memory import pick

o = torch.ops.abkd_fast
MANY = 300_000  # worth several threads


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_torch(dtype):
    values = torch.randn(2000).to(dtype)[::2]
    index = torch.randint(0, 1000, (2 * MANY,))[::2]
    for found in at_thread_counts(lambda: pick(values, index)):
        assert torch.equal(found, values[index]) and found.dtype == dtype
    assert pick(values, index[:0]).shape == (0,)


def test_gradients():
    values, index = torch.randn(7, dtype=torch.float64, requires_grad=True), torch.tensor([6, 0, 6])
    pick(values, index).sum().backward()
    assert values.grad.tolist() == [1, 0, 0, 0, 0, 0, 2]


@pytest.mark.skipif(backend_of("pick")[0] != "cpu", reason="torch's own messages: no extension")
@pytest.mark.parametrize("wrong", [-1, 3, 2**62])
@pytest.mark.parametrize("size", [1, MANY])
def test_an_index_of_no_value_is_refused(size, wrong):
    index = torch.zeros(size, dtype=torch.int64)
    index[-1] = wrong
    with pytest.raises(RuntimeError, match=rf"index must lie in \[0, 3\), got {wrong}"):
        o.pick(torch.zeros(3), index)


@pytest.mark.skipif(backend_of("pick")[0] != "cpu", reason="torch's own messages: no extension")
def test_other_arguments_are_refused():
    index = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="values must have 1 dimension, got 2"):
        o.pick(torch.zeros(1, 1), index)
    with pytest.raises(RuntimeError, match="values must be float16, bfloat16, float32 or float64"):
        o.pick(index, index)
    with pytest.raises(RuntimeError, match="index must be int64"):
        o.pick(torch.zeros(1), index.int())


def test_operator_is_well_formed():
    torch.library.opcheck(o.pick.default, (torch.randn(7), torch.tensor([6, 0, 6])))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own
def test_standard_ops_stand_in_for_it():
    class Pick(torch.nn.Module):
        def forward(self, values, index):
            return o.pick(values, index)

    given = torch.randn(5), torch.tensor([4, 0])
    program = decompose(torch.export.export(Pick(), given))
    assert torch.equal(program.module()(*given), given[0][given[1]])
