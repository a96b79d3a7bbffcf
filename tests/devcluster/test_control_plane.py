"""A control plane starts, serves, and leaves nothing behind, however it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.control_plane.build import BuildError, find_binaries
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import (
    ClusterError,
    ComponentDiedError,
    ControlPlane,
)

pytestmark = pytest.mark.cluster
API_ONLY = Options(controller_manager=False, scheduler=False)


def mentions(folder: Path) -> list[str]:
    """Return the command lines of all processes that name this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def wait_clean(folder: Path, port: int, seconds: float = 60.0) -> None:
    """Wait until no process, port or folder is left."""
    deadline = time.monotonic() + seconds
    while mentions(folder) or folder.exists() or accepts(port):
        assert time.monotonic() < deadline, (mentions(folder), folder.exists(), accepts(port))
        time.sleep(0.05)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def test_users_have_only_their_rights(control_plane: ControlPlane, api: Api) -> None:
    assert (await api.request("GET", "/version"))["gitVersion"] == "v1.37.2"
    async with control_plane.client("unprivileged") as unprivileged:
        with pytest.raises(ApiStatusError) as refused:
            await unprivileged.list("nodes")
    assert refused.value.status == 403
    assert "unprivileged" in refused.value.message
    with pytest.raises(ClusterError, match="add_user"):
        control_plane.client("stranger")


async def test_writes_are_counted_by_user(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    def mine() -> list[str]:
        events = control_plane.writes("admin")
        return [
            f"{event['verb']} {event['objectRef']['name']}"
            for event in events
            if event["objectRef"].get("namespace") == namespace
            and event["objectRef"].get("resource") == "configmaps"
        ]

    await api.create("configmaps", {"metadata": {"name": "a"}}, namespace)
    await api.patch("configmaps", "a", {"data": {"x": "1"}}, namespace)
    await api.get("configmaps", "a", namespace)
    await api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}, namespace)
    assert mine() == ["create a", "patch a", "patch b"]


async def test_controllers_and_scheduler_work(api: Api, namespace: str) -> None:
    container = {"name": "c", "image": "any"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"metadata": {"name": "j"}, "spec": {"template": template}}
    await api.create("batch/v1/jobs", job, namespace)

    def is_active(found: dict | None) -> bool:
        return (found or {}).get("status", {}).get("active") == 1

    await api.wait_for("batch/v1/jobs", "j", is_active, namespace)
    await api.delete("batch/v1/jobs", "j", namespace)


def test_two_at_once_leave_nothing() -> None:
    """One loses a component and is stopped; the other one's supervisor is killed."""
    one, two = ControlPlane(API_ONLY), ControlPlane(API_ONLY)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ControlPlane.start, (one, two)))
    left = [(one.folder, port_of(one.url)), (two.folder, port_of(two.url))]
    try:
        assert one.url != two.url
        kubeconfig = json.loads(one.kubeconfig().read_text())
        assert kubeconfig["clusters"][0]["cluster"]["server"] == one.url
        assert one.kubeconfig().stat().st_mode & 0o077 == 0
        pid = one.component_pid("etcd")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: one.component_pid("etcd") is None)
        with pytest.raises(ComponentDiedError, match="etcd ended with code -9"):
            one.check()
        two.check()
        os.kill(two.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: not mentions(left[1][0]))
        with pytest.raises(ComponentDiedError, match="supervisor"):
            two.check()
    finally:
        one.stop()
        two.stop()
    for folder, port in left:
        assert not mentions(folder)
        assert not folder.exists()
        assert not accepts(port)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


OWNER = """
    import json, signal, sys, time
    from llmtrain_devcluster.control_plane.components import Options
    from llmtrain_devcluster.control_plane.control_plane import ControlPlane
    # Whatever started the tests may have told its children to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cluster = ControlPlane(Options(controller_manager=False, scheduler=False)).start()
    print(json.dumps([str(cluster.folder), cluster.url, cluster.supervisor_pid]), flush=True)
    time.sleep(600)
"""


def test_owner_that_ends_leaves_nothing() -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_end_owner, (signal.SIGKILL, signal.SIGINT)))


def _end_owner(number: signal.Signals) -> None:
    command = [sys.executable, "-c", textwrap.dedent(OWNER)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as owner:
        assert owner.stdout is not None
        folder, url, _ = json.loads(owner.stdout.readline())
        assert mentions(Path(folder))
        # Ctrl-C reaches the whole process group of a terminal.
        os.killpg(owner.pid, number)
        owner.wait(10)
    wait_clean(Path(folder), port_of(url))


def test_component_that_dies_at_the_start_is_reported() -> None:
    broken = Options(
        controller_manager=False,
        scheduler=False,
        apiserver_args=["--feature-gates=NoSuchGate=true"],
    )
    cluster = ControlPlane(broken)
    with pytest.raises(ComponentDiedError) as died:
        cluster.start()
    assert died.value.component == "kube-apiserver"
    assert "NoSuchGate" in str(died.value)
    assert cluster.folder == Path()


def test_assets_of_the_environment_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = find_binaries()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(BuildError, match="no executable etcd"):
        find_binaries()
    (tmp_path / "etcd").symlink_to(built.etcd)
    (tmp_path / "kube-apiserver").symlink_to(built.apiserver)
    mixed = find_binaries()
    assert mixed.etcd == tmp_path / "etcd"
    assert mixed.scheduler == built.scheduler
