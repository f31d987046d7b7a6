"""The data sets known by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abkd_fast.data.assemble import ReadOptions
from abkd_fast.data.digits import digits
from abkd_fast.data.errors import DataError
from abkd_fast.data.folder import from_folder
from abkd_fast.data.graph_data import GraphData
from abkd_fast.data.npz import from_npz
from abkd_fast.data.planetoid import read_planetoid
from abkd_fast.data.sources import LOCAL, locate, total_bytes
from abkd_fast.data.synthetic import dcsbm, rmat_data
from abkd_fast.data.typed import acm, aifb


@dataclass(frozen=True)
class Dataset:
    """One entry: how to read it, and its numbers at the default options."""

    name: str
    summary: str
    nodes: int
    edges: int
    features: int
    classes: int
    split: str
    read: Callable[..., GraphData]

    @property
    def source(self) -> str:
        """Where the data come from."""
        size = total_bytes(self.name)
        if size:
            return f"download, {size / 1e6:.1f} MB"
        if self.name in LOCAL:
            return "local files"
        return "generated" if self.name.startswith("synthetic") else "embedded"

    def options(self) -> list[str]:
        """Keywords of ``read``."""
        return list(inspect.signature(self.read).parameters)


def _planetoid(
    name: str,
    *,
    root: str | Path | None = None,
    base_url: str | None = None,
    normalize: bool = True,
) -> GraphData:
    return read_planetoid(
        name, lambda file: locate(name, file, root, base_url), normalize=normalize
    )


def _random_split_npz(
    name: str,
    file: str,
    row_normalized: bool,
    *,
    root: str | Path | None = None,
    base_url: str | None = None,
    normalize: bool | None = None,
    split_seed: int = 0,
    train_per_class: int = 20,
    val_per_class: int = 30,
) -> GraphData:
    options = ReadOptions(
        undirected=True,
        self_loops=False,
        normalize=row_normalized if normalize is None else normalize,
        split_seed=split_seed,
        train_per_class=train_per_class,
        val_per_class=val_per_class,
        name=name,
    )
    return from_npz(locate(name, file, root, base_url), options)


def _minesweeper(
    *, root: str | Path | None = None, base_url: str | None = None, split: int = 0
) -> GraphData:
    options = ReadOptions(undirected=True, split=split, name="minesweeper")
    return from_npz(locate("minesweeper", "minesweeper.npz", root, base_url), options)


_BAG, _TFIDF, _RANDOM = "bag of words", "TF-IDF", "20/30 per class"
_PHOTO = partial(_random_split_npz, "amazon-photo", "amazon_photo.npz", True)
_CS = partial(_random_split_npz, "coauthor-cs", "coauthor_cs.npz", True)
_ML = partial(_random_split_npz, "cora-ml", "cora_ml.npz", False)
_CORA, _CITESEER, _PUBMED = (partial(_planetoid, name) for name in ("cora", "citeseer", "pubmed"))
_MINES = "5000/2500/2500"
_ALL = (
    Dataset("digits", "digit images", 1797, 24678, 64, 10, "200/500/1097", digits),
    Dataset("cora", f"citations, {_BAG}", 2708, 10556, 1433, 7, "140/500/1000", _CORA),
    Dataset("citeseer", f"citations, {_BAG}", 3327, 9104, 3703, 6, "120/500/1000", _CITESEER),
    Dataset("pubmed", f"citations, {_TFIDF}", 19717, 88648, 500, 3, "60/500/1000", _PUBMED),
    Dataset("amazon-photo", f"co-purchases, {_BAG}", 7650, 238162, 745, 8, _RANDOM, _PHOTO),
    Dataset("coauthor-cs", "co-authors, keywords", 18333, 163788, 6805, 15, _RANDOM, _CS),
    Dataset("cora-ml", f"citations, {_TFIDF}", 2995, 16316, 2879, 7, _RANDOM, _ML),
    Dataset("minesweeper", "grid game, heterophilous", 10000, 78804, 7, 2, _MINES, _minesweeper),
    Dataset("aifb", "RDF, typed, no features", 8285, 58086, 8285, 4, "112/28/36", aifb),
    Dataset("acm-hetero", "papers, typed", 4019, 53834, 1902, 3, "60/1000/1000", acm),
    Dataset("synthetic-rmat", "R-MAT, for timing only", 4096, 53360, 64, 8, _RANDOM, rmat_data),
    Dataset("synthetic-dcsbm", "stochastic blocks", 5000, 47040, 64, 8, _RANDOM, dcsbm),
)
_DATASETS = {dataset.name: dataset for dataset in _ALL}


def names() -> list[str]:
    """The names that :func:`load` knows, the default first."""
    return list(_DATASETS)


def describe() -> list[dict[str, Any]]:
    """One row per data set for tables: name, summary, source, sizes, split, options.

    Sizes are those at the default options; ``edges`` counts both directions.
    """
    columns = ("name", "summary", "source", "nodes", "edges", "features", "classes", "split")
    return [
        {column: getattr(dataset, column) for column in columns}
        | {"options": [option for option in dataset.options() if option != "root"]}
        for dataset in _DATASETS.values()
    ]


def load(name: str, root: str | Path | None = None, **options: Any) -> GraphData:
    """Load a data set by name.

    Args:
        name: one of :func:`names`.
        root: folder with local files, ROOT/<name>/...; default: the environment variable
            ABKD_DATA; without either, files are downloaded once into the user's cache. Data sets
            that need no file ignore it.
        **options: of this data set, see :func:`describe`; for example ``split_seed``.

    Raises:
        ValueError: unknown name (the closest one is given) or option.
        DataError: a file is missing, broken or cannot be downloaded.
    """
    check_name(name)
    dataset = _DATASETS[name]
    known = dataset.options()
    unknown = sorted(set(options) - set(known))
    if unknown:
        allowed = ", ".join(option for option in known if option != "root")
        raise ValueError(f"options of {name} must be among {allowed}, got {', '.join(unknown)}")
    if "root" in known:
        options["root"] = root
    return dataset.read(**options)


def check_name(name: str) -> None:
    """Raise ValueError with the closest name unless ``name`` is one of :func:`names`."""
    if name not in _DATASETS:
        close = difflib.get_close_matches(str(name).lower(), _DATASETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"name must be one of {', '.join(_DATASETS)}, got {name!r}; {hint}"
            "For files of your own use load_path (--data)"
        )


def load_path(path: str | Path, **options: Any) -> GraphData:
    """Load data of your own: a .npz file or a folder of edges, features, labels and a split.

    docs/data.md describes both. Pickles are never executed.

    Args:
        path: the file or folder.
        **options: the fields of :class:`ReadOptions`, for example ``undirected=True``.

    Raises:
        ValueError: unknown option.
        DataError: names the file, the line or array, the expectation and the value found.
    """
    path, parsed = Path(path), ReadOptions.parse(options)
    if path.is_dir():
        return from_folder(path, parsed)
    if path.suffix == ".npz":
        return from_npz(path, parsed)
    found = f"a {path.suffix or 'nameless'} file" if path.exists() else "nothing there"
    raise DataError(f"{path}: must be a .npz file or a folder with edges.csv, ..., got {found}")
