"""Open pages in a headless Chromium over its debugging protocol, and take pictures of them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from llmtrain_images.debian import install_missing

PROGRAM = "chromium"
PACKAGES = ("chromium", "fonts-dejavu-core")
START_SECONDS = 60.0
END_SECONDS = 60.0
LOAD_SECONDS = 90.0
MESSAGE_BYTES = 1 << 28
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
    # The browser connects to this machine only.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class BrowserError(RuntimeError):
    """The browser did not start, or a page did not load; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a whole page."""

    png: bytes
    text: str
    """What a reader sees, without the graphics."""
    problems: tuple[str, ...]
    """What the page reports in `window.problems`: queries without data, for example."""


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Run a browser until the block ends."""
    install_missing([PROGRAM], PACKAGES, print)
    home = Path(tempfile.mkdtemp(prefix="llmtrain-chromium."))
    process = subprocess.Popen(
        [PROGRAM, *OPTIONS, f"--user-data-dir={home}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(home)},
    )
    try:
        port = await _port(home / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            yield Browser(session, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        await remove_folder(home)


async def remove_folder(folder: Path) -> None:
    """Remove a folder to which processes may write a little longer.

    Those of a browser end after its first one. Raises OSError after `END_SECONDS`.
    """
    deadline = time.monotonic() + END_SECONDS
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_SECONDS
    while not (file.is_file() and "\n" in (text := file.read_text())):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BrowserError(f"Chromium did not start (exit code {process.poll()})")
        await asyncio.sleep(0.1)
    return int(text.splitlines()[0])


class Browser:
    """A running browser."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address

    async def picture(self, url: str, width: int) -> Picture:
        """Open a page, wait for its `window.problems`, and take a picture of all of it."""
        async with self._session.put(f"{self._address}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        socket = target["webSocketDebuggerUrl"]
        async with self._session.ws_connect(socket, max_msg_size=MESSAGE_BYTES) as connection:
            page = _Page(connection, self._session, origin=str(URL(url).origin()))
            await page.call("Fetch.enable")
            await page.resize(width, 1000)
            await page.call("Page.navigate", url=url)
            problems = await page.problems()
            await page.resize(width, await page.evaluate("document.body.scrollHeight"))
            await asyncio.sleep(0.5)
            text = await page.evaluate("document.body.innerText")
            shot = await page.call("Page.captureScreenshot", format="png")
            await page.call("Page.close")
        return Picture(base64.b64decode(shot["data"]), text, tuple(problems))


class _Page:
    """A page whose requests this process sends.

    Chromium fails requests that wait for a connection when the addresses of the machine change
    (ERR_NETWORK_CHANGED), even those to loopback, and containers that start change them.
    """

    def __init__(
        self,
        connection: aiohttp.ClientWebSocketResponse,
        session: aiohttp.ClientSession,
        origin: str,
    ) -> None:
        self._connection = connection
        self._session = session
        self._origin = origin
        self._last = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        """Send a command; return its result. Requests of the page are answered meanwhile."""
        sent = await self._send(method, parameters)
        while True:
            message = json.loads(await self._connection.receive_str(timeout=LOAD_SECONDS))
            if message.get("method") == "Fetch.requestPaused":
                await self._answer(message["params"])
            elif message.get("id") == sent:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                return message["result"]

    async def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._last += 1
        await self._connection.send_json({"id": self._last, "method": method, "params": parameters})
        return self._last

    async def _answer(self, paused: dict[str, Any]) -> None:
        """Answer a request to the origin of the page; fail any other."""
        parameters: dict[str, Any] = {"requestId": paused["requestId"]}
        url = URL(paused["request"]["url"], encoded=True)
        if str(url.origin()) != self._origin or paused["request"]["method"] != "GET":
            await self._send("Fetch.failRequest", {**parameters, "errorReason": "BlockedByClient"})
            return
        async with self._session.get(url) as answer:
            parameters |= {
                "responseCode": answer.status,
                "responseHeaders": [{"name": "Content-Type", "value": answer.content_type}],
                "body": base64.b64encode(await answer.read()).decode(),
            }
        await self._send("Fetch.fulfillRequest", parameters)

    async def resize(self, width: int, height: int) -> None:
        """Set the size of the window."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def problems(self) -> list[str]:
        """Wait until the page has drawn everything; return its problems."""
        deadline = time.monotonic() + LOAD_SECONDS
        while (found := await self.evaluate("window.problems")) is None:
            if time.monotonic() > deadline:
                raise BrowserError("the page did not draw anything")
            await asyncio.sleep(0.2)
        return list(found)
