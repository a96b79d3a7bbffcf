"""A lasting cluster: `python -m llmtrain_kind up`, `env` to use it, `down` to remove it.

`up` leaves a process behind that holds the Docker engine and restores the machine at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from llmtrain_chart.helm import HelmError, find_helm
from llmtrain_devcluster.go_build.golang import GoMissingError
from llmtrain_devcluster.go_build.tools import BuildError
from llmtrain_devcluster.paths import cache_root
from llmtrain_devcluster.processes import end_process, start_time
from llmtrain_images.base import BaseError
from llmtrain_images.build import build_operator, build_trainer
from llmtrain_images.debian import DebianError
from llmtrain_images.docker_engine import EngineError, docker_engine
from llmtrain_images.wheels import WheelError
from llmtrain_kind.addons import add_gpus
from llmtrain_kind.binaries import kubectl
from llmtrain_kind.cluster import WORKERS, KindError, kind_cluster
from llmtrain_kind.guard import GuardError
from llmtrain_kind.kubectl import KubectlError

HOME = cache_root() / "kind" / "cluster"
STATE = HOME / "state.json"
KUBECONFIG = HOME / "kubeconfig"
LOG = HOME / "log"
PROGRAMS = HOME / "bin"
"""Folder with kubectl and helm, for the PATH of a shell."""
GPUS = 2
STOP_SECONDS = 180.0
ERRORS = (
    BaseError,
    BuildError,
    DebianError,
    EngineError,
    GoMissingError,
    GuardError,
    HelmError,
    KindError,
    KubectlError,
    WheelError,
)


def main(arguments: list[str]) -> int:
    """Run a command and return the exit code."""
    commands = {"up": up, "env": env, "down": down, "hold": hold}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: python -m llmtrain_kind up|env|down", file=sys.stderr)
        return 2
    return commands[arguments[0]]()


def up() -> int:
    """Start the cluster, and print how to use it."""
    if _holder() is None:
        HOME.mkdir(parents=True, exist_ok=True)
        try:
            _link_programs()
        except HelmError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        KUBECONFIG.unlink(missing_ok=True)
        with LOG.open("wb") as log:
            holder = subprocess.Popen(
                [sys.executable, "-m", "llmtrain_kind", "hold"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        STATE.write_text(json.dumps({"pid": holder.pid, "started": start_time(holder.pid)}))
        if not _follow(holder):
            return 1
    print('kubectl and helm use the cluster after: eval "$(make -s kind-env)"', file=sys.stderr)
    return 0


def env() -> int:
    """Print the commands with which a shell uses the cluster."""
    if _holder() is None or not KUBECONFIG.exists():
        print("error: there is no cluster; start one with: make kind-up", file=sys.stderr)
        return 1
    print(f"export KUBECONFIG={shlex.quote(str(KUBECONFIG))}")
    print(f'export PATH={shlex.quote(str(PROGRAMS))}:"$PATH"')
    return 0


def down() -> int:
    """Remove the cluster and restore the machine."""
    if (holder := _holder()) is not None:
        end_process(*holder, STOP_SECONDS)
    STATE.unlink(missing_ok=True)
    KUBECONFIG.unlink(missing_ok=True)
    return 0


def hold() -> int:
    """Run the cluster until a signal ends this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with docker_engine() as engine:
            images = (build_operator(engine), build_trainer(engine))
            with kind_cluster(engine, images) as cluster:
                for worker in WORKERS:
                    add_gpus(cluster.kubectl, worker, GPUS)
                _publish(cluster.kubeconfig)
                while True:
                    signal.pause()
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _link_programs() -> None:
    PROGRAMS.mkdir(exist_ok=True)
    for name, program in {"kubectl": kubectl(), "helm": find_helm()}.items():
        (PROGRAMS / name).unlink(missing_ok=True)
        (PROGRAMS / name).symlink_to(program)


def _publish(kubeconfig: Path) -> None:
    """Write the kubeconfig to its place; from then on the cluster counts as ready."""
    draft = KUBECONFIG.with_suffix(".draft")
    draft.write_bytes(kubeconfig.read_bytes())
    draft.chmod(0o600)
    draft.rename(KUBECONFIG)


def _holder() -> tuple[int, int] | None:
    """Return pid and start time of the process that holds the cluster, if it runs."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(STATE.read_text())
        if state["started"] and start_time(state["pid"]) == state["started"]:
            return state["pid"], state["started"]
    return None


def _follow(holder: subprocess.Popen[bytes]) -> bool:
    """Print the log of the holder until the cluster is ready; return False if it ended before."""
    shown = 0
    while True:
        ready, ended = KUBECONFIG.exists(), holder.poll() is not None
        text = LOG.read_bytes()
        os.write(2, text[shown:])
        shown = len(text)
        if ready or ended:
            return ready and not ended
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
