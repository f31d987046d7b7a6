"""examples/serve.py answers node queries over HTTP, and measures itself."""

import http.client
import importlib.util
import json
import socket
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import small_data
from study_files import write_data

from abkd_fast import save_model
from abkd_fast.cli import main
from abkd_fast.data import load_path
from abkd_fast.export import ExportedServer, export_student
from abkd_fast.model_file import ModelFile
from abkd_fast.nn import GCN

# torch itself uses what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples/serve.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve"] = module  # where its flags' types are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["serve"]


@pytest.fixture
def student(tmp_path):
    """(model, data, a program of it that reads A_hat X)"""
    torch.manual_seed(0)
    model, data = GCN(8, 4, 2, 3).eval(), small_data()
    exported = export_student(model, data, tmp_path / "s.pt2", first_hop=True)
    return model, data, ExportedServer(exported, data)


@contextmanager
def running(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_answers_and_refuses(serve, student):
    model, data, scores = student
    with torch.no_grad():
        expected = model(data.x, data.graph)

    def get(path):
        client.request("GET", path)
        response = client.getresponse()
        return response.status, json.loads(response.read())

    with (
        running(serve.make_server(scores, "127.0.0.1", 0)) as server,
        closing(http.client.HTTPConnection(*server.server_address)) as client,
    ):
        status, answer = get("/scores?nodes=7,59,0")
        assert status == 200 and answer["nodes"] == [7, 59, 0]
        torch.testing.assert_close(torch.tensor(answer["scores"]), expected[[7, 59, 0]])
        assert answer["classes"] == expected[[7, 59, 0]].argmax(1).tolist()
        for query, message in (
            ("", "nodes must be node numbers, nodes=I,J, got ''"),
            ("?nodes=", "nodes must be node numbers, nodes=I,J, got ''"),
            ("?nodes=x", "nodes must be node numbers, nodes=I,J, got 'x'"),
            ("?nodes=1_0", "nodes must be node numbers, nodes=I,J, got '1_0'"),
            ("?nodes=" + "9" * 30, f"nodes must be node numbers, nodes=I,J, got '{'9' * 30}'"),
            ("?nodes=60", "nodes must lie in [0, 60), got 60"),
            ("?nodes=-1", "nodes must lie in [0, 60), got -1"),
            ("?nodes=2,2", "nodes must be distinct, got 2 more than once"),
            ("?n=1", "nodes must be node numbers, nodes=I,J, got ''"),
        ):
            assert get(f"/scores{query}") == (400, {"error": message})
        assert get("/other")[0] == 404
        assert get("/scores?nodes=7&nodes=59")[1]["nodes"] == [7, 59]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /scores?nodes=1 HTTP/1.1\r\nContent-Length: 20\r\n\r\nGET /other HTTP/1.1\r\n", 400),
        (b"GET /scores?nodes=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET http://[::1 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
    ],
)
def test_malformed_requests_get_one_answer(request_, status, serve, student):
    with (
        running(serve.make_server(student[2], "127.0.0.1", 0)) as server,
        socket.create_connection(server.server_address, timeout=5) as client,
    ):
        client.sendall(request_)
        answer = b"".join(iter(lambda: client.recv(4096), b""))  # until the server closes
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and answer.count(b"HTTP/1.1") == 1


