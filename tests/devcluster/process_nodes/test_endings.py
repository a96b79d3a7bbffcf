"""How pods end, and that nothing of them stays; their logs meanwhile."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.process_node.start import COMPONENT, start_process_nodes
from tests.support.process_pods import (
    BACKOFF_SECONDS,
    NODES,
    ended,
    is_ready,
    log_has,
    phase,
    pod,
    processes,
    py,
    run,
    sh,
    state,
)

pytestmark = pytest.mark.cluster
KUBECTL = str(Path(sys.prefix) / "bin" / "kubectl")


POLITE = """
    import signal, sys
    def end(*_):
        open("/dev/termination-log", "w").write("bye")
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        signal.pause()
"""
STUBBORN = """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: open("/dev/termination-log", "w").write("no"))
    print("ready", flush=True)
    while True:
        signal.pause()
"""


async def test_deletion_sends_sigterm_and_then_kills(api: Api, namespace: str) -> None:
    """Nobody waits for the pods' own grace period: it is longer than any wait in here."""
    for name, script in (("polite", POLITE), ("stubborn", STUBBORN)):
        one = pod(name, py(script), terminationGracePeriodSeconds=3600)
        # Always: a deleted pod's containers must not be restarted all the same.
        one["spec"]["restartPolicy"] = "Always"
        await api.create("pods", one, namespace)
        await api.wait_for("pods", name, is_ready, namespace)
        await log_has(api, namespace, name, "ready")
    version = (await api.list_page("pods", namespace))["metadata"]["resourceVersion"]
    await api.delete("pods", "polite", namespace)
    await api.delete("pods", "stubborn", namespace, grace_seconds=2)
    for name in ("polite", "stubborn"):
        await api.wait_for("pods", name, lambda found: found is None, namespace)
    states = await _last_states(api, namespace, version)
    assert states["polite"]["terminated"]["exitCode"] == 143
    assert states["polite"]["terminated"]["message"] == "bye"
    assert states["stubborn"]["terminated"]["exitCode"] == 137
    assert states["stubborn"]["terminated"]["message"] == "no"


async def _last_states(api: Api, namespace: str, version: str) -> dict[str, dict]:
    """Return what the pods that went since a version were in when they went."""
    last: dict[str, dict] = {}
    async for kind, found in api.watch("pods", namespace, version=version, seconds=30):
        if kind == "DELETED":
            last[found["metadata"]["name"]] = state(found)
        if last.keys() == {"polite", "stubborn"}:
            break
    return last


async def test_logs_through_kubectl(api: Api, namespace: str, cluster: ControlPlane) -> None:
    script = "for i in 1 2 3 4; do echo line $i; sleep 0.2; done"
    await api.create("pods", pod("talks", sh(script)), namespace)
    await api.wait_for("pods", "talks", lambda p: is_ready(p) or ended(p), namespace)
    base = [KUBECTL, "--kubeconfig", str(cluster.kubeconfig()), "-n", namespace, "logs", "talks"]
    followed = await _output([*base, "-f"])
    assert followed == "line 1\nline 2\nline 3\nline 4\n"
    assert await _output([*base, "--tail=2"]) == "line 3\nline 4\n"


async def _output(command: list[str]) -> str:
    def call() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await asyncio.to_thread(call)


async def test_nothing_stays_on_the_host(api: Api, namespace: str, cluster: ControlPlane) -> None:
    marker = f"marker-{os.getpid()}"
    script = f"(sleep 601; : {marker}) & sh -c 'sleep 602; : {marker}'"
    await api.create("pods", pod("messy", sh(script)), namespace)
    found = await api.wait_for("pods", "messy", is_ready, namespace)
    for _ in range(100):
        if len(processes(marker)) >= 2:
            break
        await asyncio.sleep(0.05)
    assert len(processes(marker)) >= 2
    folder = cluster.folder / "process-nodes" / found["metadata"]["uid"]
    assert folder.is_dir()
    await api.delete("pods", "messy", namespace, grace_seconds=0)
    for _ in range(100):
        if not processes(marker) and not folder.exists():
            break
        await asyncio.sleep(0.05)
    assert not processes(marker)
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()


async def test_killed_agent_takes_its_containers_with_it(
    api: Api, namespace: str, cluster: ControlPlane
) -> None:
    """And a new agent says what became of their pods."""
    marker = f"marker-of-the-last-{os.getpid()}"
    script = f"trap '' TERM; (sleep 601; : {marker}) & sh -c 'sleep 602; : {marker}'"
    await api.create("pods", pod("orphan", sh(script)), namespace)
    await api.wait_for("pods", "orphan", is_ready, namespace)
    for _ in range(100):
        if len(processes(marker)) >= 2:
            break
        await asyncio.sleep(0.05)
    cluster.end_component(COMPONENT, signal.SIGKILL)
    for _ in range(100):
        if not processes(marker):
            break
        await asyncio.sleep(0.05)
    assert not processes(marker)
    cluster.check()
    start_process_nodes(cluster, NODES, backoff_seconds=BACKOFF_SECONDS)
    found = await api.wait_for("pods", "orphan", ended, namespace)
    assert found["status"]["reason"] == "NodeAgentRestarted"
    assert state(found)["terminated"]["reason"] == "ContainerStatusUnknown"
    assert phase(await run(api, namespace, pod("next", sh("exit 0")))) == "Succeeded"
