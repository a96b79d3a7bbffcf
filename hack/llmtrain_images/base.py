"""Root filesystems of images, made of Debian packages and cached: no image registry is needed.

`root_filesystem` returns a tar file, `base_image` an image of an engine.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.go_build.tools import Progress, print_progress
from llmtrain_devcluster.paths import cache_root
from llmtrain_images.cache import mark_used
from llmtrain_images.debian import install_missing, mirror
from llmtrain_images.docker_engine import DockerEngine

SOURCE_DATE_EPOCH = 1767225600
"""Time of every file in an image: the start of 2026."""
DOCUMENTATION = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/lintian/*",
)
LEFT_OVER = ("/etc/apt/sources.list", "/var/cache/apt", "/var/cache/ldconfig", "/var/lib/apt")
"""What bootstrapping leaves: the address of this machine's mirror, caches, and lists."""
_PURGE = (
    'chroot "$1" dpkg --purge --force-depends --force-remove-essential --force-remove-protected'
)
REPOSITORY = "llmtrain.local/base"
"""Name of the base images in an engine. The Dockerfile accepts it, and other names by digest."""
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BaseError(RuntimeError):
    """A root filesystem could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class RootFilesystem:
    """A Debian system: a release, the packages beside the essential ones, and what is left out."""

    suite: str
    packages: tuple[str, ...] = ()
    excluded: tuple[str, ...] = DOCUMENTATION
    """Patterns of paths that no package may install."""
    purged: tuple[str, ...] = ()
    """Packages to remove at the end, whatever depends on them."""
    removed: tuple[str, ...] = ()
    """Paths to remove at the end. Package scripts may need them before; `*` and `?` match."""

    def digest(self) -> str:
        """Return the key of the cache: a hash of what the result depends on."""
        content = (self, SOURCE_DATE_EPOCH, LEFT_OVER)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def root_filesystem(base: RootFilesystem, progress: Progress = print_progress) -> Path:
    """Return a tar file with the system; make it if the cache does not have it."""
    folder = cache_root() / "rootfs"
    target = folder / f"{base.digest()}.tar"
    if target.exists():
        return mark_used(target)
    folder.mkdir(parents=True, exist_ok=True)
    install_missing(["mmdebstrap"], ["mmdebstrap"], progress)
    progress(f"making a root filesystem of {base.suite} once, {target}")
    with tempfile.TemporaryDirectory(dir=folder) as workspace:
        draft = Path(workspace) / target.name
        _bootstrap(base, draft, Path(workspace))
        draft.rename(target)
    return mark_used(target)


def base_image(
    engine: DockerEngine, base: RootFilesystem, progress: Progress = print_progress
) -> str:
    """Return the name of an image with the system; import it if the engine does not have it.

    The tag is the image ID, which is a hash of the content. The same definition can give other
    content later, because the mirror has the newest versions of its release.
    """
    name = f"{REPOSITORY}:{base.digest()}"
    if not engine.has_image(name):
        tar = root_filesystem(base, progress)
        engine.docker("import", "--change", f"ENV PATH={SEARCH_PATH}", str(tar), name)
    identity = engine.docker("image", "inspect", "--format", "{{.Id}}", name).stdout.strip()
    pinned = f"{REPOSITORY}:{identity.removeprefix('sha256:')}"
    engine.docker("tag", name, pinned)
    return pinned


def _bootstrap(base: RootFilesystem, target: Path, workspace: Path) -> None:
    options = [
        "--variant=minbase",
        "--mode=root",
        "--format=tar",
        f"--include={','.join(base.packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in base.excluded),
        *([f"--customize-hook={_PURGE} {' '.join(base.purged)}"] if base.purged else ()),
        f"--customize-hook={_removal(base)}",
        "--quiet",
    ]
    done = subprocess.run(
        ["mmdebstrap", *options, base.suite, str(target), mirror()],
        env=os.environ | {"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH), "TMPDIR": str(workspace)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise BaseError(f"mmdebstrap of {base.suite} failed:\n{tail}")


def _removal(base: RootFilesystem) -> str:
    """Return a shell command that removes paths below `$1`, with patterns."""
    quoted = [
        "".join(c if c in "*?" else shlex.quote(c) for c in path)
        for path in (*LEFT_OVER, *base.removed)
    ]
    return "rm -rf " + " ".join(f'"$1"{path}' for path in quoted)
