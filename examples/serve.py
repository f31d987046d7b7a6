"""A small HTTP server of node queries, from an exported student.

    abkd-fast export runs/small --out student.pt2
    python examples/serve.py student.pt2                 # serves until Ctrl-C
    python examples/serve.py student.pt2 --measure       # latency instead, and stops
    curl 'http://127.0.0.1:8000/scores?nodes=1,2,3'

A GCN exported with ``--first-hop True`` reads A_hat X, computed once here, and aggregates one hop
less for every query. GET /scores?nodes=I,J answers {"nodes": [...], "scores": [[...]],
"classes": [...]}. The standard library's server: for a demonstration, not for the open internet.
"""

import argparse
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import torch

from abkd_fast import data, latency
from abkd_fast.export import ExportedServer, load_export


class Handler(BaseHTTPRequestHandler):
    """Answers GET /scores?nodes=I,J with the scores of the nodes."""

    protocol_version = "HTTP/1.1"  # a client keeps its connection
    disable_nagle_algorithm = True
    scores: ExportedServer

    def do_GET(self) -> None:
        """One query."""
        request = urlsplit(self.path)
        if request.path != "/scores":
            return self._answer(404, {"error": "ask for /scores?nodes=I,J"})
        try:
            given = parse_qs(request.query).get("nodes", [""])[0]
            nodes = torch.tensor([int(part) for part in given.split(",")])
            scores = self.scores(nodes)
        except (ValueError, RuntimeError, IndexError) as error:
            return self._answer(400, {"error": str(error).splitlines()[0]})
        classes = scores.argmax(1).tolist()
        answer = {"nodes": nodes.tolist(), "scores": scores.tolist(), "classes": classes}
        return self._answer(200, answer)

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: a line a query would be part of its latency."""


def make_server(scores: ExportedServer, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is not running yet."""
    handler = type("NodeHandler", (Handler,), {"scores": staticmethod(scores)})
    return ThreadingHTTPServer((host, port), handler)


def measure(scores: ExportedServer, num_nodes: int, samples: int, clients: list[int]) -> None:
    """Print latency of the program, of HTTP around it, and queries a second."""
    server = make_server(scores, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    drawn = torch.randint(num_nodes, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    turn, kept = iter(range(10**12)), threading.local()

    def ask() -> bytes:
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(*server.server_address)
        kept.connection.request("GET", f"/scores?nodes={drawn[next(turn) % len(drawn)]}")
        return kept.connection.getresponse().read()

    def call() -> torch.Tensor:
        return scores(torch.tensor([drawn[next(turn) % len(drawn)]]))

    found = latency.compare({"program": call, "HTTP": ask}, samples=samples)
    for measurement in found.values():
        print(measurement)
    for row in latency.throughput(ask, clients, seconds=2.0):
        print(f"HTTP, {row['clients']} clients: {row['queries_per_s']:.0f} queries/s")
    server.shutdown()


def main() -> None:
    """Serve, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="what abkd-fast export wrote")
    parser.add_argument("--dataset", help="default: the one it was exported with")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--measure", action="store_true", help="print latency and stop")
    parser.add_argument("--samples", type=int, default=662)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    exported = load_export(options.program)
    graph = data.load(options.dataset or exported.about["dataset"])
    scores = ExportedServer(exported, graph)
    if options.measure:
        measure(scores, graph.num_nodes, options.samples, options.clients)
        return
    server = make_server(scores, options.host, options.port)
    print(f"http://{options.host}:{server.server_address[1]}/scores?nodes=0")
    server.serve_forever()


if __name__ == "__main__":
    main()
