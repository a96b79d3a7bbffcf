"""kubectl with the rights of one kubeconfig."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmtrain_kind.binaries import kubectl


class KubectlError(RuntimeError):
    """A command failed; the message is what it printed."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs kubectl commands."""

    kubeconfig: Path

    def __call__(self, *arguments: str, text: str | None = None, seconds: float = 300) -> str:
        """Run a command, with `text` as its input, and return its output."""
        command = self._command(arguments)
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments[:4])}: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def background(self, *arguments: str) -> Iterator[IO[str]]:
        """Run a command until the block ends; its value is the output."""
        command = self._command(arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                yield process.stdout
            finally:
                process.terminate()

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get` finds as parsed JSON."""
        return json.loads(self("get", *arguments, "--output", "json"))

    def apply(self, *objects: Any) -> None:
        """Apply objects by server-side apply."""
        text = "\n---\n".join(json.dumps(one) for one in objects)
        self("apply", "--server-side", "--force-conflicts", "--filename", "-", text=text)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [str(kubectl()), f"--kubeconfig={self.kubeconfig}", *arguments]
