"""What the tests of process nodes share: pods, and what the API server says of them."""

import asyncio
import textwrap
from pathlib import Path

from llmtrain_core.images import TRAINER
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.process_node.start import machine_node

BACKOFF_SECONDS = 0.3
NODES = [machine_node(f"node-{i}", {"rack": "a"}, gpus=2) for i in range(2)]
POD_IP = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def sh(script: str, **container: object) -> dict:
    script = textwrap.dedent(script)
    return {"name": "main", "image": TRAINER, "command": ["sh", "-c", script], **container}


def py(script: str, **container: object) -> dict:
    script = textwrap.dedent(script)
    return {
        "name": "main",
        "image": TRAINER,
        "command": ["python", "-c", script],
        **container,
    }


def pod(name: str, *containers: dict, meta: dict | None = None, **spec: object) -> dict:
    return {
        "metadata": {"name": name, **(meta or {})},
        "spec": {"restartPolicy": "Never", "containers": list(containers), **spec},
    }


def phase(found: dict | None) -> str:
    return (found or {}).get("status", {}).get("phase", "")


def ended(found: dict | None) -> bool:
    return phase(found) in ("Succeeded", "Failed")


def state(found: dict | None, index: int = 0) -> dict:
    statuses = (found or {}).get("status", {}).get("containerStatuses") or [{}]
    return statuses[index].get("state", {})


def is_ready(found: dict | None) -> bool:
    conditions = (found or {}).get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def run(api: Api, namespace: str, manifest: dict) -> dict:
    await api.create("pods", manifest, namespace)
    return await api.wait_for("pods", manifest["metadata"]["name"], ended, namespace)


async def log_has(api: Api, namespace: str, name: str, text: str) -> None:
    for _ in range(100):
        if text in await api.logs(name, namespace):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{text!r} never came in the log of {name}")


def processes(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
