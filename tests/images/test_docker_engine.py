"""The engine of our own: no trace of it is left, even if its process is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain_devcluster.go_build.tools import print_progress
from llmtrain_images.debian import install_missing
from llmtrain_images.docker_engine import FIREWALL, EngineError, docker_engine, find_programs
from llmtrain_images.machine_state import MachineState, record

pytestmark = pytest.mark.kind

HOLD = """
import os, signal
from llmtrain_images.docker_engine import docker_engine
with docker_engine() as engine:
    engine.docker("network", "create", "left-behind")
    print(engine.socket.parent, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def significant(state: MachineState) -> MachineState:
    """Leave out tables with built-in chains only that accept everything: they do nothing."""
    tables = {
        name: table
        for name, table in state.tables.items()
        if table.rules or set(table.chains.values()) != {"ACCEPT"}
    }
    return MachineState(state.boot_id, state.sysctls, tables, state.bridge, state.cgroups)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineState]:
    """The state of the machine before the engines of these tests.

    They have a cache of their own, because the engine of the whole run may be there too.
    """
    programs = find_programs()
    install_missing(*FIREWALL, print_progress)
    cache = tmp_path_factory.mktemp("cache")
    (cache / "llmtrain/docker/programs").mkdir(parents=True)
    (cache / "llmtrain/docker/programs" / programs.name).symlink_to(programs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield record()


def test_an_engine_leaves_the_machine_as_it_was(before: MachineState) -> None:
    with docker_engine() as engine:
        engine.docker("network", "create", "left-behind")
        assert record().sysctls["net/ipv4/ip_forward"] == "1"
        assert significant(record()) != significant(before)
    assert significant(record()) == significant(before)
    assert not engine.socket.parent.exists()


def test_the_next_engine_restores_the_machine_if_one_was_killed(before: MachineState) -> None:
    held = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=False)
    assert held.returncode == -9, held.stderr
    with docker_engine() as engine:
        assert "left-behind" not in engine.docker("network", "ls").stdout
    assert significant(record()) == significant(before)
    assert not Path(held.stdout.strip()).exists()


def test_a_container_has_no_network_unless_it_gets_one(before: MachineState) -> None:
    with docker_engine() as engine:
        networks = engine.docker("network", "ls", "--format", "{{.Name}}").stdout.split()
    assert sorted(networks) == ["host", "none"]


def test_a_failed_command_says_why(before: MachineState) -> None:
    with docker_engine() as engine, pytest.raises(EngineError, match="No such object"):
        engine.docker("inspect", "missing")
