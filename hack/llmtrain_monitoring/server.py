"""Run Prometheus as a child of this process, and query it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from llmtrain_devcluster.processes import die_with_parent, free_ports
from llmtrain_monitoring.prometheus import SERVER, find

READY_SECONDS = 60.0
STOP_SECONDS = 20.0


class PrometheusError(RuntimeError):
    """The server did not start, or it refused a query; the message has its reason."""


class PrometheusServer:
    """A server with its configuration and data in one folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "prometheus.yaml"
        path.write_text(yaml.safe_dump(dict(self._config)))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [
            str(find(SERVER)),
            f"--config.file={path}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self._await_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / "prometheus.log"

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self._process is None or self._process.poll() is not None:
                raise PrometheusError(f"Prometheus has ended:\n{self._log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise PrometheusError("Prometheus is not ready") from None
                time.sleep(0.1)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query. Raises PrometheusError if it is refused."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: list[dict[str, Any]] = data["result"]
        return found

    def ask(self, path: str, **arguments: str) -> Any:
        """Return the data of a request to the API."""
        text = urllib.parse.urlencode(arguments)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{text}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(error.read().decode()) from error
