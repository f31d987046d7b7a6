"""The file of a teacher cache, written and read in blocks of nodes.

A safetensors file as :func:`abkd_fast._storage.save_tensors` writes it, in which ``states``
[N, sum(widths)] may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from abkd_fast._csr import tensor_bytes
from abkd_fast._mapped import map_tensor
from abkd_fast._staging import blocks_on
from abkd_fast._storage import FORMAT, check_digest, check_sum, read_header, tensor_head
from abkd_fast.ops import Moments

KIND = "teacher-cache"
META = ("widths", "fingerprint", "parameters", "data")  # attributes that are kept as JSON
_BLOCK_BYTES = 2**25
_CPU = torch.device("cpu")
_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def row_spans(num_rows: int, row_bytes: int) -> list[slice]:
    """Blocks of rows of at most _BLOCK_BYTES."""
    step = max(_BLOCK_BYTES // max(row_bytes, 1), 1)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def write_cache(
    path: Path,
    blocks: Iterable[Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
    logits: Tensor | None,
    moments: Moments | None,
    about: Mapping[str, Any],
) -> None:
    """Write ``blocks`` of rows as the tensor ``states``, beside all else; one pass over them.

    The checksum is that of ``save_tensors``, taken while writing and put in last.
    """
    meta = {**about, "count": None if moments is None else moments.count}
    tensors = {} if logits is None else {"logits": logits}
    if moments is not None:
        tensors["mean"] = moments.mean
        tensors |= {f"second.{i}": second for i, second in enumerate(moments.second)}
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    kinds = {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    header, offset = _header(kinds | {"states": (dtype, shape)}, meta, "0" * 64)
    assert all(name < "states" for name in tensors), "the checksum takes the tensors by name"
    digest = check_sum(tensors, json.dumps(meta))
    digest.update(tensor_head("states", dtype, shape))
    with path.open("wb") as file:
        file.write(header)
        for name, (where, _) in offset.items():
            if name != "states":
                file.seek(len(header) + where)
                file.write(tensor_bytes(tensors[name]))
        file.seek(len(header) + offset["states"][0])
        for block in blocks:
            data = tensor_bytes(block)
            digest.update(data)
            file.write(data)
        if file.tell() != len(header) + offset["states"][1]:
            raise AssertionError("states must have as many rows as their shape says")
        file.truncate(len(header) + max(end for _, end in offset.values()))
        file.seek(0)
        file.write(_header(kinds | {"states": (dtype, shape)}, meta, digest.hexdigest())[0])


def _header(
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], meta: Mapping[str, Any], sha256: str
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Header of a safetensors file, and where each tensor begins and ends behind it.

    Larger elements come first, so that all are aligned; the header is padded so that the states
    begin on a cache line.
    """
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name != "states", name))
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": str(FORMAT), "kind": KIND, "sha256": sha256, "meta": json.dumps(meta)
        }
    }  # fmt: skip
    offsets, start = {}, 0
    for name in order:
        dtype, shape = kinds[name]
        end = start + torch.Size(shape).numel() * dtype.itemsize
        offsets[name] = start, end
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text) + offsets["states"][0] // 8 * 8) % 64)
    return len(text).to_bytes(8, "little") + text, offsets


def read_meta(path: Path) -> dict[str, Any]:
    """What is known of a cache beside its tensors; the checksum is not looked at."""
    meta: dict[str, Any] = json.loads(read_header(path, KIND)["meta"])
    return meta


def read_cache(path: Path, mapped: bool, verify: bool) -> dict[str, Any]:
    """Arguments of ``TeacherCache`` as :func:`write_cache` wrote them, checked, in one pass.

    Args:
        path: the file.
        mapped: whether the states stay in the file, or are read to memory.
        verify: whether to take the checksum; not needed of a file just written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, truncated, of another kind or version, or damaged.
    """
    from safetensors import safe_open

    header = read_header(path, KIND)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name != "states"]  # noqa: SIM118
        tensors = {name: file.get_tensor(name).clone() for name in names}
    with path.open("rb") as raw:
        offset, shape, dtype = _states_at(raw)
    states = map_tensor(path, offset, shape, dtype)
    meta = json.loads(header["meta"])
    if mapped and not verify:
        return _arguments(states, tensors, meta)
    out = states if mapped else torch.empty(shape, dtype=dtype)
    digest = check_sum(tensors, header["meta"])
    digest.update(tensor_head("states", dtype, shape))
    spans = row_spans(shape[0], shape[1] * dtype.itemsize) if states.numel() else []
    for span, block in zip(spans, blocks_on(states, spans, _CPU), strict=True):
        if out is not states:
            block = out[span].copy_(block)
        digest.update(tensor_bytes(block))
    check_digest(path, header, digest.hexdigest())
    return _arguments(out, tensors, meta)


def _arguments(states: Tensor, tensors: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    moments = None
    if meta["widths"]:
        second = [tensors[f"second.{i}"] for i in range(len(meta["widths"]))]
        moments = Moments(tensors["mean"], second, meta["count"])
    about = {name: meta[name] for name in META}
    return {"states": states, "logits": tensors.get("logits"), "moments": moments, **about}


def _states_at(file: BinaryIO) -> tuple[int, tuple[int, int], torch.dtype]:
    """First byte, shape and dtype of the states; safetensors has checked the header."""
    size = int.from_bytes(file.read(8), "little")
    entry = json.loads(file.read(size))["states"]
    dtypes = {name: dtype for dtype, name in _NAMES.items()}
    return 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), dtypes[entry["dtype"]]
