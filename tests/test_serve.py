"""examples/serve.py answers node queries over HTTP, and measures itself."""

import http.client
import importlib.util
import json
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import small_data

from abkd_fast.export import ExportedServer, export_student
from abkd_fast.nn import GCN

# torch itself uses what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples/serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def student(tmp_path):
    """(model, data, a program of it that reads A_hat X)"""
    torch.manual_seed(0)
    model, data = GCN(8, 4, 2, 3).eval(), small_data()
    exported = export_student(model, data, tmp_path / "s.pt2", first_hop=True)
    return model, data, ExportedServer(exported, data)


def test_answers_and_refuses(serve, student):
    model, data, scores = student
    with torch.no_grad():
        expected = model(data.x, data.graph)
    server = serve.make_server(scores, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(path):
        client.request("GET", path)
        response = client.getresponse()
        return response.status, json.loads(response.read())

    with closing(http.client.HTTPConnection(*server.server_address)) as client:
        status, answer = get("/scores?nodes=7,59,0")
        assert status == 200 and answer["nodes"] == [7, 59, 0]
        torch.testing.assert_close(torch.tensor(answer["scores"]), expected[[7, 59, 0]])
        assert answer["classes"] == expected[[7, 59, 0]].argmax(1).tolist()
        for query in ("", "?nodes=", "?nodes=x", "?nodes=60", "?nodes=-1", "?nodes=2,2", "?n=1"):
            status, answer = get(f"/scores{query}")
            assert status == 400 and answer["error"], query
        assert get("/other")[0] == 404
        assert get("/scores?nodes=7")[0] == 200  # it is still there
    server.shutdown()
    server.server_close()


def test_measures_itself(serve, student):
    _, data, scores = student
    found, rows = serve.measure(scores, data.num_nodes, 64, 5.0, [1, 2], trial=0.05)
    assert set(found) == {"program", "HTTP"}
    assert all(len(side.samples) <= 64 and side.p50 > 0 for side in found.values())
    assert [row["clients"] for row in rows] == [1, 2]
    assert all(row["queries_per_s"] > 0 and row["p50"] > 0 for row in rows)
