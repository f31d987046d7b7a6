"""A small HTTP server of node queries, from an exported student.

    abkd-fast export runs/small --format aoti --out student.aoti.pt2
    python examples/serve.py student.aoti.pt2                 # serves until Ctrl-C
    python examples/serve.py student.aoti.pt2 --measure       # latency instead, and stops
    python examples/serve.py student.pt2 --data my.npz        # a student of your own data
    curl 'http://127.0.0.1:8000/scores?nodes=1,2,3'

A GCN exported with ``--first-hop`` reads A_hat X, computed once here, and aggregates one hop
less for every query. GET /scores?nodes=I,J answers {"nodes": [...], "scores": [[...]],
"classes": [...]}; for multilabel and binary tasks a list of classes for every node.
The standard library's server: for a demonstration, not for the open internet.
"""

import http.client
import itertools
import json
import re
import sys
import threading
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import torch
import tyro

from abkd_fast import latency
from abkd_fast._trained import data_of
from abkd_fast.config import ReadOptions, SettingError
from abkd_fast.data import GraphData
from abkd_fast.export import Exported, ExportedServer, load_export


class Handler(BaseHTTPRequestHandler):
    """Answers GET /scores?nodes=I,J with the scores of the nodes."""

    protocol_version = "HTTP/1.1"  # a client keeps its connection
    disable_nagle_algorithm = True
    timeout = 10  # seconds that a client may be silent
    scores: ExportedServer

    def handle(self) -> None:
        """All queries of a connection, until the client leaves."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """One query."""
        lengths = set(self.headers.get_all("Content-Length", []))
        if lengths - {"0"} or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what follows is no request
            return self._answer(400, {"error": "GET must have no body"})
        try:
            request = urlsplit(self.path)
            if request.path != "/scores":
                return self._answer(404, {"error": "ask for /scores?nodes=I,J"})
            nodes = parse_nodes(request.query)
            scores = self.scores(torch.tensor(nodes))
        except (ValueError, RuntimeError) as error:
            return self._answer(400, {"error": str(error)})
        classes = self.scores.classes(scores)
        return self._answer(200, {"nodes": nodes, "scores": scores.tolist(), "classes": classes})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: a line a query would be part of its latency."""


def parse_nodes(query: str) -> list[int]:
    """The nodes that ``nodes=I,J`` names, once or several times; ValueError says what is wrong."""
    parts = ",".join(parse_qs(query).get("nodes", [""])).split(",")
    for part in parts:
        if not re.fullmatch(r"-?[0-9]{1,18}", part):
            raise ValueError(f"nodes must be node numbers, nodes=I,J, got {part[:40]!r}")
    return [int(part) for part in parts]


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


@dataclass(frozen=True)
class Options:
    """A small HTTP server of node queries, from an exported student."""

    program: tyro.conf.Positional[Path]
    """What abkd-fast export wrote."""
    dataset: str | None = None
    """A registered data set; default: the one that it was exported with."""
    data: Path | None = None
    """Your own data instead: FILE.npz or a folder."""
    root: Path | None = None
    """Folder with the raw files; default: $ABKD_DATA."""
    read: tyro.conf.FlagConversionOff[ReadOptions] = ReadOptions()
    """How to read --data; default: as for the export."""
    host: str = "127.0.0.1"
    port: int = 8000
    measure: bool = False
    """Print latency and stop."""
    samples: int = 662
    """Timed calls of a side."""
    seconds: float = 10.0
    """Of timed calls of a side, at most."""
    clients: tuple[int, ...] = (1, 2, 4)
    """Numbers of clients that ask at a time."""

    def __post_init__(self) -> None:
        counts = {"samples": self.samples, "clients": min(self.clients, default=0)}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must lie in [0, 65536), got {self.port}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


def served_data(options: Options, exported: Exported) -> GraphData:
    """The data to serve; a line on stderr says where they are not those of the export."""
    about, read = exported.about, options.read
    if read == ReadOptions():
        read = ReadOptions.parse(about.get("read") or {})
    graph = data_of(options.data, options.dataset, options.root, read, about["dataset"])
    if about.get("fingerprint", graph.fingerprint()) != graph.fingerprint():
        how = "" if about.get("read") in (None, asdict(read)) else f", read with {about['read']}"
        print(
            f"serve.py: {options.program} was exported with other data than {graph.name} (another "
            f"graph, other features, labels or split than {about['dataset']!r} had then{how})",
            file=sys.stderr,
        )
    return graph


def run(options: Options) -> None:
    """Serve, or measure."""
    torch.set_num_threads(1)
    exported = load_export(options.program)
    scores = ExportedServer(exported, served_data(options, exported))
    if options.measure:
        size = scores.num_nodes, options.samples, options.seconds
        found, rows = measure(scores, *size, list(options.clients))
        for measurement in found.values():
            print(measurement)
        for row in rows:
            many, p50 = row["queries_per_s"], row["p50"]
            print(f"HTTP, {row['clients']} clients: {many:.0f} queries/s, p50 {p50:.4g} ms")
        return
    with make_server(scores, options.host, options.port) as server:
        print(f"http://{options.host}:{server.server_address[1]}/scores?nodes=0", flush=True)
        server.serve_forever()


def main() -> None:
    """Serve, or measure; exit code 1 where a file or the data are wrong, 2 for wrong flags."""
    options = tyro.cli(Options)
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
