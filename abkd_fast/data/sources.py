"""Where the files of the known data sets come from, with their sizes and checksums."""

from __future__ import annotations

import os
from pathlib import Path

from abkd_fast.data.download import RemoteFile, cache_dir, fetch
from abkd_fast.data.errors import DataError

_GITHUB = "https://raw.githubusercontent.com"
_PLANETOID = f"{_GITHUB}/kimiyoung/planetoid/master/data"
_GRAPHDATA = f"{_GITHUB}/EdisonLeeeee/GraphData/b82d4dd2ed63cdcbb318d793597099ef6b1e8fe5/datasets"
_PPNP = f"{_GITHUB}/gasteigerjo/ppnp/3fe09b4582a96fc20bfcae6e9e0d7682deba2c92/ppnp/data"
_HETEROPHILOUS = (
    f"{_GITHUB}/yandex-research/heterophilous-graphs/a431395582e929d88271309716bea4fe24ce6318/data"
)

# data set: (address, {file: (bytes, sha256)})
_FILES: dict[str, tuple[str, dict[str, tuple[int, str]]]] = {
    "cora": (
        _PLANETOID,
        {
            "ind.cora.allx": (
                257305,
                "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
            ),
            "ind.cora.ally": (
                47959,
                "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
            ),
            "ind.cora.tx": (
                148025,
                "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
            ),
            "ind.cora.ty": (
                28135,
                "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
            ),
            "ind.cora.y": (
                4054,
                "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
            ),
            "ind.cora.graph": (
                59847,
                "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
            ),
            "ind.cora.test.index": (
                5000,
                "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
            ),
        },
    ),
    "citeseer": (
        _PLANETOID,
        {
            "ind.citeseer.allx": (
                595021,
                "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
            ),
            "ind.citeseer.ally": (
                55623,
                "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
            ),
            "ind.citeseer.tx": (
                260321,
                "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
            ),
            "ind.citeseer.ty": (
                24135,
                "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
            ),
            "ind.citeseer.y": (
                3014,
                "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
            ),
            "ind.citeseer.graph": (
                61987,
                "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
            ),
            "ind.citeseer.test.index": (
                5000,
                "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
            ),
        },
    ),
    "pubmed": (
        _PLANETOID,
        {
            "ind.pubmed.allx": (
                7578385,
                "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
            ),
            "ind.pubmed.ally": (
                224739,
                "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
            ),
            "ind.pubmed.tx": (
                405505,
                "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
            ),
            "ind.pubmed.ty": (
                12135,
                "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
            ),
            "ind.pubmed.y": (
                854,
                "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
            ),
            "ind.pubmed.graph": (
                471808,
                "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
            ),
            "ind.pubmed.test.index": (
                6000,
                "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
            ),
        },
    ),
    "amazon-photo": (
        _GRAPHDATA,
        {
            "amazon_photo.npz": (
                1772672,
                "bdb98b54cd3125bfa69b23ba0aae84fabcb770c6727175b8f6eb1d64f3be4b2b",
            ),
        },
    ),
    "coauthor-cs": (
        _GRAPHDATA,
        {
            "coauthor_cs.npz": (
                2800548,
                "7b7b51bf270d341f1c4231834c58a526bb04db003fd76a6d2f51ad7d252005ed",
            ),
        },
    ),
    "cora-ml": (
        _PPNP,
        {
            "cora_ml.npz": (
                1622234,
                "e3439bfd32c4a962d5c56a4f313793baee39181c208c90a3915b61183d3e1cda",
            ),
        },
    ),
    "minesweeper": (
        _HETEROPHILOUS,
        {
            "minesweeper.npz": (
                135045,
                "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3",
            ),
        },
    ),
}


# Read from local files alone: where they come from.
LOCAL = {
    "aifb": "tkipf/relational-gcn (rgcn/data/aifb) and pbloem/gated-rgcn (aifb_stripped.nt.gz)",
    "acm-hetero": "liun-online/HeCo (data/acm)",
}


def total_bytes(name: str) -> int:
    """Size of a data set's download; 0 for one that needs no file."""
    return sum(size for size, _ in _FILES[name][1].values()) if name in _FILES else 0


def locate(name: str, file: str, root: str | Path | None, base_url: str | None) -> Path:
    """The path of one file of a data set, downloaded if need be.

    With ``root`` or the environment variable ABKD_DATA the file is ROOT/<name>/<file> and never
    downloaded. Otherwise it lives in the user's cache and is fetched and verified.

    Args:
        name: of the data set.
        file: its file name.
        root: folder of local data sets.
        base_url: address to download from instead of the published one.

    Raises:
        DataError: names the file and the fix.
    """
    base = root or os.environ.get("ABKD_DATA")
    if base:
        path = Path(base) / name / file
        if not path.is_file():
            if name in LOCAL:
                raise DataError(f"{path}: no such file; put it there, from {LOCAL[name]}")
            raise DataError(
                f"{path}: no such file; put it there, or leave out root (--root) and ABKD_DATA to "
                f"download it from {_FILES[name][0]}/{file}"
            )
        return path
    if name in LOCAL:
        raise DataError(
            f"{name} is read from local files: put {file}, from {LOCAL[name]}, into "
            f"ROOT/{name} and give root (--root ROOT) or ABKD_DATA"
        )
    address, files = _FILES[name]
    size, sha256 = files[file]
    remote = RemoteFile(f"{(base_url or address).rstrip('/')}/{file}", size, sha256)
    return fetch(remote, cache_dir() / name / file)
