"""Draw a page while the addresses of the machine change: run in a network namespace of its own."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llmtrain_pictures.chromium import browser

PARTS = 14
"""More than the connections that a browser opens to one server: the other requests wait."""
NOTICE_SECONDS = 2.0
"""Chromium reacts to new addresses within a second."""
PAGE = f"""<script>
const part = async (_, number) => (await fetch(`/part/${{number}}`)).text();
Promise.all(Array.from({{ length: {PARTS} }}, part)).then(
  (parts) => {{ document.body.append(parts.join(' ')); window.problems = []; }},
  (error) => {{ window.problems = [String(error)]; }},
);
</script><body></body>"""


class _Handler(BaseHTTPRequestHandler):
    changing = threading.Lock()
    changed = False

    def do_GET(self) -> None:
        """Answer with the page, or with a part of it after the addresses have changed."""
        body = PAGE
        if self.path.startswith("/part/"):
            with _Handler.changing:
                if not _Handler.changed:
                    _change_addresses()
                    _Handler.changed = True
            body = self.path.removeprefix("/part/")
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def _change_addresses() -> None:
    """Do what a container engine does when a container starts."""
    _ip("link", "add", "started0", "type", "veth", "peer", "name", "started1")
    _ip("address", "add", "192.0.2.1/24", "dev", "started0")
    _ip("link", "set", "started0", "up")
    _ip("link", "set", "started1", "up")
    time.sleep(NOTICE_SECONDS)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


async def _draw(port: int) -> None:
    async with browser() as opened:
        picture = await opened.picture(f"http://127.0.0.1:{port}/", width=400)
    print(picture.problems, picture.text)


def main() -> None:
    """Print the problems and the text of the page."""
    _ip("link", "set", "lo", "up")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asyncio.run(_draw(server.server_port))
        server.shutdown()


if __name__ == "__main__":
    main()
