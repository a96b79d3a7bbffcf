"""Run one container with its own file system and process ids, in the host's network.

`python -m llmtrain_devcluster.process_node.sandbox PARENT_PID` reads a JSON `Sandbox` on stdin. The
root consists of overlays of the host's folders: containers can read the host's files but not write
them. The command becomes process 1 of a new process namespace: when it or this process ends, the
kernel kills all its descendants. SIGTERM is forwarded; SIGUSR1 kills. The exit code is that of the
command, or 128 + its signal. Uses only the standard library, and no threads, because it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmtrain_devcluster.processes import die_with_parent

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x4000000, 0x10000000, 0x20000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
# statvfs flag -> mount flag: nosuid, nodev, noexec, noatime, nodiratime, relatime.
KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
START_FAILED = 128

# Folders that a container does not share with the host.
OWN_MOUNTS = ("/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the host that the container sees at `target`."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The configuration of one container."""

    command: Sequence[str]
    env: Mapping[str, str]
    work_dir: str
    hostname: str
    scratch: str
    mounts: Sequence[Mount] = ()
    limits: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the input of the program."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Sandbox:
        """Parse the output of `to_json`."""
        data = json.loads(text)
        data["mounts"] = [Mount(**mount) for mount in data["mounts"]]
        return cls(**data)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*arguments, flags, options.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} ({kind or 'bind'}): {os.strerror(number)}", target)


def _bind(source: str, target: str, *, read_only: bool = False) -> None:
    _mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        # Without root, a remount must not drop a flag that the host has set.
        have = os.statvfs(target).f_flag
        kept = sum(flag for bit, flag in KEPT_FLAGS.items() if have & bit)
        _mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def _unshare() -> None:
    """Enter new namespaces; without root, become root of a new user namespace first."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(flags | (CLONE_NEWUSER if uid else 0)) != 0:
        number = ctypes.get_errno()
        raise OSError(
            number,
            f"cannot create namespaces ({os.strerror(number)}): run as root, or allow "
            "unprivileged user namespaces",
        )
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)


def _host_mounts() -> list[str]:
    """Return all mount points of the host."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _place(root: Path, target: str, source: str) -> str:
    """Make the mount point for `target` below the new root: a folder or a file as `source` is."""
    place = root / target.lstrip("/")
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return str(place)


@dataclass(slots=True)
class _RootBuilder:
    """Builds a root with the content of the host's, but without write access to it.

    A folder without mounts inside becomes one overlay. Any other one becomes a plain folder
    whose entries are handled in the same way, because an overlay does not show the mounts in its
    lower folder and, without root, may not have any.
    """

    scratch: Path
    root: Path
    mounts: Sequence[str]
    count: int = 0

    def add(self, path: str) -> None:
        """Add a path of the host, unless containers do not share it."""
        source = Path(path)
        target = self.root / path.lstrip("/")
        if path in OWN_MOUNTS or source == self.scratch:
            return
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif not source.is_dir():
            if source.is_file():
                _bind(path, _place(self.root, path, path), read_only=True)
        elif any(point.startswith(path.rstrip("/") + "/") for point in self.mounts):
            target.mkdir(parents=True, exist_ok=True)
            for entry in sorted(os.listdir(path)):  # noqa: PTH208 - names are all we need
                with contextlib.suppress(PermissionError):
                    self.add(f"{path.rstrip('/')}/{entry}")
        else:
            target.mkdir(parents=True, exist_ok=True)
            self._overlay(path, str(target))

    def _overlay(self, path: str, target: str) -> None:
        self.count += 1
        upper, work = (self.scratch / f"{kind}-{self.count}" for kind in ("upper", "work"))
        upper.mkdir()
        work.mkdir()
        options = f"lowerdir={_escape(path)},upperdir={upper},workdir={work},userxattr"
        try:
            _mount("overlay", target, "overlay", 0, options)
        except OSError:  # not every file system can be the lower one
            _bind(path, target, read_only=True)


def _escape(path: str) -> str:
    """Escape special characters of overlay options."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _make_root(sandbox: Sandbox) -> Path:
    """Build the container's root before the change of root hides the host's."""
    scratch = Path(sandbox.scratch)
    _mount("scratch", str(scratch), "tmpfs", 0, "mode=755")
    mounts = _host_mounts()
    root = scratch / "root"
    root.mkdir()
    _RootBuilder(scratch, root, mounts).add("/")
    for place, mode in (("/tmp", "1777"), ("/var/tmp", "1777"), ("/run", "755")):
        _mount("tmpfs", _place(root, place, "/"), "tmpfs", 0, f"mode={mode}")
    _bind("/sys", _place(root, "/sys", "/"))
    _place(root, "/proc", "/")
    _make_dev(root)
    for mount in sandbox.mounts:
        target = _place(root, mount.target, mount.source)
        _bind(mount.source, target, read_only=mount.read_only)
    return root


def _make_dev(root: Path) -> None:
    """Create a /dev for the container, because that of the host is writable."""
    dev = Path(_place(root, "/dev", "/"))
    _mount("tmpfs", str(dev), "tmpfs", 0, "mode=755")
    for name in DEVICES:
        if Path("/dev", name).exists():
            _bind(f"/dev/{name}", _place(root, f"/dev/{name}", f"/dev/{name}"))
    for name, target in (("fd", "/proc/self/fd"), ("ptmx", "pts/ptmx")):
        (dev / name).symlink_to(target)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")
    (dev / "pts").mkdir()
    (dev / "shm").mkdir()
    _mount("devpts", str(dev / "pts"), "devpts", 0, "newinstance,ptmxmode=0666")
    _mount("shm", str(dev / "shm"), "tmpfs", 0, "mode=1777,size=64m")


def _become_container(sandbox: Sandbox, root: Path) -> None:
    """Execute the container's command as process 1 of the new namespace; never returns."""
    die_with_parent()
    _libc.sethostname(sandbox.hostname.encode(), len(sandbox.hostname.encode()))
    try:
        _mount("proc", str(root / "proc"), "proc", 0)
    except PermissionError:  # inside a container whose runtime hides parts of /proc
        _bind("/proc", str(root / "proc"))
    os.chroot(root)
    with contextlib.suppress(FileExistsError):
        os.makedirs(sandbox.work_dir)  # noqa: PTH103 - as a runtime does
    os.chdir(sandbox.work_dir)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.execvpe(sandbox.command[0], list(sandbox.command), dict(sandbox.env))


def _start(sandbox: Sandbox) -> int:
    """Fork process 1; it prints errors of the start to standard error."""
    _unshare()
    root = _make_root(sandbox)
    child = os.fork()
    if child == 0:
        try:
            _become_container(sandbox, root)
        except OSError as error:
            print(f"cannot start {sandbox.command[0]!r}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(START_FAILED)
    return child


def main() -> int:
    """Run the container and return its exit code."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return START_FAILED  # the agent ended before die_with_parent() took effect
    sandbox = Sandbox.from_json(sys.stdin.read())
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    caught = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    try:
        child = _start(sandbox)
    except OSError as error:
        print(f"cannot prepare the container: {error}", file=sys.stderr, flush=True)
        return START_FAILED
    while True:
        number = signal.sigwait(caught)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        else:
            forwarded = signal.SIGKILL if number == signal.SIGUSR1 else signal.SIGTERM
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, forwarded)


if __name__ == "__main__":
    sys.exit(main())
