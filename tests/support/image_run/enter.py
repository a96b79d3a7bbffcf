"""Become a process of a container: `unshare --mount ... python enter.py JSON`.

Every file system is read-only, but for the writable mounts of the pod. The user ID has no passwd
entry, and the process has no capability and no environment but its own. Uses only the standard
library, and runs as root in a mount namespace of its own. The file system is that of the host, with
the interpreter and the packages at places of their own below `/mnt`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 32, 4096, 16384
KEPT = {"nosuid": MS_NOSUID, "nodev": MS_NODEV}

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*texts, flags, options.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} at {target}: {os.strerror(number)}")


def mount_points() -> dict[str, set[str]]:
    """Return the options of the mounts that are not hidden by others, by place."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = {
        fields[4].encode().decode("unicode_escape"): set(fields[5].split(",")) for fields in lines
    }
    return {point: options for point, options in found.items() if Path(point).exists()}


def make_root(binds: dict[str, str], writable: list[str]) -> None:
    """Mount what the container has, and make everything else read-only."""
    for base in ("/mnt", "/run"):
        mount("tmpfs", base, "tmpfs", 0, "mode=755")
    for target, source in binds.items():
        place = Path(target)
        if Path(source).is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        mount(source, target, None, MS_BIND | MS_REC)
    for target in writable:
        if target not in binds:
            Path(target).mkdir(parents=True, exist_ok=True)
            mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for point, options in mount_points().items():
        if point not in writable and point != "/proc":
            kept = sum(flag for name, flag in KEPT.items() if name in options)
            mount("none", point, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept)
    left = {point for point, options in mount_points().items() if "ro" not in options}
    assert left == {"/proc", *writable}, f"other file systems are writable: {left}"


def main() -> None:
    """Change the file system, then become an unprivileged process."""
    request: dict[str, Any] = json.loads(sys.argv[1])
    make_root(request["binds"], request["writable"])
    os.chdir("/")
    user = str(request["user"])
    drop = [
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        "--",
    ]
    os.execvpe(drop[0], [*drop, *request["command"]], request["env"])


if __name__ == "__main__":
    main()
