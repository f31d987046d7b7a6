import gzip
import shutil

import pytest
import torch

from abkd_fast.data import DataError, load
from abkd_fast.data.ntriples import read_ntriples

TRIPLES = """# a comment
<a> <knows> <b> .
<a> <knows> <b> .

_:blank <knows> <a> .
<b> <name> "B \\"quoted\\" . "@en .
<b> <age> "4"^^<integer> . # so old
"""


@pytest.mark.parametrize("name", ["graph.nt", "graph.nt.gz"])
def test_ntriples(tmp_path, name):
    path = tmp_path / name
    data = TRIPLES.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    graph, entities, predicates = read_ntriples(path)
    assert predicates == ["<age>", "<knows>", "<name>"]
    assert entities == ['"4"^^<integer>', '"B \\"quoted\\" . "@en', "<a>", "<b>", "_:blank"]
    assert graph.num_edges_of == (1, 2, 1)
    knows = graph.relation(("entity", "knows", "entity"))
    assert knows.to_edge_index()[0].tolist() == [[4, 2], [2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"<a> <p> <b> .\n<a> <p> <b>\n", r"line 2 must be <subject> <predicate> object \."),
        (b'<a> "p" <b> .\n', "line 1 must be"),
        (b"\xff\xfe", "must be text in N-Triples"),
        (b"# nothing\n", "must hold at least one triple, got none"),
    ],
)
def test_ntriples_errors(tmp_path, text, message):
    path = tmp_path / "broken.nt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_ntriples(path)


def test_truncated_and_missing_files(tmp_path):
    path = tmp_path / "graph.nt.gz"
    path.write_bytes(gzip.compress(TRIPLES.encode() * 50)[:-20])
    with pytest.raises(DataError, match="must be text in N-Triples"):
        read_ntriples(path)
    with pytest.raises(DataError, match="no such file; put it there, from tkipf"):
        load("aifb", tmp_path)


def test_local_data_sets_say_where_they_come_from(monkeypatch):
    monkeypatch.delenv("ABKD_DATA", raising=False)
    with pytest.raises(DataError, match="acm-hetero is read from local files: .*HeCo.*--root"):
        load("acm-hetero")


def test_aifb(abkd_data):
    data = load("aifb", abkd_data)
    assert data.relations.num_nodes == {"entity": 8285}
    assert data.relations.num_relations == 90 and data.relations.num_edges == 2 * 29_043
    counts = [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)]
    assert counts == [112, 28, 36]
    assert sorted(data.y[data.y >= 0].bincount().tolist()) == [15, 28, 60, 73]
    other = load("aifb", abkd_data, split_seed=1)
    assert torch.equal(other.test_mask, data.test_mask)
    assert not torch.equal(other.val_mask, data.val_mask)
    with pytest.raises(ValueError, match=r"validation must be in \(0, 1\), got 1"):
        load("aifb", abkd_data, validation=1)


def test_aifb_tables_that_do_not_fit(abkd_data, tmp_path):
    shutil.copytree(abkd_data / "aifb", tmp_path / "aifb")
    for path in (tmp_path / "aifb").iterdir():
        path.chmod(0o644)
    table = tmp_path / "aifb" / "testSet.tsv"
    table.write_text("person\tid\tlabel_affiliation\nnobody\t1\tgroup\n")
    with pytest.raises(DataError, match="line 2 names <nobody>, which is in no triple"):
        load("aifb", tmp_path)
    table.write_text("person\tid\tlabel_affiliation\nnobody\n")
    with pytest.raises(DataError, match="line 2 must have 3 cells, got 1"):
        load("aifb", tmp_path)
    table.write_text("who\n")
    with pytest.raises(DataError, match="line 1 must name person and label_affiliation"):
        load("aifb", tmp_path)


def test_acm(abkd_data):
    data = load("acm-hetero", abkd_data)
    assert data.relations.num_nodes == {"paper": 4019, "author": 7167, "subject": 60}
    assert data.relations.num_edges_of == (13_407, 4_019, 13_407, 4_019)
    assert data.y.bincount().tolist() == [1993, 965, 1061]
    assert data.x.shape == (4019, 1902) and data.other_x["author"].shape == (7167, 1902)
    assert int(load("acm-hetero", abkd_data, labels_per_class=60).train_mask.sum()) == 180
    with pytest.raises(ValueError, match="labels_per_class must be 20, 40 or 60, got 30"):
        load("acm-hetero", abkd_data, labels_per_class=30)
