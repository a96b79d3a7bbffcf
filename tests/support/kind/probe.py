"""A pod that connects to ports of other pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmtrain_kind.kubectl import Kubectl

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("open")
except TimeoutError:
    print("dropped")
except OSError as error:
    print("refused" if isinstance(error, ConnectionRefusedError) else f"dropped: {error}")
"""
LISTEN = """
import socket
with socket.create_server(("0.0.0.0", {port})) as server:
    while True:
        server.accept()[0].close()
"""

ASIDE = """
import os
if os.fork():
    os._exit(0)
os.setsid()
for file in range(3):
    os.close(file)
"""


def listener(name: str, namespace: str, image: str, port: int, node: str = "") -> dict[str, Any]:
    """Return a pod that accepts connections on a port, and from which others are probed."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "command": ["python", "-c", LISTEN.format(port=port)],
                    "imagePullPolicy": "Never",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        },
    }


@dataclass(frozen=True, slots=True)
class Probe:
    """Connects from a pod."""

    kubectl: Kubectl
    namespace: str
    pod: str

    def connect(self, address: str, port: int) -> str:
        """Return `open`, `refused` or `dropped`. A policy may do either of the last two."""
        command = ("python", "-c", CONNECT, address, str(port))
        return self._run(*command).strip().partition(":")[0]

    def listen(self, port: int) -> None:
        """Accept connections on a port from now on."""
        self._run("python", "-c", ASIDE + LISTEN.format(port=port))

    def _run(self, *command: str) -> str:
        return self.kubectl("exec", "--namespace", self.namespace, self.pod, "--", *command)
