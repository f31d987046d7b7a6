"""A small HTTP server of node queries, from an exported student.

    abkd-fast export runs/small --format aoti --out student.aoti.pt2
    python examples/serve.py student.aoti.pt2                 # serves until Ctrl-C
    python examples/serve.py student.aoti.pt2 --measure       # latency instead, and stops
    curl 'http://127.0.0.1:8000/scores?nodes=1,2,3'

A GCN exported with ``--first-hop`` reads A_hat X, computed once here, and aggregates one hop
less for every query. GET /scores?nodes=I,J answers {"nodes": [...], "scores": [[...]],
"classes": [...]}. The standard library's server: for a demonstration, not for the open internet.
"""

import argparse
import http.client
import itertools
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


def measure(
    scores: ExportedServer,
    num_nodes: int,
    samples: int,
    seconds: float,
    clients: list[int],
    trial: float = 2.0,
) -> tuple[dict[str, latency.Measurement], list[dict[str, float]]]:
    """Latency of the program and of HTTP around it, in turns; then queries of several clients.

    Args:
        scores: what is measured.
        num_nodes: nodes are drawn from these.
        samples: calls of each side.
        seconds: of timed calls of each side, at most.
        clients: numbers of clients that ask in a closed loop.
        trial: seconds of each such loop.
    """
    server = make_server(scores, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    drawn = torch.randint(num_nodes, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    turn, kept, connections = itertools.count(), threading.local(), []

    def ask() -> bytes:
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(*server.server_address)
            connections.append(kept.connection)
        kept.connection.request("GET", f"/scores?nodes={drawn[next(turn) % len(drawn)]}")
        return kept.connection.getresponse().read()

    def call() -> torch.Tensor:
        return scores(torch.tensor([drawn[next(turn) % len(drawn)]]))

    found = latency.compare({"program": call, "HTTP": ask}, samples=samples, seconds=seconds)
    rows = latency.throughput(ask, clients, seconds=trial)
    for connection in connections:
        connection.close()
    server.shutdown()
    server.server_close()
    return found, rows


def main() -> None:
    """Serve, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="what abkd-fast export wrote")
    parser.add_argument("--dataset", help="default: the one it was exported with")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--measure", action="store_true", help="print latency and stop")
    parser.add_argument("--samples", type=int, default=662)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timed calls of a side")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    exported = load_export(options.program)
    graph = data.load(options.dataset or exported.about["dataset"])
    scores = ExportedServer(exported, graph)
    if options.measure:
        size = graph.num_nodes, options.samples, options.seconds
        found, rows = measure(scores, *size, options.clients)
        for measurement in found.values():
            print(measurement)
        for row in rows:
            many, p50 = row["queries_per_s"], row["p50"]
            print(f"HTTP, {row['clients']} clients: {many:.0f} queries/s, p50 {p50:.4g} ms")
        return
    server = make_server(scores, options.host, options.port)
    print(f"http://{options.host}:{server.server_address[1]}/scores?nodes=0")
    server.serve_forever()


if __name__ == "__main__":
    main()
