"""Serve the page, the dashboards, and Prometheus below `/prom`, at one loopback address."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROXY_SECONDS = 30


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, dashboards: Path, prometheus: str, **named: Any) -> None:
        self._dashboards = dashboards
        self._prometheus = prometheus
        super().__init__(*args, **named)

    def do_GET(self) -> None:
        """Answer from Prometheus, from the dashboards, or with a file of the page."""
        if self.path.startswith("/prom/"):
            self._answer(*self._asked(self.path.removeprefix("/prom")))
        elif self.path.startswith("/dashboards/"):
            path = self._dashboards / Path(self.path).name
            self._answer(200, path.read_bytes()) if path.is_file() else self.send_error(404)
        else:
            super().do_GET()

    def _asked(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self._prometheus + path, timeout=PROXY_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def page_server(page: Path, dashboards: Path, prometheus: str) -> Iterator[str]:
    """Serve until the block ends; its value is the address of the page."""
    handler = partial(_Handler, directory=str(page), dashboards=dashboards, prometheus=prometheus)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()
