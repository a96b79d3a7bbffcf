"""`llmtrain cluster up`, `status`, `down`, as a user calls them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmtrain_cli.commands.cluster import app
from llmtrain_devcluster import detached
from llmtrain_devcluster.detached import DetachedCluster, state_file
from llmtrain_devcluster.paths import clusters_folder
from llmtrain_devcluster.processes import children, start_time
from llmtrain_devcluster.supervisor import DEATHS

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return f"{result.output}{result.exception or ''}"


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def wait_for(path: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_up_status_and_down() -> None:
    program = "from llmtrain_cli.commands.cluster import app; app()"
    command = [sys.executable, "-c", program, "up", "--name", "mine", "--racks", "1", "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        found = json.loads(done.stdout)
        folder = Path(found["folder"])
        assert found["health"] == "ok"
        assert found["nodes"] == ["rack-a-1", "rack-a-2"]
        assert "token" not in found
        assert json.loads(call("status", "-o", "json"))[0]["name"] == "mine"
        kubectl = [str(Path(sys.prefix) / "bin" / "kubectl"), "--kubeconfig", found["kubeconfig"]]
        listed = subprocess.check_output(
            [*kubectl, "get", "nodes", "-L", "network.topology.nvidia.com/leaf"], text=True
        )
        assert listed.count("rack-a ") + listed.count("rack-a\n") == 2
        assert listed.count(" Ready ") == 2
        assert "already up" in call("up", "--name", "mine", code=1)
        agent = next(pid for pid in children(found["pid"]) if "process_node" in command_of(pid))
        os.kill(agent, signal.SIGKILL)
        wait_for(Path(found["folder"]) / DEATHS)
        assert "process-nodes ended with code -9" in call("status", code=1)
    finally:
        call("down", "--name", "mine")
    assert start_time(found["pid"]) is None
    assert not folder.exists()
    assert not state_file("mine").exists()
    assert "no cluster" in call("status")
    assert "there is no cluster" in call("down", "--name", "mine")


def test_a_recycled_pid_is_never_killed(tmp_path: Path) -> None:
    """The state file of a dead cluster names a pid that is somebody else's by now."""
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        folder = tmp_path / "llmtrain-cluster-old"
        folder.mkdir()
        old = DetachedCluster(
            "old", stranger.pid, 1, "https://127.0.0.1:1", "", "", str(folder), []
        )
        state_file("old").parent.mkdir(parents=True, exist_ok=True)
        fields = {name: getattr(old, name) for name in old.__slots__}
        state_file("old").write_text(json.dumps(fields))
        assert "supervisor has ended" in call("status", code=1)
        assert detached.down("old")
        assert stranger.poll() is None
        assert not folder.exists()
    finally:
        os.kill(stranger.pid, signal.SIGKILL)
        stranger.wait()


def test_bad_names_and_options_are_refused() -> None:
    assert "greater than or equal to 1" in call("up", "--racks", "0", code=2)
    assert "neither text nor json" in call("up", "-o", "yaml", code=2)
    assert "neither text nor json" in call("status", "-o", "yaml", code=2)
    # The first thing that `up` does is to look for the cluster in this folder, which it makes.
    assert not clusters_folder().exists()
    assert "not a valid name for a cluster" in call("down", "--name", "../x", code=1)
