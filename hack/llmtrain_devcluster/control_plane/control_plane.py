"""Run a control plane as local processes."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.build import Binaries, find_binaries
from llmtrain_devcluster.control_plane.components import (
    WRITES,
    Options,
    Ports,
    apiserver_command,
    audit_policy,
    component_environment,
    controller_manager_command,
    etcd_command,
    scheduler_command,
)
from llmtrain_devcluster.control_plane.credentials import (
    User,
    kubeconfig,
    token_file,
    write_private,
)
from llmtrain_devcluster.control_plane.readiness import probe
from llmtrain_devcluster.control_plane.supervisor_client import SupervisorClient
from llmtrain_devcluster.go_build.tools import Progress
from llmtrain_devcluster.paths import scratch_base
from llmtrain_devcluster.processes import free_ports

START_ATTEMPTS = 3
READY_SECONDS = 60.0
LOG_LINES = 15
FOLDER_PREFIX = "llmtrain-cluster-"


class ClusterError(RuntimeError):
    """An operation on the cluster failed; the message has the reason and the remedy."""


class ComponentDiedError(ClusterError):
    """A component ended unexpectedly; the message has the end of its log."""

    def __init__(self, name: str, code: int, log: str):
        super().__init__(f"{name} ended with code {code}; the end of its log:\n{log}")
        self.component = name
        self.code = code
        self.log = log


class ControlPlane:
    """One cluster. Users are added before the start; `admin` always exists."""

    def __init__(
        self,
        options: Options | None = None,
        *,
        users: Mapping[str, Sequence[str]] | None = None,
        progress: Progress | None = None,
    ):
        self.options = options or Options()
        self.folder = Path()
        self._progress = progress
        self._supervisor: SupervisorClient | None = None
        self._ports: Ports | None = None
        self._users: dict[str, User] = {}
        self.add_user("admin", ["system:masters"])
        self.add_user("system:kube-controller-manager")
        self.add_user("system:kube-scheduler")
        self._audited = list(users or ())
        for name, groups in (users or {}).items():
            self.add_user(name, groups)

    def add_user(self, name: str, groups: Sequence[str] = ()) -> None:
        """Add a user with a token and only the rights that RBAC grants."""
        if self._supervisor is not None:
            raise ClusterError(f"add the user {name} before the control plane starts")
        self._users[name] = User.new(name, groups)

    def start(self) -> Self:
        """Start all components and return when they are ready."""
        binaries = find_binaries(self._progress)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start(binaries)
            except ComponentDiedError as error:
                self.stop()
                # Another process may have taken a port that was free before.
                if "address already in use" not in error.log or attempt == START_ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def _start(self, binaries: Binaries) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=scratch_base()))
        self._ports = ports = Ports(*free_ports(5))
        self._write_files()
        self._supervisor = SupervisorClient(self.folder)
        environment = component_environment(self.options)
        start = functools.partial(self._supervisor.start, env=environment)
        start("etcd", etcd_command(binaries, self.folder, ports))
        start("kube-apiserver", apiserver_command(binaries, self.folder, ports, self.options))
        self._await_ready("kube-apiserver", f"{self.url}/readyz", self.token("admin"))
        if self.options.controller_manager:
            command = controller_manager_command(binaries, self.folder, ports, self.options)
            start("kube-controller-manager", command)
        if self.options.scheduler:
            command = scheduler_command(binaries, self.folder, ports, self.options)
            start("kube-scheduler", command)
        for name, port, wanted in (
            ("kube-controller-manager", ports.controller_manager, self.options.controller_manager),
            ("kube-scheduler", ports.scheduler, self.options.scheduler),
        ):
            if wanted:
                self._await_ready(name, f"https://127.0.0.1:{port}/healthz", "")

    def _write_files(self) -> None:
        write_private(self.folder / "tokens.csv", token_file(self._users))
        (self.folder / "audit-policy.yaml").write_text(audit_policy(self._audited))
        for component in ("controller-manager", "scheduler"):
            self.kubeconfig(f"system:kube-{component}", self.folder / f"{component}.kubeconfig")

    def _await_ready(self, name: str, url: str, token: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            self.check()
            answer = probe(url, token)
            if answer == "ok":
                return
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name} is not ready after {READY_SECONDS:.0f} s ({answer}); "
                    f"the end of its log:\n{self.log_tail(name)}"
                )
            time.sleep(0.1)

    def check(self) -> None:
        """Raise ComponentDiedError if a component has ended by itself."""
        if self._supervisor is None:
            raise ClusterError("the control plane is not running: call start() first")
        for name, code in self._supervisor.deaths():
            raise ComponentDiedError(name, code, self.log_tail(name))

    def log_tail(self, component: str, lines: int = LOG_LINES) -> str:
        """Return the end of a component's log."""
        path = self.folder / f"{component}.log"
        if not path.is_file():
            return "(no log)"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) or "(empty log)"

    def run_component(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Run one more process that lives and ends with the cluster; return its pid."""
        if self._supervisor is None:
            raise ClusterError("the control plane is not running: call start() first")
        self._supervisor.start(name, argv, env)
        pid = self._supervisor.pid(name)
        if pid is None:
            self.check()
            raise ClusterError(f"{name} did not start; see {self.folder / (name + '.log')}")
        return pid

    def end_component(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one component with a signal and wait for it; it can be run again afterwards."""
        if self._supervisor is None:
            raise ClusterError("the control plane is not running: call start() first")
        self._supervisor.end(name, number)

    def stop(self) -> None:
        """End all components and remove every file; safe to call twice."""
        owned, self._supervisor = self._supervisor, None
        if owned is not None:
            owned.stop()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = Path()

    def detach(self, remove_at_end: Sequence[Path] = ()) -> tuple[int, int]:
        """Detach the cluster from this process; return pid and start time of its supervisor."""
        if self._supervisor is None:
            raise ClusterError("the control plane is not running: call start() first")
        identity = self._supervisor.detach(remove_at_end)
        self._supervisor, self.folder = None, Path()
        return identity

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The API server's port."""
        if self._ports is None:
            raise ClusterError("the control plane is not running: call start() first")
        return self._ports.apiserver

    @property
    def url(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate that clients trust."""
        return self.folder / "tls" / "apiserver.crt"

    @property
    def supervisor_pid(self) -> int:
        """The process that owns all components."""
        if self._supervisor is None:
            raise ClusterError("the control plane is not running: call start() first")
        return self._supervisor.supervisor_pid

    def component_pid(self, name: str) -> int | None:
        """Return a component's process id, or None if it does not run."""
        return self._supervisor.pid(name) if self._supervisor is not None else None

    def _user(self, name: str) -> User:
        if name not in self._users:
            known = ", ".join(sorted(self._users))
            raise ClusterError(f"no user {name!r}: add_user() it before the start (known: {known})")
        return self._users[name]

    def token(self, user: str = "admin") -> str:
        """Return a user's token."""
        return self._user(user).token

    def client(self, user: str = "admin") -> Api:
        """Return a client of the API as this user; use it as `async with`."""
        return Api(self.url, self.token(user), self.ca_file)

    def kubeconfig(self, user: str = "admin", path: Path | None = None) -> Path:
        """Write a kubeconfig for a user and return its path."""
        target = path or self.folder / f"{user.replace(':', '-')}.kubeconfig"
        return write_private(target, kubeconfig(self.url, self.ca_file, self._user(user)))

    def requests(self, user: str) -> list[dict[str, Any]]:
        """Return the audit events of all requests so far of a user that the cluster was given."""
        return [event for event in self._audit_events() if event["user"]["username"] == user]

    def writes(self, user: str | None = None) -> list[dict[str, Any]]:
        """Return the audit events of all writes so far, or of one user's writes."""
        events = self._audit_events() if user is None else self.requests(user)
        return [event for event in events if event["verb"] in WRITES]

    def _audit_events(self) -> list[dict[str, Any]]:
        if not self.options.audit:
            raise ClusterError("no audit log: start the control plane with Options(audit=True)")
        path = self.folder / "audit.log"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]
