"""RDF graphs in N-Triples files, plain or gzipped, as typed edges."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from abkd_fast.data.errors import DataError
from abkd_fast.relational_graph import RelationalGraph

_NODE = r"<[^<>\s]*>|_:\S+"
_LITERAL = r'"(?:[^"\\]|\\.)*"(?:@[A-Za-z0-9-]+|\^\^<[^<>\s]*>)?'
_TRIPLE = re.compile(rf"({_NODE})\s+(<[^<>\s]*>)\s+({_NODE}|{_LITERAL})\s*\.\s*(?:#.*)?")
_LONGEST = 1 << 20  # characters of a line


def read_ntriples(path: Path) -> tuple[RelationalGraph, list[str], list[str]]:
    """Read a graph of one node type "entity" with a relation a predicate.

    Subjects and objects, literals too, are the nodes; nodes and relations are numbered in the
    order of their text, whatever the order of the lines. Repeated triples count once.

    Args:
        path: the file; ``.gz`` is unpacked on the way.

    Returns:
        The graph, the text of every node (as it stands in the file, in brackets or quotes) and
        of every relation.

    Raises:
        DataError: names the file and the line that is no triple.
    """
    triples = set(_triples(path))
    if not triples:
        raise DataError(f"{path}: must hold at least one triple, got none")
    entities = sorted({end for triple in triples for end in (triple[0], triple[2])})
    predicates = sorted({triple[1] for triple in triples})
    node = {text: i for i, text in enumerate(entities)}
    relation = {text: i for i, text in enumerate(predicates)}
    rows = sorted((relation[p], node[s], node[o]) for s, p, o in triples)
    kinds, source, target = torch.tensor(rows).t()
    edge_index = torch.stack([source, target])
    edges = {
        ("entity", text[1:-1], "entity"): edge_index[:, kinds == r] for text, r in relation.items()
    }
    graph = RelationalGraph.from_relations({"entity": len(entities)}, edges)
    return graph, entities, predicates


def _triples(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST), ""), start=1):
                found = _TRIPLE.fullmatch(line.strip())
                if found is not None:
                    yield found[1], found[2], found[3]
                elif line.strip() and not line.lstrip().startswith("#"):
                    raise DataError(
                        f"{path}: line {number} must be <subject> <predicate> object ., "
                        f"got {line.strip()[:80]!r}"
                    )
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: must be text in N-Triples, got: {error}") from error
