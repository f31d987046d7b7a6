"""TeacherCache: building, packing, saving, damage."""

import pytest
import torch
from helpers import small_data

from abkd_fast import TeacherCache
from abkd_fast.nn import GCNII, MLP


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return GCNII(8, 6, 3, 3)


def test_build_keeps_every_layer_node_major_and_in_eval_mode(teacher):
    data = small_data()
    teacher.train()
    cache = TeacherCache.build(teacher, data)
    assert teacher.training
    assert cache.widths == [6, 6, 6]
    assert cache.states.shape == (data.num_nodes, 18) and cache.states.is_contiguous()
    teacher.eval()
    h_0 = teacher.lins[0](data.x).relu()
    first = teacher.convs[0](h_0, h_0, data.graph).relu()
    torch.testing.assert_close(cache.layer(0), first)
    torch.testing.assert_close(cache.logits, teacher(data.x, data.graph))
    assert not cache.states.requires_grad
    assert cache.parameters == sum(p.numel() for p in teacher.parameters())


def test_moments_are_those_of_the_states(teacher):
    cache = TeacherCache.build(teacher, small_data())
    layer = cache.layer(1)
    layer = layer.double()
    torch.testing.assert_close(cache.means[1], layer.mean(0))
    torch.testing.assert_close(cache.moments.second[1], layer.t() @ layer / len(layer))


def test_bf16_cache_is_the_rounded_one(teacher):
    data = small_data()
    full = TeacherCache.build(teacher, data)
    half = TeacherCache.build(teacher, data, dtype=torch.bfloat16)
    assert half.states.dtype == torch.bfloat16
    assert torch.equal(half.states, full.states.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_a_dtype_that_layer_pair_cannot_read_is_refused(teacher, dtype):
    message = "dtype must be bfloat16 or float32 or float64, got .*; bfloat16 halves the memory"
    with pytest.raises(ValueError, match=message):
        TeacherCache.build(teacher, small_data(), dtype=dtype)
    with pytest.raises(ValueError, match=message):
        TeacherCache.from_states([torch.ones(3, 2)], dtype=dtype)


def test_save_and_load(teacher, tmp_path):
    cache = TeacherCache.build(teacher, small_data())
    cache.save(tmp_path / "cache.safetensors")
    loaded = TeacherCache.load(tmp_path / "cache.safetensors")
    assert torch.equal(loaded.states, cache.states) and torch.equal(loaded.logits, cache.logits)
    assert (loaded.widths, loaded.fingerprint) == (cache.widths, cache.fingerprint)
    assert (loaded.parameters, loaded.moments.count) == (cache.parameters, cache.moments.count)
    assert torch.equal(loaded.moments.mean, cache.moments.mean)
    assert [p.name for p in tmp_path.iterdir()] == ["cache.safetensors"]


def test_cached_is_reused_only_for_the_same_teacher_and_data(teacher, tmp_path):
    path, data = tmp_path / "cache.safetensors", small_data()
    first = TeacherCache.cached(path, teacher, data)
    written = path.stat().st_mtime_ns
    assert TeacherCache.cached(path, teacher, data).fingerprint == first.fingerprint
    assert path.stat().st_mtime_ns == written
    with torch.no_grad():
        teacher.convs[0].weight1[0, 0] += 1
    assert TeacherCache.cached(path, teacher, data).fingerprint != first.fingerprint
    other = TeacherCache.cached(path, teacher, small_data(seed=1))
    assert torch.equal(TeacherCache.load(path).states, other.states)


def test_from_states_of_any_origin_and_scores_alone():
    states = [torch.randn(5, 2), torch.randn(5, 4)]
    cache = TeacherCache.from_states(states)
    assert torch.equal(cache.layer(1), states[1]) and cache.logits is None
    assert TeacherCache.from_states(states).fingerprint == cache.fingerprint
    assert TeacherCache.from_states([states[0], states[1] + 1]).fingerprint != cache.fingerprint
    assert TeacherCache.from_states([], torch.randn(5, 3)).num_layers == 0


@pytest.mark.parametrize(
    ("states", "logits", "message"),
    [
        ([], None, "states must hold at least one tensor"),
        ([torch.zeros(5, 2), torch.zeros(4, 2)], None, r"states\[1\] must have N=5 rows"),
        ([torch.zeros(5, 2)], torch.zeros(4, 3), "logits must have N=5 rows"),
        ([torch.full((5, 2), torch.nan)], None, r"states\[0\] must be finite, got 10 NaN"),
        ([torch.zeros(5, dtype=torch.int64)], None, r"states\[0\] must have 2 dimension"),
        ([torch.zeros(5, 2, dtype=torch.int64)], None, r"states\[0\] must be float16"),
    ],
)
def test_from_states_rejects(states, logits, message):
    with pytest.raises(ValueError, match=message):
        TeacherCache.from_states(states, logits)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.99])
def test_truncated_file_names_itself(teacher, tmp_path, keep):
    path = tmp_path / "cache.safetensors"
    TeacherCache.build(teacher, small_data()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"cache\.safetensors must be a complete safetensors file"):
        TeacherCache.load(path)


def test_flipped_bit_is_found(teacher, tmp_path):
    path = tmp_path / "cache.safetensors"
    TeacherCache.build(teacher, small_data()).save(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="the file is damaged"):
        TeacherCache.load(path)


def test_other_files_are_refused(teacher, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must be a teacher-cache file, got kind None"):
        TeacherCache.load(path)
    with pytest.raises(FileNotFoundError, match="no teacher-cache file at"):
        TeacherCache.load(tmp_path / "absent.safetensors")


def test_layers_must_be_named_for_foreign_models():
    foreign = torch.nn.Sequential(torch.nn.Linear(8, 3))
    with pytest.raises(ValueError, match="layers must be given for Sequential"):
        TeacherCache.build(foreign, small_data(), forward=lambda m, d: m(d.x))
    cache = TeacherCache.build(foreign, small_data(), "0", forward=lambda m, d: m(d.x))
    assert cache.widths == [3]


def test_mlp_teacher_needs_no_graph():
    assert TeacherCache.build(MLP(8, 6, 2, 3), small_data()).widths == [6]