def test_clients_that_hang_up_leave_no_traceback(serve, student, capfd):
    with running(serve.make_server(student[2], "127.0.0.1", 0)) as server:
        query = ",".join(map(str, range(60)))
        for _ in range(5):
            with socket.create_connection(server.server_address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(f"GET /scores?nodes={query} HTTP/1.1\r\n\r\n".encode() * 20)
        with closing(http.client.HTTPConnection(*server.server_address)) as client:
            client.request("GET", "/scores?nodes=7")
            assert client.getresponse().status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_silent_clients_are_let_go(serve, student, monkeypatch):
    assert serve.Handler.timeout == 10
    monkeypatch.setattr(serve.Handler, "timeout", 0.05)
    with (
        running(serve.make_server(student[2], "127.0.0.1", 0)) as server,
        socket.create_connection(server.server_address, timeout=5) as client,
    ):
        client.sendall(b"GET /sco")
        assert client.recv(1) == b""


def test_classes_of_multilabel_tasks(serve, tmp_path):
    torch.manual_seed(0)
    data = small_data()
    labels = torch.nn.functional.one_hot(data.y, 3).float()
    data = replace(data, y=labels, task="multilabel")
    model = GCN(8, 4, 2, 3).eval()
    scores = ExportedServer(export_student(model, data, tmp_path / "s.pt2"), data)
    with (
        running(serve.make_server(scores, "127.0.0.1", 0)) as server,
        closing(http.client.HTTPConnection(*server.server_address)) as client,
    ):
        client.request("GET", "/scores?nodes=0,1,2,3")
        answer = json.loads(client.getresponse().read())
    expected = [[i for i, score in enumerate(row) if score > 0] for row in answer["scores"]]
    assert answer["classes"] == expected


@pytest.fixture
def own_export(tmp_path):
    """A program of a student of files of one's own, and the command that serves it."""
    write_data(tmp_path)
    file = str(tmp_path / "tiny.npz")
    trained = load_path(file, undirected=True)
    about = ModelFile("gcn-2x4", 3, 3, {}, "tiny", trained.fingerprint())
    save_model(tmp_path / "student.safetensors", about.build(), about)
    main(["export", str(tmp_path), "--data", file, "--read.undirected", "True"])
    return str(tmp_path / "student.pt2"), file


def test_serves_own_files(serve, own_export, monkeypatch, capsys):
    program, file = own_export
    command = ["serve.py", program, "--data", file, "--measure", "--samples", "8"]
    command += ["--seconds", "0.1", "--clients", "1"]
    monkeypatch.setattr(sys, "argv", command)
    serve.main()
    shown = capsys.readouterr()
    assert "HTTP, 1 clients" in shown.out and "other data" not in shown.err
    monkeypatch.setattr(sys, "argv", [*command, "--read.self-loops", "False"])
    serve.main()
    assert "was exported with other data than tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "error: dataset must be given: 'tiny', which the model was trained on"),
        (["--data", "absent.npz"], 1, "absent.npz"),
        (["--dataset", "digits"], 1, "error: data must have 3 features, got 64"),
        (["--samples", "0"], 2, "samples must be >= 1, got 0"),
        (["--clients", "0"], 2, "clients must be >= 1, got 0"),
        (["--port", "70000"], 2, "port must lie in [0, 65536), got 70000"),
    ],
)
def test_errors_are_one_readable_message(
    flags, code, message, serve, own_export, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["serve.py", own_export[0], *flags])
    with pytest.raises(SystemExit) as stop:
        serve.main()
    assert stop.value.code == code
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_programs_that_cannot_be_served_are_named(serve, tmp_path, monkeypatch, capsys):
    data = small_data()
    export_student(GCN(8, 4, 2, 3).eval(), data, tmp_path / "baked.pt2", bake_graph=True)
    about = tmp_path / "baked.pt2.json"
    about.write_text(about.read_text().replace('"small"', '"digits"'))
    for file, message in (
        ("absent.pt2", "absent.pt2 must have absent.pt2.json beside it"),
        ("baked.pt2", "exported must take the graph as input, got a program with it inside"),
    ):
        monkeypatch.setattr(sys, "argv", ["serve.py", str(tmp_path / file)])
        with pytest.raises(SystemExit) as stop:
            serve.main()
        assert stop.value.code == 1 and message in capsys.readouterr().err


def test_measures_itself(serve, student):
    _, data, scores = student
    found, rows = serve.measure(scores, data.num_nodes, 64, 5.0, [1, 2], trial=0.05)
    assert set(found) == {"program", "HTTP"}
    assert all(len(side.samples) <= 64 and side.p50 > 0 for side in found.values())
    assert [row["clients"] for row in rows] == [1, 2]
    assert all(row["queries_per_s"] > 0 and row["p50"] > 0 for row in rows)
